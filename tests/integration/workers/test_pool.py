"""Keeping workers running: real processes that only follow the orders of a test."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.core.worker_slot import WorkerSlot
from bridge.errors import WorkersFailedError
from bridge.workers.control_channel import ControlMessage
from bridge.workers.pool import WorkerPool
from bridge.workers.supervised_worker import SupervisedWorker, WorkerLimits
from tests.conftest import eventually

PROGRAM = Path(__file__).with_name("fake_worker.py")
COUNT = 2


@dataclass
class Orders:
    """The orders of the worker in each slot for its next start (see fake_worker.py)."""

    folder: Path
    program: str = sys.executable
    commands_made: int = 0

    def give(self, order: str, *, worker: int) -> None:
        """Set the order of a worker."""
        (self.folder / f"{worker}.order").write_text(order)

    def received(self, worker: int) -> str:
        """Return the messages that a worker has received."""
        path = self.folder / f"{worker}.received"
        return path.read_text() if path.exists() else ""

    async def wait_until_received(self, messages: str, *, worker: int) -> None:
        """Wait until a worker has received exactly these messages."""
        await eventually(lambda: self.received(worker) == messages)

    def command(self, slot: WorkerSlot, control_fd: int) -> list[str]:
        """Return the command line of a worker."""
        self.commands_made += 1
        file = self.folder / f"{slot.index}.order"
        return [self.program, "-S", str(PROGRAM), str(control_fd), str(file)]


@pytest.fixture
def orders(tmp_path: Path) -> Orders:
    """Return the order `run` for all workers."""
    orders = Orders(tmp_path)
    for worker in range(COUNT):
        orders.give("run", worker=worker)
    return orders


@dataclass
class RunningPool:
    """A pool whose workers have listened."""

    pool: WorkerPool
    stop: asyncio.Event
    task: asyncio.Task[None]

    def pids(self) -> list[int]:
        """Return the process ids of the workers."""
        return [worker.pid for worker in self.pool.workers if worker.pid is not None]


@asynccontextmanager
async def running_pool(
    orders: Orders, *, drain_s: float = 5.0, close_s: float = 5.0
) -> AsyncIterator[RunningPool]:
    """Run a pool; all workers listen when the block is entered."""
    pool = WorkerPool(
        str(orders.folder), count=COUNT, command=orders.command, close_s=close_s
    )
    stop, listening = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(
            pool.run(stop, on_listening=listening.set, drain_s=lambda: drain_s),
            name="pool",
        )
        await eventually(listening.is_set)
        try:
            yield RunningPool(pool, stop, task)
        finally:
            stop.set()


async def run_to_the_end(orders: Orders) -> WorkerPool:
    """Run a pool until it ends by itself, which it does with an error."""
    pool = WorkerPool(str(orders.folder), count=COUNT, command=orders.command)
    await pool.run(asyncio.Event(), on_listening=lambda: None, drain_s=lambda: 5.0)
    return pool


async def test_a_worker_that_dies_is_restarted_while_the_others_continue(
    orders: Orders,
) -> None:
    """The end of one process has no effect on the other workers."""
    async with running_pool(orders) as running:
        first, second = running.pids()
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: running.pool.workers[0].starts == 2)
        await eventually(lambda: len(running.pool.listening) == COUNT)

        assert running.pids()[0] != first
        assert running.pids()[1] == second
        assert b"bridge_worker_restarts_total 1.0" in running.pool.metrics.render()


async def test_all_workers_drain_concurrently_and_the_pool_ends_after_them(
    orders: Orders,
) -> None:
    """The number of workers does not lengthen the drain."""
    async with running_pool(orders) as running:
        running.stop.set()
        await running.task

        received = [orders.received(worker) for worker in range(COUNT)]
        assert received == ["drain\n"] * COUNT
        assert running.pids() == []


async def test_every_worker_receives_a_reload(orders: Orders) -> None:
    """SIGHUP to the supervisor changes all workers."""
    async with running_pool(orders) as running:
        running.pool.send(ControlMessage.RELOAD)

        for worker in range(COUNT):
            await orders.wait_until_received("reload\n", worker=worker)


async def test_a_refused_first_start_ends_the_pool_with_its_status(
    orders: Orders,
) -> None:
    """The error is reported once, because the second worker is not started."""
    orders.give("exit 2", worker=0)
    pool = WorkerPool(str(orders.folder), count=COUNT, command=orders.command)

    with pytest.raises(
        WorkersFailedError, match="worker 0 ended with status 2"
    ) as error:
        await pool.run(asyncio.Event(), on_listening=lambda: None, drain_s=lambda: 5.0)

    assert error.value.code == 2
    assert [worker.starts for worker in pool.workers] == [1, 0]


async def test_repeated_early_exits_end_the_pool_with_status_1(orders: Orders) -> None:
    """A service manager notices it. The other worker is drained first."""
    orders.give("exit 3", worker=1)

    with pytest.raises(WorkersFailedError, match="5 times in a row") as error:
        await run_to_the_end(orders)

    assert error.value.code == 1
    assert orders.received(0) == "drain\n"


async def test_a_worker_whose_second_start_is_refused_is_started_again(
    orders: Orders,
) -> None:
    """The file of settings may be in the middle of an edit."""
    async with running_pool(orders) as running:
        orders.give("exit-once 2", worker=0)
        os.kill(running.pids()[0], signal.SIGKILL)
        await eventually(lambda: running.pool.workers[0].starts == 3)
        await eventually(lambda: len(running.pool.listening) == COUNT)


async def test_a_start_that_fails_is_repeated(orders: Orders) -> None:
    """The program may be in the middle of an upgrade; the other workers continue."""
    async with running_pool(orders) as running:
        first, second = running.pool.workers
        orders.program = str(orders.folder / "being-replaced")
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        await eventually(lambda: orders.commands_made == COUNT + 2)
        orders.program = sys.executable

        await eventually(lambda: first.is_listening)
        assert second.starts == 1


async def test_a_worker_that_hangs_in_its_start_is_killed(orders: Orders) -> None:
    """A thread may wait for a name server, say. The worker is then started again."""
    orders.give("hang-once", worker=0)
    worker = SupervisedWorker(
        WorkerSlot(str(orders.folder), 0),
        orders.command,
        has_any_listened=lambda: True,
        limits=WorkerLimits(probe_interval_s=0.05, stuck_s=0.1),
    )
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(worker.run(), name="worker")
        await eventually(worker.has_listened.is_set)
        running.cancel()


async def test_a_missing_program_refuses_the_first_start(orders: Orders) -> None:
    """The original error is raised, and the start is not repeated."""
    orders.program = str(orders.folder / "nowhere")

    with pytest.raises(ExceptionGroup) as error:
        await run_to_the_end(orders)

    assert error.group_contains(FileNotFoundError)


async def test_a_worker_that_does_not_drain_in_time_is_killed(orders: Orders) -> None:
    """The drain timeout also holds for a worker that is stuck."""
    orders.give("ignore", worker=1)
    async with running_pool(orders, drain_s=0.1, close_s=0.2) as running:
        running.stop.set()
        await running.task

        assert running.pids() == []


async def test_stop_now_ends_workers_that_are_still_draining(
    orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second signal stops the drain, and each worker may still write its log."""
    monkeypatch.setenv("TESTS_SLOW_DRAIN", "1")
    async with running_pool(orders, drain_s=60.0) as running:
        running.stop.set()
        for worker in range(COUNT):
            await orders.wait_until_received("drain\n", worker=worker)
        await running.pool.stop_now()
        await running.task

        assert orders.received(0) == "drain\ninsist\n"


async def test_a_canceled_pool_leaves_no_process_behind(orders: Orders) -> None:
    """This holds whatever ends the supervisor's loop."""
    async with running_pool(orders) as running:
        pids = running.pids()
        running.task.cancel()
        await asyncio.wait([running.task])

        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
