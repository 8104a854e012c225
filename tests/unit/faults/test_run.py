"""The fault suite reports a hang, and ends, whatever hangs."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import socketio

from tests.conftest import SLOW_FACTOR, eventually
from tests.faults.suite.checker import Checker, Violation
from tests.faults.suite.faults import Fault
from tests.faults.suite.history import History, Overdue
from tests.faults.suite.run import Outcome, Run, RunPlan, Scenario
from tests.faults.suite.watchdog import Watchdog
from tests.faults.suite.windows import PythonWindow, WindowPlan
from tests.faults.suite.world import HangError, Scale

HANG = "windows without their probe: u1.py"


class IdleProducer:
    """Publishes nothing until it is stopped."""

    user = name = "u"

    async def run(self, *, per_s: float, stop: asyncio.Event) -> None:
        """Wait for `stop`."""
        del per_s
        await stop.wait()


class HangingWorld:
    """A world that delivers at the start, and no longer after the first fault."""

    def __init__(self) -> None:
        self.checker = Checker()
        self.history = History(None, self.checker.feed)
        self.producers = SimpleNamespace(regular=[IdleProducer()], keyed=[])
        self.anomalies: list[str] = []
        self.checks = 0

    async def wait_for_windows(self, *, within_s: float) -> None:
        """Return at once."""
        del within_s

    async def windows_per_bridge(self) -> list[int]:
        """Return the count of one bridge."""
        return [0]

    async def wait_until_alive(self, *, within_s: float) -> float:
        """Succeed once."""
        del within_s
        self.checks += 1
        if self.checks > 1:
            raise HangError(HANG)
        return 0.0


class DefectiveWorld(HangingWorld):
    """A world whose second fault holds a message up."""

    def __init__(self) -> None:
        super().__init__()
        self.settled = 0

    async def wait_until_alive(self, *, within_s: float) -> float:
        """Succeed, at the start and after each fault."""
        del within_s
        self.checks += 1
        if self.checks == 3:
            self.history.add(Overdue(self.history.t, "u.py", "u", "probe", 1))
        return 0.0

    def new_problems(self) -> list[str]:
        """Return nothing."""
        return []

    async def settle(self, *, within_s: float) -> bool:
        """Count the calls."""
        del within_s
        self.settled += 1
        return True

    async def settle_dead_letters(self, *, within_s: float) -> None:
        """Return at once."""

    async def settle_receipts(self, *, within_s: float) -> None:
        """Return at once."""


async def inject_nothing(_world: Any, _rng: Any) -> bool:
    return True


async def run_in(
    world: HangingWorld, folder: Path, reported: list[str], **options: Any
) -> Outcome:
    """Run faults that do nothing."""

    @asynccontextmanager
    async def open_world(*_: Any, **__: Any) -> AsyncIterator[Any]:
        yield world

    fault = Fault("a fault", frozenset("x"), 1, inject_nothing)
    scenario = Scenario("none", open_world, [fault])
    plan = RunPlan(scenario, seed=1, minutes=None, scale=Scale(), **options)
    run = Run(plan, folder=folder, may_mount=False, report=reported.append)
    return await run.run()


async def test_a_world_that_no_longer_delivers_is_an_outcome_with_a_hang(
    tmp_path: Path,
) -> None:
    """The hang is raised inside of a task group, and so inside of an exception group."""
    reported: list[str] = []

    outcome = await run_in(HangingWorld(), tmp_path, reported)

    assert outcome.hang == HANG
    assert not outcome.is_good
    assert f"HANG: {HANG}" in reported


@pytest.mark.parametrize(
    ("until", "faults", "settled"),
    [(Violation.HELD_UP, 2, 2), (Violation.LOST, 5, 5), (None, 5, 1)],
)
async def test_a_run_ends_with_the_violation_that_it_looks_for(
    tmp_path: Path, until: str | None, faults: int, settled: int
) -> None:
    """A mutant that was found at once costs no more rounds; messages on the way are not lost."""
    world = DefectiveWorld()

    outcome = await run_in(world, tmp_path, [], times=5, until=until)

    assert outcome.records["a fault"].happened == faults
    assert world.settled == settled
    assert outcome.verdict.violations[Violation.HELD_UP] == 1


class ClientThatLosesCancellations:
    """A client whose `wait` loses the first cancellation."""

    def __init__(self, **_: Any) -> None:
        self.is_connected = False

    def on(self, *_: Any) -> None:
        """Register nothing."""

    async def connect(self, *_: Any, **__: Any) -> None:
        """Connect at once."""
        self.is_connected = True

    async def wait(self) -> None:
        """Wait for ever."""
        has_lost = False
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if has_lost:
                    raise
                has_lost = True

    async def disconnect(self) -> None:
        """Disconnect at once."""
        self.is_connected = False


class ClientThatCancelsItself(ClientThatLosesCancellations):
    """A client whose `disconnect` ends with the cancellation of one of its own tasks."""

    async def disconnect(self) -> None:
        """Disconnect at once."""
        self.is_connected = False
        raise asyncio.CancelledError


@pytest.mark.parametrize(
    "kind", [ClientThatLosesCancellations, ClientThatCancelsItself]
)
async def test_a_window_ends_in_order_whatever_its_client_does_with_cancellations(
    monkeypatch: pytest.MonkeyPatch, kind: type[ClientThatLosesCancellations]
) -> None:
    """Otherwise the suite waits for it for ever, or is canceled itself."""
    clients: list[ClientThatLosesCancellations] = []

    def make(**options: Any) -> ClientThatLosesCancellations:
        clients.append(kind(**options))
        return clients[-1]

    monkeypatch.setattr(socketio, "AsyncClient", make)
    history = History(None, lambda _: None)
    window = PythonWindow(WindowPlan("u.py", "u", "python"), "", "", history, None)  # type: ignore[arg-type] # the client has no use for it
    task = asyncio.create_task(window.run())
    await eventually(lambda: clients and clients[0].is_connected)

    window.close()

    async with asyncio.timeout(5 * SLOW_FACTOR):
        await task


async def test_the_watchdog_names_the_phase_that_hangs_and_exits() -> None:
    """It also names what the tasks wait for."""
    exits: list[int] = []
    exited = threading.Event()
    reported: list[str] = []

    def leave(code: int) -> None:
        exits.append(code)
        exited.set()

    watchdog = Watchdog(reported.append, end_process=leave)
    watchdog.phase("the start", within_s=60 * SLOW_FACTOR)
    watchdog.start(asyncio.get_running_loop())
    watchdog.phase("round 7", within_s=0)

    assert await asyncio.to_thread(exited.wait, 10 * SLOW_FACTOR)
    assert exits == [2]
    assert reported[0] == "HANG: round 7 did not end within 0 s"
    assert any("test_the_watchdog_names" in line for line in reported[1:])
