"""
The cost of bridge with several versions of Python, in one run.

    python3.13 -m venv build/python3.13
    build/python3.13/bin/pip install -r requirements-run.lock
    python -m tests.bench.pythons build/python3.13/bin/python --report docs/benchmarks.md

Only the bridge runs with the other interpreter, so broker, worker and windows cost the same.
The versions take turns within a round. Progress goes to stderr, the table to stdout.
"""

import argparse
import asyncio
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.bench.report import print_progress, write_part
from tests.bench.results import Results, Spread
from tests.bench.run import BenchWorld, open_stage, open_world
from tests.bench.servers import ROOT, SERVER_KINDS, ServerKind
from tests.bench.workloads import WORKLOADS, Scale

_STORES: Final = ("memory", "sqlite")
_WORKS: Final = {
    "saturated": "200 windows, saturated",
    "steady": "200 windows, 3,000 messages/s",
    "fanout": "one message → 1,000 windows",
}


def version_of(python: str) -> str:
    """
    Return the version of an interpreter.

    Raises:
        OSError: If `python` cannot be run.
        subprocess.CalledProcessError: If it cannot import bridge.

    """
    code = "import bridge.app, platform; print(platform.python_version())"
    command = [python, "-c", code]
    return subprocess.check_output(command, cwd=ROOT, text=True).strip()


async def measure(
    world: BenchWorld, pythons: Mapping[str, str], scale: Scale, rounds: int
) -> Results:
    """
    Measure each workload with each store and version.

    Args:
        world: The broker and the processors.
        pythons: Interpreters by their version.
        scale: The size of the workloads.
        rounds: How often each is measured.

    """
    results = Results({}, {})
    for round_ in range(rounds):
        for work in _WORKS:
            for kind in _kinds(pythons, is_reversed=bool(round_ % 2)):
                async with open_stage(world, kind, scale, seed=round_) as stage:
                    figures = await WORKLOADS[work](stage)
                results.note(round_, work, kind.name, figures)
                cost = f"{work}, {kind.name}: {figures['us']:.2f} µs a delivery"
                print_progress(f"round {round_ + 1} of {rounds}, {cost}")
    return results


def _kinds(pythons: Mapping[str, str], *, is_reversed: bool) -> Iterable[ServerKind]:
    items = list(pythons.items())[:: -1 if is_reversed else 1]
    for store in _STORES:
        for version, python in items:
            base = SERVER_KINDS[store]
            yield replace(base, name=f"{store}-{version}", python=python)


def table(results: Results, versions: Sequence[str]) -> Iterable[str]:
    """Yield µs a delivery, and the ratio to the first version within each round."""
    yield "| µs a delivery | store |" + "".join(f" {each} |" for each in versions)
    yield "|---|---|" + "---|" * len(versions)
    for work, title in _WORKS.items():
        for store in _STORES:
            cells = [
                _cell(results, work, f"{store}-{versions[0]}", f"{store}-{version}")
                for version in versions
            ]
            yield f"| {title} | `{store}:` |" + "".join(f" {each} |" for each in cells)
    yield ""
    rounds = len(results.rounds)
    yield f"Medians of {rounds} round{'s' if rounds > 1 else ''}; least to most in brackets."


def _cell(results: Results, work: str, first: str, server: str) -> str:
    spread = results.spread(work, server, "us")
    assert spread is not None
    shown = f"{spread.median:.2f} ({spread.least:.2f}-{spread.most:.2f})"
    if server == first:
        return shown
    ratio = Spread.of(
        [each[work][server]["us"] / each[work][first]["us"] for each in results.rounds]
    )
    return f"{shown}; ratio {ratio.median:.2f} ({ratio.least:.2f}-{ratio.most:.2f})"


async def _run(pythons: Mapping[str, str], rounds: int) -> Results:
    async with open_world(print_progress) as world:
        return await measure(world, pythons, Scale(), rounds)


def main() -> int:
    """Print the table; the status is 130 after Ctrl-C."""
    given = _parse()
    try:
        pythons = {version_of(path): path for path in (sys.executable, *given.pythons)}
    except (OSError, subprocess.CalledProcessError) as exc:
        print_progress(f"{exc}\nInstall requirements-run.lock for this interpreter.")
        return 1
    try:
        results = asyncio.run(_run(pythons, given.rounds))
    except KeyboardInterrupt:
        print_progress("stopped")
        return 130
    lines = tuple(table(results, tuple(pythons)))
    print("\n".join(lines))
    if given.report is not None:
        write_part(given.report, "pythons", lines)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.pythons",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("pythons", nargs="+", metavar="PYTHON", help="an interpreter to compare with")
    add("--rounds", type=int, default=3, help="how often each is measured")
    add("--report", type=Path, help="a page with markers, to write the table into")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
