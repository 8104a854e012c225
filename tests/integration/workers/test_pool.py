"""Keeping workers running: real processes that do only what the test says."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from bridge.core.worker_slot import Workplace
from bridge.errors import WorkersFailedError
from bridge.workers import slot as member
from bridge.workers.control_channel import Word
from bridge.workers.pool import Crew
from tests.conftest import eventually

PROGRAM = Path(__file__).with_name("fake_worker.py")
COUNT = 2


@dataclass
class Orders:
    """What the worker of each place does at its next start."""

    folder: Path
    program: str = sys.executable
    asked: int = 0  # how often for a command line

    def give(self, order: str, *, worker: int) -> None:
        """Say what it does."""
        (self.folder / f"{worker}.order").write_text(order)

    def heard(self, worker: int) -> str:
        """Return the words that it was told."""
        path = self.folder / f"{worker}.heard"
        return path.read_text() if path.exists() else ""

    async def are_heard(self, words: str, *, worker: int) -> None:
        """Wait until a worker was told that."""
        await eventually(lambda: self.heard(worker) == words)

    def command(self, place: Workplace, line: int) -> list[str]:
        """Return the command line of a worker."""
        self.asked += 1
        file = self.folder / f"{place.index}.order"
        return [self.program, "-S", str(PROGRAM), str(line), str(file)]


@pytest.fixture
def orders(tmp_path: Path) -> Orders:
    """All workers are well."""
    orders = Orders(tmp_path)
    for worker in range(COUNT):
        orders.give("well", worker=worker)
    return orders


@dataclass
class RunningCrew:
    """A crew that listens."""

    crew: Crew
    stop: asyncio.Event
    task: asyncio.Task[None]

    def pids(self) -> list[int]:
        """Of the workers there are."""
        return [member.pid for member in self.crew.members if member.pid is not None]


@asynccontextmanager
async def running_crew(
    orders: Orders, *, drain_s: float = 5.0, last_words_s: float = 5.0
) -> AsyncIterator[RunningCrew]:
    """Run a crew; all of it listens when entered."""
    crew = Crew(
        str(orders.folder),
        count=COUNT,
        command=orders.command,
        last_words_s=last_words_s,
    )
    stop, listening = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(
            crew.run(stop, on_listening=listening.set, drain_s=lambda: drain_s),
            name="crew",
        )
        await eventually(listening.is_set)
        try:
            yield RunningCrew(crew, stop, task)
        finally:
            stop.set()


async def test_a_worker_that_dies_is_started_again_and_the_others_go_on(
    orders: Orders,
) -> None:
    """One dead process of several is nobody's business but the supervisor's."""
    async with running_crew(orders) as running:
        first, second = running.pids()
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: running.crew.members[0].starts == 2)
        await eventually(lambda: len(running.crew.listening) == COUNT)

        assert running.pids()[0] != first
        assert running.pids()[1] == second
        assert b"bridge_worker_restarts_total 1.0" in running.crew.metrics.render()


async def test_all_are_told_to_drain_at_once_and_the_crew_ends_when_they_have(
    orders: Orders,
) -> None:
    """One drain, however many workers."""
    async with running_crew(orders) as running:
        running.stop.set()
        await running.task

        assert [orders.heard(worker) for worker in range(COUNT)] == ["drain\n"] * COUNT
        assert running.pids() == []


async def test_every_worker_hears_of_a_reload(orders: Orders) -> None:
    """SIGHUP to one process changes all."""
    async with running_crew(orders) as running:
        running.crew.tell(Word.RELOAD)

        for worker in range(COUNT):
            await orders.are_heard("reload\n", worker=worker)


async def test_a_first_start_that_is_refused_ends_all_with_its_status(
    orders: Orders,
) -> None:
    """And is told once: the second worker is not even started."""
    orders.give("exit 2", worker=0)
    crew = Crew(str(orders.folder), count=COUNT, command=orders.command)

    with pytest.raises(
        WorkersFailedError, match="worker 0 ended with status 2"
    ) as error:
        await crew.run(asyncio.Event(), on_listening=lambda: None, drain_s=lambda: 5.0)

    assert error.value.code == 2
    assert [member.starts for member in crew.members] == [1, 0]


async def test_a_worker_that_dies_at_once_again_and_again_ends_all_with_status_1(
    orders: Orders,
) -> None:
    """Whoever watches the bridge learns of it. The other worker leaves in order."""
    orders.give("exit 3", worker=1)
    crew = Crew(str(orders.folder), count=COUNT, command=orders.command)

    with pytest.raises(WorkersFailedError, match="5 times in a row") as error:
        await crew.run(asyncio.Event(), on_listening=lambda: None, drain_s=lambda: 5.0)

    assert error.value.code == 1
    assert orders.heard(0) == "drain\n"


async def test_a_worker_whose_second_start_is_refused_is_tried_again(
    orders: Orders,
) -> None:
    """Somebody may be half way through a file of settings."""
    async with running_crew(orders) as running:
        orders.give("once 2", worker=0)
        os.kill(running.pids()[0], signal.SIGKILL)
        await eventually(lambda: running.crew.members[0].starts == 3)
        await eventually(lambda: len(running.crew.listening) == COUNT)


async def test_a_worker_that_cannot_be_started_is_tried_again(orders: Orders) -> None:
    """The program is being replaced, or no process is left: the others go on meanwhile."""
    async with running_crew(orders) as running:
        first, second = running.crew.members
        orders.program = str(orders.folder / "being-replaced")
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        await eventually(lambda: orders.asked == COUNT + 2)  # once was in vain
        orders.program = sys.executable

        await eventually(lambda: first.is_listening)
        assert second.starts == 1


async def test_a_worker_that_gives_up_its_start_and_does_not_end_is_killed(
    orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of it hangs, for the answer of a name server say. Its place is not lost."""
    monkeypatch.setattr(member, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(member, "_LIVE_WITHIN_S", 0.1)
    orders.give("stay", worker=0)
    place = Workplace(str(orders.folder), 0)
    first = member.Member(place, orders.command, was_any_listening=lambda: True)
    connector = aiohttp.UnixConnector(path=place.operator_socket)
    async with (
        aiohttp.ClientSession(connector=connector) as first.session,
        asyncio.TaskGroup() as tasks,
    ):
        running = tasks.create_task(first.run(), name="worker")
        await eventually(first.listened.is_set)
        running.cancel()


async def test_a_program_that_is_not_there_refuses_the_first_start(
    orders: Orders,
) -> None:
    """It is told as it is, not five times."""
    orders.program = str(orders.folder / "nowhere")
    crew = Crew(str(orders.folder), count=COUNT, command=orders.command)

    with pytest.raises(ExceptionGroup) as error:
        await crew.run(asyncio.Event(), on_listening=lambda: None, drain_s=lambda: 5.0)

    assert error.group_contains(FileNotFoundError)


async def test_a_worker_that_does_not_go_is_killed_when_its_time_is_over(
    orders: Orders,
) -> None:
    """The drain timeout holds for all, the stuck one too."""
    orders.give("deaf", worker=1)
    async with running_crew(orders, drain_s=0.1, last_words_s=0.2) as running:
        running.stop.set()
        await running.task

        assert running.pids() == []


async def test_insisting_ends_workers_that_are_still_draining(
    orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second signal: at once, each with its own last words."""
    monkeypatch.setenv("TESTS_SLOW_DRAIN", "1")
    async with running_crew(orders, drain_s=60.0) as running:
        running.stop.set()
        for worker in range(COUNT):
            await orders.are_heard("drain\n", worker=worker)
        await running.crew.insist()
        await running.task

        assert orders.heard(0) == "drain\ninsist\n"


async def test_a_cancelled_crew_leaves_no_process_behind(orders: Orders) -> None:
    """Whatever ends the supervisor's loop."""
    async with running_crew(orders) as running:
        pids = running.pids()
        running.task.cancel()
        await asyncio.wait([running.task])

        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
