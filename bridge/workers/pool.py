"""All workers: started in order, kept running, and drained together."""

import asyncio
from collections.abc import Callable
from typing import Final

import orjson
import structlog

from bridge.core.worker_slot import WorkerSlot
from bridge.metrics import SupervisorMetrics
from bridge.workers.control_channel import ControlMessage
from bridge.workers.merged_metrics import MergedMetrics
from bridge.workers.supervised_worker import SupervisedWorker, WorkerCommand
from bridge.workers.worker_client import WorkerAnswer, WorkerRequest

log = structlog.get_logger(__name__)

# Added to the drain timeout, for closing the listeners, the broker connection and the store.
_CLOSE_S: Final = 15.0
_STOP_NOW_S: Final = 5.0
_READY = WorkerRequest("GET", "/health/ready", timeout_s=2.0)


class WorkerPool:
    """
    The workers of one bridge.

    Attributes:
        workers: One for each slot.
        metrics: The supervisor's own metrics.
        merged: The metrics of all workers.

    """

    def __init__(
        self,
        folder: str,
        *,
        count: int,
        command: WorkerCommand,
        close_s: float = _CLOSE_S,
    ) -> None:
        """
        Prepare `count` workers; `run` starts them.

        Args:
            folder: The folder of the workers' sockets.
            count: How many workers.
            command: Makes the command line of a worker.
            close_s: How long workers may take to close after the drain timeout.

        """
        self.metrics = SupervisorMetrics()
        self.merged = MergedMetrics()
        self.workers = [
            SupervisedWorker(
                WorkerSlot(folder, index),
                command,
                has_any_listened=self._has_any_listened,
                on_exit=self._note_exit,
            )
            for index in range(count)
        ]
        self.metrics.workers.set_function(lambda: len(self.listening))
        self._close_s = close_s
        self._is_draining = False

    @property
    def listening(self) -> list[SupervisedWorker]:
        """The workers to which clients can connect."""
        return [worker for worker in self.workers if worker.is_listening]

    async def run(
        self,
        stop: asyncio.Event,
        *,
        on_listening: Callable[[], None],
        drain_s: Callable[[], float],
    ) -> None:
        """
        Keep all workers running until `stop` is set, then drain them.

        Args:
            stop: Set by the caller to drain, and by the pool if a worker is given up.
            on_listening: Called once, when all workers listen.
            drain_s: Returns the current drain timeout.

        Raises:
            WorkersFailedError: If a worker was given up. The others were drained first.

        Cancellation:
            Kills the workers.

        """
        async with asyncio.TaskGroup() as tasks:
            starting = tasks.create_task(
                self._start(tasks, stop, on_listening), name="start"
            )
            await stop.wait()
            starting.cancel()
            self._is_draining = True
            await self._drain(drain_s())
        for worker in self.workers:
            if worker.failure is not None:
                raise worker.failure

    async def _start(
        self,
        tasks: asyncio.TaskGroup,
        stop: asyncio.Event,
        on_listening: Callable[[], None],
    ) -> None:
        """Start the first worker, then the others, so that an error is reported once."""
        for number, worker in enumerate(self.workers):
            tasks.create_task(
                self._run_worker(worker, stop), name=f"worker.{worker.slot.index}"
            )
            if number == 0:
                await worker.has_listened.wait()
        for worker in self.workers:
            await worker.has_listened.wait()
        on_listening()

    async def _run_worker(self, worker: SupervisedWorker, stop: asyncio.Event) -> None:
        await worker.run()
        if worker.failure is not None:
            log.error("worker.given_up", worker=worker.slot.index)
            stop.set()

    async def _drain(self, timeout_s: float) -> None:
        log.info("workers.draining", timeout_s=timeout_s, workers=len(self.listening))
        self.send(ControlMessage.DRAIN)
        if not await self._have_stopped(timeout_s + self._close_s):
            log.warning("workers.drain_timed_out", pids=self._pids())
            self._kill()
        log.info("workers.drained")

    async def stop_now(self) -> None:
        """Stop all workers without draining; kill those that do not exit in time."""
        self.send(ControlMessage.STOP_NOW)
        if not await self._have_stopped(_STOP_NOW_S):
            log.warning("workers.killed", pids=self._pids())
        self._kill()

    async def _have_stopped(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                for worker in self.workers:
                    await worker.stopped.wait()
        except TimeoutError:
            return False
        return True

    def send(self, message: ControlMessage) -> None:
        """Send a message to all workers."""
        for worker in self.workers:
            worker.send(message)

    def _kill(self) -> None:
        for worker in self.workers:
            worker.kill()

    def _pids(self) -> list[int]:
        return [worker.pid for worker in self.workers if worker.pid is not None]

    def own_pids(self) -> list[int] | None:
        """Return the ids of the processes; ``None`` while one is being started."""
        is_starting = any(worker.is_starting_process for worker in self.workers)
        return None if is_starting else self._pids()

    def _has_any_listened(self) -> bool:
        return any(worker.has_listened.is_set() for worker in self.workers)

    def _note_exit(self, worker: SupervisedWorker) -> None:
        self.merged.end(worker.slot.index)
        if not self._is_draining:
            self.metrics.restarts.inc()

    # --- requests

    async def ask_listening(
        self, request: WorkerRequest
    ) -> list[tuple[SupervisedWorker, WorkerAnswer | None]]:
        """Send a request to all listening workers concurrently. Cancellation: safe."""
        async with asyncio.TaskGroup() as tasks:
            asked = [
                (worker, tasks.create_task(worker.ask(request), name="ask a worker"))
                for worker in self.listening
            ]
        return [(worker, task.result()) for worker, task in asked]

    async def readiness(self) -> tuple[list[str], list[str]]:
        """
        Return why the bridge is not ready, nothing if it is, and its warnings.

        The kernel gives connections to every worker that listens, so all of these must be
        ready. A worker that is being restarted does not listen and gets no connections.
        """
        if self._is_draining:
            return ["the bridge is shutting down"], []
        answers = await self.ask_listening(_READY)
        if not answers:
            return ["no worker listens yet"], []
        reasons: list[str] = []
        warnings: list[str] = []
        for worker, answer in answers:
            name = f"worker {worker.slot.index}"
            if answer is None:
                # It may have ended since it was asked, and then gets no connections.
                if worker.is_listening:
                    reasons.append(f"{name}: does not answer")
            else:
                found = orjson.loads(answer.body)
                reasons += [f"{name}: {reason}" for reason in found["reasons"]]
                warnings += [f"{name}: {text}" for text in found["warnings"]]
        return reasons, warnings
