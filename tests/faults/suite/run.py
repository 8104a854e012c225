"""One run: load, rounds of faults, proof of life after each, and the verdict."""

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from random import Random
from time import monotonic
from typing import Final, Protocol

from bridge.core.properties import header_bytes
from bridge.enums import Header
from tests.faults.suite.checker import Verdict, Violation
from tests.faults.suite.faults import Fault
from tests.faults.suite.history import Alive, FaultBegan, FaultEnded, SetAside, Spread
from tests.faults.suite.schedule import Turn, rounds
from tests.faults.suite.world import NAMES, HangError, Scale, World
from tests.integration.dead_letters import take_all

_START_WITHIN_S: Final = 60.0
_ALIVE_WITHIN_S: Final = 120.0
_TURN_WITHIN_S: Final = 240.0
_AGAIN_AT_MOST: Final = 3
_PAUSE_AT_MOST_S: Final = 2.0
_NAME: Final = re.compile(rb'"u":"([^"]+)","p":"([^"]+)","n":(\d+)')

Tell = Callable[[str], None]


class Open(Protocol):
    """Builds a world; see alone.py and fleet.py."""

    def __call__(
        self, scale: Scale, *, folder: Path, seed: int, may_mount: bool
    ) -> AbstractAsyncContextManager[World]:
        """Hand it out with windows that connect, and take it away at the end."""


@dataclass(frozen=True, slots=True)
class Scene:
    """
    Where a run happens.

    Attributes:
        name: As the report's marks say it.
        open: Builds the world.
        faults: What can happen in it.

    """

    name: str
    open: Open
    faults: Sequence[Fault]


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What is to be done.

    Attributes:
        scene: Where.
        seed: Repeats the same faults in the same order, and the same producers.
        minutes: How long faults go on; `None` = one of each kind (`is_short`).
        only: Words of which a fault's kind must hold one; empty = all.
        times: How often each kind comes in the short form.
        faults_least: Past `minutes`, faults go on until there were so many.
        rounds_max: At most so many rounds; `None` = as the time allows.
        settle_s: How long the last messages may take to arrive.

    """

    scene: Scene
    seed: int
    minutes: float | None
    scale: Scale
    only: tuple[str, ...] = ()
    times: int = 1
    faults_least: int = 0
    rounds_max: int | None = None
    settle_s: float = 90.0

    @property
    def faults(self) -> list[Fault]:
        """The kinds of faults that take part."""
        return [
            fault
            for fault in self.scene.faults
            if not self.only or any(word in fault.kind for word in self.only)
        ]


@dataclass
class KindRecord:
    """What was seen of one kind of fault."""

    happened: int = 0
    missed: int = 0
    alive_after_s: list[float] = field(default_factory=list)


@dataclass
class Outcome:
    """What a run came to."""

    plan: Plan
    seconds: float
    verdict: Verdict
    records: dict[str, KindRecord]
    hang: str | None
    surprises: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """Whether the promise was kept, and everything came back to life each time."""
        return self.verdict.is_good and self.hang is None and not self.surprises


class Run:
    """Does what a plan says in a world of its own."""

    def __init__(
        self, plan: Plan, *, folder: Path, may_mount: bool, tell: Tell
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._may_mount = may_mount
        self._tell = tell
        self._records: dict[str, KindRecord] = defaultdict(KindRecord)
        self._start_s = monotonic()

    async def do(self) -> Outcome:
        """Run to the end; a world that does not come back to life ends it early."""
        plan = self._plan
        hang: str | None = None
        async with plan.scene.open(
            plan.scale, folder=self._folder, seed=plan.seed, may_mount=self._may_mount
        ) as world:
            try:
                await world.begin(within_s=_START_WITHIN_S)
                spread = await world.windows_of_bridges()
                world.history.add(Spread(world.history.t, spread))
                await world.come_alive(within_s=_START_WITHIN_S)
                self._start_s = monotonic()
                await self._under_load(world)
            except HangError as exc:
                hang = str(exc)
            seconds = monotonic() - self._start_s
            if hang is None and not await world.settle(within_s=plan.settle_s):
                self._tell("some windows never got all that was confirmed")
            if hang is None:
                await self._read_dead_letters(world)
            self._tell(self._progress(world))
            return Outcome(
                plan,
                seconds,
                world.checker.verdict(),
                dict(self._records),
                hang,
                tuple(world.surprises),
            )

    async def _under_load(self, world: World) -> None:
        per_s = self._plan.scale.messages_per_s / len(world.workers.regular)
        async with asyncio.TaskGroup() as tasks:
            producing = [
                tasks.create_task(
                    each.run(per_s=per_s, stop=world.stop),
                    name=f"{each.user} {each.name}",
                )
                for each in world.workers.regular
            ]
            try:
                for number, turns in enumerate(self._rounds(), start=1):
                    await self._round(world, number, turns)
            except HangError:
                for task in producing:
                    task.cancel()
                raise
            finally:
                world.stop.set()

    def _rounds(self) -> Iterator[list[Turn]]:
        plan = self._plan
        dealt = rounds(
            plan.faults,
            seed=plan.seed,
            is_short=plan.minutes is None,
            decks=plan.times,
        )
        for number, turns in enumerate(chain(dealt, self._again())):
            if plan.rounds_max is not None and number >= plan.rounds_max:
                return
            if plan.minutes is not None and self._is_over(plan.minutes):
                return
            yield turns

    def _is_over(self, minutes: float) -> bool:
        happened = sum(record.happened for record in self._records.values())
        return (
            monotonic() - self._start_s > minutes * 60
            and happened >= self._plan.faults_least
        )

    def _again(self) -> Iterator[list[Turn]]:
        """Yield those whose moment has not come, each alone; the short form wants all."""
        for number, fault in enumerate(self._plan.faults):
            for attempt in range(_AGAIN_AT_MOST):
                if not self._records[fault.kind].happened:
                    yield [Turn(number, 0.0, self._plan.seed + attempt)]

    async def _round(self, world: World, number: int, turns: list[Turn]) -> None:
        pause_s = Random(turns[0].seed).uniform(0, _PAUSE_AT_MOST_S)  # noqa: S311 - chance to be repeated
        if self._plan.minutes is not None:
            await asyncio.sleep(pause_s)
        try:
            async with asyncio.timeout(_TURN_WITHIN_S), asyncio.TaskGroup() as tasks:
                for turn in turns:
                    tasks.create_task(self._turn(world, number, turn))
        except TimeoutError:
            kinds = [self._plan.faults[turn.fault].kind for turn in turns]
            message = f"these faults could not be mended in time: {kinds}"
            raise HangError(message) from None
        alive_s = await world.come_alive(within_s=_ALIVE_WITHIN_S)
        world.history.add(Alive(world.history.t, number, round(alive_s, 3)))
        for turn in turns:
            self._records[self._plan.faults[turn.fault].kind].alive_after_s.append(
                alive_s
            )
        names = " + ".join(self._plan.faults[turn.fault].kind for turn in turns)
        self._tell(f"{self._progress(world)}; alive {alive_s:.1f} s after {names}")
        for line in world.take_news():
            self._tell(f"  {line}")
        world.history.flush()

    async def _turn(self, world: World, number: int, turn: Turn) -> None:
        fault = self._plan.faults[turn.fault]
        await asyncio.sleep(turn.offset_s)
        history = world.history
        history.add(FaultBegan(history.t, number, fault.kind))
        dice = Random(turn.seed)  # noqa: S311 - chance to be repeated
        happened = await fault.work(world, dice)
        history.add(FaultEnded(history.t, number, fault.kind, happened))
        record = self._records[fault.kind]
        record.happened += happened
        record.missed += not happened

    def _progress(self, world: World) -> str:
        counts = world.checker.counts
        violations = world.checker.verdict().violations
        # What is under way or not looked up yet is judged at the end.
        missing = violations.pop(Violation.LOST)
        violations.pop(Violation.NOT_ACCOUNTED)
        return (
            f"{monotonic() - self._start_s:6.0f} s: {counts['faults']} faults, "
            f"{counts['messages confirmed']} messages, {counts['receptions']} receptions, "
            f"{missing} not there yet, {sum(violations.values())} violations"
        )

    async def _read_dead_letters(self, world: World) -> None:
        for letter in await take_all(world.nodes[0], NAMES.dead):
            found = _NAME.search(letter.body)
            user, producer, number = found.groups() if found else (b"", b"", b"0")
            reason = header_bytes(letter.properties.headers, Header.REASON) or b""
            world.history.add(
                SetAside(
                    world.history.t,
                    user.decode(),
                    producer.decode(),
                    int(number),
                    reason.decode(),
                )
            )
