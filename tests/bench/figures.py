"""
The figures that users of push servers ask for, on this machine.

    python -m tests.bench.figures                              all; about four hours
    python -m tests.bench.figures --only storm,broadcast       five minutes
    python -m tests.bench.figures --only rate --servers sqlite,node
    python -m tests.bench.figures --only mixed --seconds 600   instead of an hour
    python -m tests.bench.figures --only acks --report docs/benchmarks.md

Progress goes to stderr, tables to stdout. Ctrl-C ends everything.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from tests.bench.figure_workloads import (
    FIGURE_WORKS,
    FigureRun,
    FigureScale,
    FigureWork,
)
from tests.bench.go_peer import NAME as GO
from tests.bench.go_peer import missing_here
from tests.bench.machine import machine_facts
from tests.bench.report import print_progress, write_part
from tests.bench.results import Figures
from tests.bench.run import BenchWorld, open_world
from tests.bench.servers import SERVER_KINDS
from tests.bench.workloads import Scale


def table(
    work: FigureWork, rounds: Mapping[str, Sequence[Figures]], facts: Mapping[str, str]
) -> Iterable[str]:
    """Yield the table of one workload: the median of the rounds of each server."""
    titles = [SERVER_KINDS[name].title for name in rounds]
    yield "| |" + "".join(f" {title} |" for title in titles)
    yield "|---|" + "---|" * len(titles)
    for figure, title, digits in work.titles:
        cells = [
            f"{median(each[figure] for each in figures):,.{digits}f}"
            for figures in rounds.values()
        ]
        yield f"| {title} |" + "".join(f" {cell} |" for cell in cells)
    yield ""
    number = max(len(figures) for figures in rounds.values())
    load = facts["load before the run (1, 5, 15 minutes)"]
    yield f"Rounds: {number}. Load before the run: {load}."


async def measure(
    world: BenchWorld, work: str, servers: Sequence[str], size: FigureScale, rounds: int
) -> Mapping[str, Sequence[Figures]]:
    """Measure a workload on each server, `rounds` times in turn."""
    measured: dict[str, list[Figures]] = {name: [] for name in servers}
    for round_ in range(rounds):
        for name in servers:
            run = FigureRun(world, name, size, print_progress)
            figures = await FIGURE_WORKS[work].do(run)
            measured[name].append(figures)
            shown = ", ".join(f"{k} {v:,.2f}" for k, v in figures.items())
            print_progress(f"round {round_ + 1} of {rounds}, {work}, {name}: {shown}")
    return measured


async def _run(given: argparse.Namespace) -> None:
    size = FigureScale(Scale())
    if given.seconds is not None:
        size = replace(
            size, ack_s=given.seconds, hold_s=given.seconds, churn_s=given.seconds
        )
    known = [name for name in SERVER_KINDS if name != GO or not missing_here()]
    async with open_world(print_progress) as world:
        facts = await asyncio.to_thread(machine_facts, world.pin)
        for name in given.only:
            work = FIGURE_WORKS[name]
            servers = [
                server
                for server in given.servers or known
                if server in work.servers and server in known
            ]
            measured = await measure(world, name, servers, size, given.rounds)
            lines = tuple(table(work, measured, facts))
            print("\n".join(lines), flush=True)
            if given.report is not None:
                write_part(given.report, name, lines)


def main() -> int:
    """Run what the arguments ask for; the status is 130 after Ctrl-C."""
    try:
        asyncio.run(_run(_parse()))
    except KeyboardInterrupt:
        print_progress("stopped")
        return 130
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    names = ", ".join(FIGURE_WORKS)
    add("--only", default=",".join(FIGURE_WORKS), help=f"workloads, of {names}")
    add("--servers", help="comma-separated servers, of " + ", ".join(SERVER_KINDS))
    add("--rounds", type=int, default=1, help="how often each server is measured")
    add(
        "--seconds",
        type=float,
        help="duration of `acks`, of `mixed` and of a held rate",
    )
    add("--report", type=Path, help="a page with markers, to write the tables into")
    given = parser.parse_args()
    given.only = given.only.split(",")
    given.servers = given.servers.split(",") if given.servers else None
    if unknown := [name for name in given.only if name not in FIGURE_WORKS]:
        parser.error(f"--only: unknown workloads: {', '.join(unknown)}")
    if unknown := [name for name in given.servers or () if name not in SERVER_KINDS]:
        parser.error(f"--servers: unknown servers: {', '.join(unknown)}")
    return given


if __name__ == "__main__":
    sys.exit(main())
