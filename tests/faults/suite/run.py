"""One run: load, rounds of faults, a check that delivery works after each, and the verdict."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from random import Random
from time import monotonic
from typing import Final, Protocol

from bridge.errors import first_error
from tests.faults.suite.checker import Verdict, Violation
from tests.faults.suite.faults import Fault
from tests.faults.suite.history import (
    Alive,
    FaultEnded,
    FaultStarted,
    WindowCounts,
)
from tests.faults.suite.presence_checker import (
    DEBOUNCE_S,
    LEASE_S,
    PresenceViolation,
)
from tests.faults.suite.schedule import ScheduledFault, rounds
from tests.faults.suite.watchdog import Watchdog
from tests.faults.suite.world import HangError, Scale, World

_START_TIMEOUT_S: Final = 60.0
_ALIVE_TIMEOUT_S: Final = 120.0
_FAULT_TIMEOUT_S: Final = 240.0
_EXTRA_ATTEMPTS_MAX: Final = 3
_PAUSE_MAX_S: Final = 2.0
_DEAD_LETTERS_TIMEOUT_S: Final = 60.0
_RECEIPTS_TIMEOUT_S: Final = 60.0
_OTHERS: Final = set(Violation.ALL) - set(PresenceViolation.ALL)
# In it all users are reported, whichever bridges have ended.
_QUIET_S: Final = LEASE_S + DEBOUNCE_S
_PRESENCE_TIMEOUT_S: Final = _QUIET_S + 10
_TEARDOWN_TIMEOUT_S: Final = 90.0
# Beyond the limit of each phase, which the run itself observes, before the watchdog acts.
_WATCHDOG_MARGIN_S: Final = 60.0

Report = Callable[[str], None]


class OpenWorld(Protocol):
    """Builds a world; see single.py and fleet.py."""

    def __call__(
        self, scale: Scale, *, folder: Path, seed: int, may_mount: bool
    ) -> AbstractAsyncContextManager[World]:
        """Yield the world while its windows connect; tear it down at the end of the block."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """
    A world and its faults.

    Attributes:
        name: Its name in the markers of the report.
        open: Builds the world.
        faults: The faults that can happen in it.

    """

    name: str
    open: OpenWorld
    faults: Sequence[Fault]


@dataclass(frozen=True, slots=True)
class RunPlan:
    """
    The options of a run.

    Attributes:
        scenario: The world and its faults.
        seed: Repeats the same faults in the same order, and the same producers.
        minutes: The duration of the faults; `None` runs each kind once (the short form).
        only: A fault's kind must contain one of these; empty means all faults.
        times: How often each kind occurs in the short form.
        faults_least: After `minutes`, the run continues until this many faults happened.
        rounds_max: The most rounds; `None` means no limit.
        until: The kind of violation after which no round follows. After each round the load
            pauses, until the last messages have arrived or `settle_s` is over.
        settle_s: How long the last messages may take to arrive.

    """

    scenario: Scenario
    seed: int
    minutes: float | None
    scale: Scale
    only: tuple[str, ...] = ()
    times: int = 1
    faults_least: int = 0
    rounds_max: int | None = None
    until: str | None = None
    settle_s: float = 90.0

    @property
    def faults(self) -> list[Fault]:
        """The faults of the scenario that `only` selects."""
        return [
            fault
            for fault in self.scenario.faults
            if not self.only or any(word in fault.kind for word in self.only)
        ]


@dataclass
class FaultRecord:
    """The results of one kind of fault."""

    happened: int = 0
    missed: int = 0
    alive_after_s: list[float] = field(default_factory=list)


@dataclass
class Outcome:
    """The result of a run."""

    plan: RunPlan
    seconds: float
    verdict: Verdict
    records: dict[str, FaultRecord]
    hang: str | None
    anomalies: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """Whether there was no violation, no hang and no unexpected exit."""
        return self.verdict.is_good and self.hang is None and not self.anomalies


class Run:
    """Runs a plan in a world of its own."""

    def __init__(
        self,
        plan: RunPlan,
        *,
        folder: Path,
        may_mount: bool,
        report: Report,
        watchdog: Watchdog | None = None,
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._may_mount = may_mount
        self._report = report
        self._watchdog = watchdog or Watchdog(report)
        self._records: dict[str, FaultRecord] = defaultdict(FaultRecord)
        self._start_s = monotonic()
        self._seconds = 0.0

    async def run(self) -> Outcome:
        """Run to the end, or until the world hangs."""
        plan = self._plan
        hang: str | None = None
        self._phase("the start", within_s=3 * _START_TIMEOUT_S)
        async with plan.scenario.open(
            plan.scale, folder=self._folder, seed=plan.seed, may_mount=self._may_mount
        ) as world:
            try:
                await world.wait_for_windows(within_s=_START_TIMEOUT_S)
                window_counts = await world.windows_per_bridge()
                world.history.add(WindowCounts(world.history.t, window_counts))
                await world.wait_until_alive(within_s=_START_TIMEOUT_S)
                self._start_s = monotonic()
                await self._run_rounds(world)
            except* HangError as group:
                hang = str(first_error(group))
            if hang is None:
                await self._settle_presence(world)
            self._report(self._progress(world))
            self._phase("the teardown", within_s=_TEARDOWN_TIMEOUT_S)
            return Outcome(
                plan,
                self._seconds,
                world.checker.verdict(),
                dict(self._records),
                hang,
                tuple(world.anomalies),
            )

    def _phase(self, name: str, *, within_s: float) -> None:
        self._watchdog.phase(name, within_s=within_s + _WATCHDOG_MARGIN_S)

    async def _run_rounds(self, world: World) -> None:
        rounds = enumerate(self._rounds(), start=1)
        if self._plan.until is None:
            await self._under_load(world, rounds)
            await self._settle(world)
            return
        for each in rounds:
            await self._under_load(world, [each])
            await self._settle(world)
            if world.checker.verdict().violations[self._plan.until]:
                return

    async def _settle(self, world: World) -> None:
        settle_s = self._plan.settle_s
        self._phase("settling", within_s=settle_s)
        if not await world.settle(within_s=settle_s):
            self._report("some windows never received all confirmed messages")
            if self._plan.until == Violation.LOST:
                return
        within_s = min(settle_s, _DEAD_LETTERS_TIMEOUT_S)
        self._phase("reading dead letters", within_s=within_s)
        await world.settle_dead_letters(within_s=within_s)
        within_s = min(settle_s, _RECEIPTS_TIMEOUT_S)
        self._phase("reading receipts", within_s=within_s)
        await world.settle_receipts(within_s=within_s)

    async def _settle_presence(self, world: World) -> None:
        found = world.checker.verdict().violations
        if any(found[kind] for kind in _OTHERS):
            return  # it has failed anyway
        self._phase("reading presence", within_s=_PRESENCE_TIMEOUT_S)
        # The short form ends as soon as everything is known.
        quiet_s = 0 if self._plan.minutes is None else _QUIET_S
        await world.settle_presence(quiet_s=quiet_s, within_s=_PRESENCE_TIMEOUT_S)

    async def _under_load(
        self, world: World, rounds: Iterable[tuple[int, list[ScheduledFault]]]
    ) -> None:
        # A quarter of the messages have keys.
        producers = world.producers
        share = self._plan.scale.messages_per_s / 4
        rates = [
            (each, 3 * share / len(producers.regular)) for each in producers.regular
        ]
        rates += [(each, share / len(producers.keyed)) for each in producers.keyed]
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            producing = [
                tasks.create_task(
                    each.run(per_s=per_s, stop=stop),
                    name=f"{each.user} {each.name}",
                )
                for each, per_s in rates
            ]
            try:
                for number, scheduled in rounds:
                    await self._round(world, number, scheduled)
            except HangError as exc:
                # Now: the teardown may hang as well.
                self._report(f"HANG: {exc}")
                world.history.flush()
                for task in producing:
                    task.cancel()
                raise
            finally:
                stop.set()
                self._seconds = monotonic() - self._start_s

    def _rounds(self) -> Iterator[list[ScheduledFault]]:
        plan = self._plan
        drawn = rounds(
            plan.faults,
            seed=plan.seed,
            is_short=plan.minutes is None,
            cycles=plan.times,
        )
        for number, scheduled in enumerate(chain(drawn, self._missed_faults())):
            if plan.rounds_max is not None and number >= plan.rounds_max:
                return
            if plan.minutes is not None and self._is_over(plan.minutes):
                return
            yield scheduled

    def _is_over(self, minutes: float) -> bool:
        happened = sum(record.happened for record in self._records.values())
        return (
            monotonic() - self._start_s > minutes * 60
            and happened >= self._plan.faults_least
        )

    def _missed_faults(self) -> Iterator[list[ScheduledFault]]:
        """Yield the faults that have not happened yet, one per round, for the short form."""
        for number, fault in enumerate(self._plan.faults):
            for attempt in range(_EXTRA_ATTEMPTS_MAX):
                if not self._records[fault.kind].happened:
                    yield [ScheduledFault(number, 0.0, self._plan.seed + attempt)]

    async def _round(
        self, world: World, number: int, scheduled: list[ScheduledFault]
    ) -> None:
        self._phase(f"round {number}", within_s=_FAULT_TIMEOUT_S + _ALIVE_TIMEOUT_S)
        pause_s = Random(scheduled[0].seed).uniform(0, _PAUSE_MAX_S)  # noqa: S311 - repeatable, not for secrets
        if self._plan.minutes is not None:
            await asyncio.sleep(pause_s)
        try:
            async with asyncio.timeout(_FAULT_TIMEOUT_S), asyncio.TaskGroup() as tasks:
                for each in scheduled:
                    tasks.create_task(self._inject(world, number, each))
        except TimeoutError:
            kinds = [self._plan.faults[each.fault].kind for each in scheduled]
            message = f"these faults could not be healed in time: {kinds}"
            raise HangError(message) from None
        alive_s = await world.wait_until_alive(within_s=_ALIVE_TIMEOUT_S)
        world.history.add(Alive(world.history.t, number, round(alive_s, 3)))
        for each in scheduled:
            self._records[self._plan.faults[each.fault].kind].alive_after_s.append(
                alive_s
            )
        names = " + ".join(self._plan.faults[each.fault].kind for each in scheduled)
        self._report(f"{self._progress(world)}; alive {alive_s:.1f} s after {names}")
        for line in world.new_problems():
            self._report(f"  {line}")
        world.history.flush()

    async def _inject(
        self, world: World, number: int, scheduled: ScheduledFault
    ) -> None:
        fault = self._plan.faults[scheduled.fault]
        await asyncio.sleep(scheduled.offset_s)
        history = world.history
        history.add(FaultStarted(history.t, number, fault.kind))
        rng = Random(scheduled.seed)  # noqa: S311 - repeatable, not for secrets
        happened = await fault.inject(world, rng)
        history.add(FaultEnded(history.t, number, fault.kind, happened))
        record = self._records[fault.kind]
        record.happened += happened
        record.missed += not happened

    def _progress(self, world: World) -> str:
        counts = world.checker.counts
        violations = world.checker.verdict().violations
        # Messages in flight, dead letters and receipts are counted at the end of the run.
        missing = violations.pop(Violation.LOST)
        for kind in (
            *(Violation.NOT_DEAD_LETTERED, Violation.UNREPORTED),
            *(Violation.FALSE_OUTCOME, Violation.FALSE_LATE, Violation.NOT_LATE),
        ):
            violations.pop(kind)
        return (
            f"{monotonic() - self._start_s:6.0f} s: {counts['faults']} faults, "
            f"{counts['messages confirmed']} messages, {counts['receptions']} receptions, "
            f"{missing} in flight, {sum(violations.values())} violations"
        )
