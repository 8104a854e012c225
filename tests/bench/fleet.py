"""
Measure the cost of a fleet: bridges on Redis, compared with one bridge on SQLite.

    python -m tests.bench.fleet                      three rounds, some twelve minutes
    python -m tests.bench.fleet --rounds 1 --only hop,append
    python -m tests.bench.fleet --report docs/scale.md       writes scale.json beside it, too

Processor times come from the scheduler, separately for bridges, RabbitMQ and Redis.
Progress goes to stderr, tables to stdout; the report is written after each round. Ctrl-C
ends everything.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from tests.bench.fleet_setup import FleetBenchWorld, open_fleet
from tests.bench.fleet_workloads import WORKLOADS, FleetWorkload
from tests.bench.machine import machine_facts
from tests.bench.report import print_progress, write_part
from tests.bench.results import Figures, Spread
from tests.bench.servers import ROOT, processors
from tests.bench.workloads import Scale
from tests.local_node import LocalNode

SHORT: Final = Scale(
    backlog=15_000, seconds=5.0, rate=2000.0, start_s=6.0, warm_up=3000
)
Round = dict[str, dict[str, Figures]]
# Needed for shards.
_PLUGINS: Final = ("rabbitmq_sharding",)
# A higher median latency means that the machine could not keep up with the stream.
_KEPT_UP_MS: Final = 15.0
# Workload, setup, name.
Figure = tuple[str, str, str]


def _kept_up(round_: Round, work: str, setup: str) -> bool:
    figures = round_.get(work, {}).get(setup, {})
    return figures.get("steady_p50_ms", 0.0) <= _KEPT_UP_MS


@dataclass
class FleetResults:
    """All figures: for each round, workload → setup → figures."""

    machine: Mapping[str, str]
    scale: Mapping[str, float]
    rounds: list[Round] = field(default_factory=list)

    def spread(self, work: str, setup: str, figure: str) -> Spread | None:
        """Summarize a figure over the rounds; ``None`` if it was not measured."""
        found = [
            value
            for each in self.rounds
            if (value := each.get(work, {}).get(setup, {}).get(figure)) is not None
        ]
        return Spread.of(found) if found else None

    def ratio(self, above: Figure, below: Figure) -> Spread | None:
        """
        Return the ratio of two figures over the rounds.

        Rounds in which the machine did not keep up with a steady stream do not count:
        the messages arrived in large batches, which are cheaper.
        """
        values = []
        for each in self.rounds:
            if "steady" in above[2] and not all(
                _kept_up(each, work, setup) for work, setup, _ in (above, below)
            ):
                continue
            high, low = (
                each.get(work, {}).get(setup, {}).get(name)
                for work, setup, name in (above, below)
            )
            if high is not None and low:
                values.append(high / low)
        return Spread.of(values) if values else None


@dataclass(frozen=True, slots=True)
class Goal:
    """A target for the ratio of two figures."""

    text: str
    above: Figure
    below: Figure
    at_most: float


def _goals() -> Iterable[Goal]:
    for how in ("saturated", "steady"):
        for text, above, below, at_most in (
            ("two bridges / one with `sqlite:`", "pair", "alone", 1.6),
            ("four bridges / one with `sqlite:`", "four", "alone", 1.6),
            ("four bridges / two", "four", "pair", 1.15),
        ):
            figure = f"{how}_us"
            yield Goal(
                f"a delivery, {text}, {how}",
                ("spread", above, figure),
                ("spread", below, figure),
                at_most,
            )
    yield Goal(
        "a delivery, four bridges / two with half the traffic, so as much for each, steady",
        ("spread", "four", "steady_us"),
        ("spread", "calm", "steady_us"),
        1.15,
    )
    yield Goal(
        "a message, at a bridge without a window of its user / at the one that stores it",
        ("append", "pair", "bystander_us"),
        ("append", "pair", "us"),
        0.05,
    )


GOALS: Final = tuple(_goals())


def goal_lines(results: FleetResults) -> Iterable[str]:
    """Yield the table of goals."""
    yield "| what | at most | median | least to most | reached |"
    yield "|---|---|---|---|---|"
    for goal in GOALS:
        found = results.ratio(goal.above, goal.below)
        if found is not None:
            is_reached = "yes" if found.median <= goal.at_most else "**no**"
            yield (
                f"| {goal.text} | {goal.at_most:g} | {found.median:.2f} "
                f"| {found.least:.2f} to {found.most:.2f} | {is_reached} |"
            )


def figure_lines(results: FleetResults) -> Iterable[str]:
    """Yield the table of all figures, with medians and ranges."""
    yield "| work | set-up | figure | median | least to most |"
    yield "|---|---|---|---|---|"
    for work in WORKLOADS.values():
        for setup in work.setups:
            names: dict[str, None] = {}
            for each in results.rounds:
                names |= dict.fromkeys(each.get(work.name, {}).get(setup.name, {}))
            for name in names:
                found = results.spread(work.name, setup.name, name)
                if found is not None:
                    yield (
                        f"| {work.name} | {setup.name} | {name} | {found.median:,.2f} "
                        f"| {found.least:,.2f}-{found.most:,.2f} |"
                    )


async def measure(
    world: FleetBenchWorld,
    works: Sequence[FleetWorkload],
    scale: Scale,
    *,
    rounds: int,
    keep: Callable[[FleetResults], None] = lambda _: None,
) -> FleetResults:
    """Measure all workloads on all their setups; call `keep` after each round."""
    facts = await asyncio.to_thread(machine_facts, world.pin)
    results = FleetResults(facts, asdict(scale))
    for number in range(rounds):
        round_: Round = {}
        for work in works:
            for setup in work.setups:
                async with open_fleet(world, setup, scale, seed=number) as fleet:
                    figures = await work.do(fleet)
                round_.setdefault(work.name, {})[setup.name] = figures
                shown = ", ".join(f"{k} {v:,.2f}" for k, v in figures.items())
                print_progress(
                    f"round {number + 1} of {rounds}, {work.name}, {setup.name}: {shown}"
                )
        results.rounds.append(round_)
        keep(results)
    return results


@asynccontextmanager
async def _open_world() -> AsyncIterator[FleetBenchWorld]:
    pin = processors()
    before = os.sched_getaffinity(0)
    if pin.others != "any":
        os.sched_setaffinity(0, {int(number) for number in pin.others.split(",")})
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=build, prefix="fleet-") as folder:
            async with LocalNode.start(
                progress=print_progress, plugins=_PLUGINS
            ) as node:
                yield FleetBenchWorld(node, Path(folder), pin)
    finally:
        os.sched_setaffinity(0, before)


async def _run(given: argparse.Namespace) -> None:
    names = given.only.split(",") if given.only else list(WORKLOADS)

    def keep(results: FleetResults) -> None:
        # After each round, so that an interrupted run keeps its results.
        if given.report is not None:
            _write(results, given.report)

    async with _open_world() as world:
        works = [WORKLOADS[name] for name in names]
        results = await measure(world, works, SHORT, rounds=given.rounds, keep=keep)
    print("\n".join((*goal_lines(results), "", *figure_lines(results))))


def _write(results: FleetResults, report: Path) -> None:
    machine = (f"| {name} | {value} |" for name, value in results.machine.items())
    write_part(report, "machine", ("| | |", "|---|---|", *machine))
    write_part(report, "goals", goal_lines(results))
    write_part(report, "costs", figure_lines(results))
    facts: dict[str, Any] = asdict(results)
    report.with_suffix(".json").write_bytes(
        orjson.dumps(facts, option=orjson.OPT_INDENT_2) + b"\n"
    )


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
        prog="python -m tests.bench.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="how often each workload is measured")
    add("--only", help=f"comma-separated workloads of {', '.join(WORKLOADS)}")
    add("--report", type=Path, help="a page with markers, to write the tables into")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
