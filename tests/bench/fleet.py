"""
What a fleet costs: bridges on Redis against one bridge with a file, and what each thing costs.

    python -m tests.bench.fleet                      three rounds, some twelve minutes
    python -m tests.bench.fleet --rounds 1 --only hop,append
    python -m tests.bench.fleet --report docs/scale.md       writes scale.json beside it, too

Processor times by the scheduler's own clock, of bridges, RabbitMQ and Redis apart. Progress
on stderr, tables on stdout; a report is written after each round. Ctrl-C ends all that was
started.
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

from bridge.demo.private_node import LocalNode
from tests.bench.fleet_works import WORKS, Work
from tests.bench.fleet_world import World, open_fleet
from tests.bench.machine import machine_facts
from tests.bench.report import write_part
from tests.bench.results import Figures, Spread
from tests.bench.servers import ROOT, processors
from tests.bench.works import Scale

SHORT: Final = Scale(
    backlog=15_000, seconds=5.0, rate=2000.0, start_s=6.0, warm_up=3000
)
Round = dict[str, dict[str, Figures]]
# Shards need it.
_PLUGINS: Final = ("rabbitmq_sharding",)
# The median latency of a stream that the machine kept up with is below.
_KEPT_UP_MS: Final = 15.0
# Work, set-up, name.
Figure = tuple[str, str, str]


def _kept_up(round_: Round, work: str, set_up: str) -> bool:
    figures = round_.get(work, {}).get(set_up, {})
    return figures.get("steady_p50_ms", 0.0) <= _KEPT_UP_MS


@dataclass
class FleetResults:
    """All figures: for each round, work → set-up → figures."""

    machine: Mapping[str, str]
    scale: Mapping[str, float]
    rounds: list[Round] = field(default_factory=list)

    def spread(self, work: str, set_up: str, figure: str) -> Spread | None:
        """Sum up one figure over the rounds; ``None`` if it was not measured."""
        found = [
            value
            for each in self.rounds
            if (value := each.get(work, {}).get(set_up, {}).get(figure)) is not None
        ]
        return Spread.of(found) if found else None

    def ratio(self, above: Figure, below: Figure) -> Spread | None:
        """
        Compare two figures round by round.

        A steady stream that the machine did not keep up with is none: it comes in large
        batches, which are cheap. Such a round does not count.
        """
        values = []
        for each in self.rounds:
            if "steady" in above[2] and not all(
                _kept_up(each, work, set_up) for work, set_up, _ in (above, below)
            ):
                continue
            high, low = (
                each.get(work, {}).get(set_up, {}).get(name)
                for work, set_up, name in (above, below)
            )
            if high is not None and low:
                values.append(high / low)
        return Spread.of(values) if values else None


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio of two figures that is to be reached."""

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
    """Yield the table of all figures, medians with spreads."""
    yield "| work | set-up | figure | median | least to most |"
    yield "|---|---|---|---|---|"
    for work in WORKS.values():
        for set_up in work.set_ups:
            names: dict[str, None] = {}
            for each in results.rounds:
                names |= dict.fromkeys(each.get(work.name, {}).get(set_up.name, {}))
            for name in names:
                found = results.spread(work.name, set_up.name, name)
                if found is not None:
                    yield (
                        f"| {work.name} | {set_up.name} | {name} | {found.median:,.2f} "
                        f"| {found.least:,.2f}-{found.most:,.2f} |"
                    )


async def measure(
    world: World,
    works: Sequence[Work],
    scale: Scale,
    *,
    rounds: int,
    keep: Callable[[FleetResults], None] = lambda _: None,
) -> FleetResults:
    """Do all works on all their set-ups, in each round; `keep` is called after each."""
    facts = await asyncio.to_thread(machine_facts, world.pin)
    results = FleetResults(facts, asdict(scale))
    for number in range(rounds):
        round_: Round = {}
        for work in works:
            for set_up in work.set_ups:
                async with open_fleet(world, set_up, scale, seed=number) as fleet:
                    figures = await work.do(fleet)
                round_.setdefault(work.name, {})[set_up.name] = figures
                told = ", ".join(f"{k} {v:,.2f}" for k, v in figures.items())
                _tell(
                    f"round {number + 1} of {rounds}, {work.name}, {set_up.name}: {told}"
                )
        results.rounds.append(round_)
        keep(results)
    return results


@asynccontextmanager
async def _open_world() -> AsyncIterator[World]:
    pin = processors()
    before = os.sched_getaffinity(0)
    if pin.others != "any":
        os.sched_setaffinity(0, {int(number) for number in pin.others.split(",")})
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=build, prefix="fleet-") as folder:
            async with LocalNode.start(progress=_tell, plugins=_PLUGINS) as node:
                yield World(node, Path(folder), pin)
    finally:
        os.sched_setaffinity(0, before)


async def _run(given: argparse.Namespace) -> None:
    names = given.only.split(",") if given.only else list(WORKS)

    def keep(results: FleetResults) -> None:
        # After each round: what was measured stays, whatever ends the run.
        if given.report is not None:
            _write(results, given.report)

    async with _open_world() as world:
        works = [WORKS[name] for name in names]
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
    """Do what the arguments say; status 130 after Ctrl-C."""
    try:
        asyncio.run(_run(_parse()))
    except KeyboardInterrupt:
        _tell("stopped")
        return 130
    return 0


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="how often everything is measured")
    add("--only", help=f"works, with commas between them, of {', '.join(WORKS)}")
    add("--report", type=Path, help="a page with marks to write the tables into")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
