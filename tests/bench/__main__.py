"""
The bench: the bridge and simpler servers, on the same workloads in one run.

    python -m tests.bench                          five rounds, about 25 minutes
    python -m tests.bench --rounds 1 --only steady --servers memory,node
    python -m tests.bench --all-cores --rounds 3   all servers on all processors
    python -m tests.bench --profile                CPU time of the bridge by stage
    python -m tests.bench --leak                   memory over a long run; ten minutes

Progress goes to stderr, tables to stdout. Ctrl-C ends everything.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import orjson

from tests.bench import leak, profile
from tests.bench.go_peer import choose_servers, missing_here
from tests.bench.plots import draw
from tests.bench.report import figure_lines, print_progress, report_lines, write_part
from tests.bench.results import Results
from tests.bench.run import (
    ALL_CORES_WORKLOADS,
    DEFAULT_WORKLOADS,
    BenchPlan,
    open_world,
    run,
)
from tests.bench.servers import SERVER_KINDS
from tests.bench.workloads import WORKLOADS, Scale


def main() -> int:
    """Run what the arguments ask for; the status is 130 after Ctrl-C."""
    given = _parse()
    try:
        if given.leak:
            lines = asyncio.run(
                leak.run(given.servers, given.leak_scale, report=print_progress)
            )
            part = "leak"
        elif given.profile:
            lines = asyncio.run(
                profile.run(given.servers, given.only, report=print_progress)
            )
            part = "profile"
        else:
            lines = _compare(given)
            part = "all-cores" if given.all_cores else "run"
    except KeyboardInterrupt:
        print_progress("stopped")
        return 130
    sys.stdout.write("\n".join(lines) + "\n")
    if given.report is not None:
        write_part(given.report, part, lines)
    return 0


def _compare(given: argparse.Namespace) -> Sequence[str]:
    scale = Scale()
    if given.seconds is not None:
        scale = replace(scale, seconds=given.seconds)
    default = ALL_CORES_WORKLOADS if given.all_cores else DEFAULT_WORKLOADS
    plan = BenchPlan(
        works=given.only or default,
        servers=given.servers,
        rounds=given.rounds,
        scale=scale,
    )
    results = asyncio.run(_run(plan, is_pinned=not given.all_cores))
    if given.all_cores:
        return tuple(figure_lines(results))
    if given.report is not None:
        facts = orjson.dumps(results.as_json(), option=orjson.OPT_INDENT_2)
        given.report.with_suffix(".json").write_bytes(facts + b"\n")
        draw(results, given.report.with_suffix(".png"))
    return tuple(report_lines(results))


async def _run(plan: BenchPlan, *, is_pinned: bool) -> Results:
    async with open_world(print_progress, is_pinned=is_pinned) as world:
        return await run(plan, world, report=print_progress)


def _words(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a parser of comma-separated words from the list `known`."""

    def words(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        for word in found:
            if word not in known:
                message = f"{word!r} is not one of {', '.join(known)}"
                raise argparse.ArgumentTypeError(message)
        return found

    return words


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="how often each workload is measured")
    add("--seconds", type=float, help="duration of a steady stream")
    add(
        "--only",
        type=_words(tuple(WORKLOADS | profile.WORKLOADS)),
        help="comma-separated workloads",
    )
    add("--servers", type=_words(tuple(SERVER_KINDS)), help="comma-separated servers")
    add(
        "--report",
        type=Path,
        help="a page with markers, to write the tables into; JSON and PNG go beside it",
    )
    add(
        "--all-cores",
        action="store_true",
        help="pin nothing: all servers, the broker and the windows share all processors",
    )
    add("--profile", action="store_true", help="instead, measure CPU time by stage")
    add("--leak", action="store_true", help="instead, measure memory over a long run")
    add(
        "--leak-scale",
        type=float,
        default=1.0,
        help="share of the long run; below 1 the inboxes are still filling, so memory grows",
    )
    given = parser.parse_args()
    known = profile.WORKLOADS if given.profile else WORKLOADS
    unknown = [word for word in given.only or () if word not in known]
    if unknown:
        parser.error(f"--only: unknown workloads: {', '.join(unknown)}")
    if given.servers or not (given.profile or given.leak):
        given.servers = _chosen(parser, given.servers)
    return given


def _chosen(
    parser: argparse.ArgumentParser, asked: Sequence[str] | None
) -> tuple[str, ...]:
    try:
        choice = choose_servers(
            asked, known=tuple(SERVER_KINDS), missing=missing_here()
        )
    except ValueError as exc:
        parser.error(f"--servers: {exc}")
    if choice.note is not None:
        print_progress(choice.note)
    return choice.servers


if __name__ == "__main__":
    sys.exit(main())
