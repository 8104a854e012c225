"""One worker of the pool: its process, restarts of it, and requests to it."""

import asyncio
import random
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from time import monotonic
from typing import Final

import structlog

from bridge.core.restart_policy import GiveUp, WorkerExit, decide_restart
from bridge.core.worker_slot import WorkerSlot
from bridge.enums import ExitCode
from bridge.errors import WorkersFailedError
from bridge.workers.control_channel import ControlMessage, receive
from bridge.workers.worker_client import WorkerAnswer, WorkerClient, WorkerRequest

log = structlog.get_logger(__name__)

# Returns the command line of a worker from its slot and the file descriptor of its end of
# the control channel.
WorkerCommand = Callable[[WorkerSlot, int], Sequence[str]]


class WorkerState(Enum):
    """The state of a supervised worker."""

    STOPPED = auto()  # there is no process, and none will be started
    STARTING = auto()  # the process runs, clients cannot connect yet
    LISTENING = auto()  # clients can connect
    RESTARTING = auto()  # the process ended, the next one starts after a delay


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """
    Time limits of a worker process, in seconds.

    Attributes:
        start_s: From its start until it listens; the imports alone take a second or two.
        probe_interval_s: Between two probes of its liveness, and for the answer to one.
        stuck_s: Without an answer to a probe, after which the process is killed.

    """

    start_s: float = 60.0
    probe_interval_s: float = 10.0
    stuck_s: float = 30.0


_DEFAULT_LIMITS: Final = WorkerLimits()


class SupervisedWorker:
    """
    A worker that is restarted when its process ends.

    Attributes:
        slot: The worker's slot.
        state: Its state.
        starts: How many processes were started.
        has_listened: Set once a process of the slot has listened.
        stopped: Set while the state is STOPPED.
        failure: Why the worker was given up; ``None`` while it was not.

    """

    def __init__(
        self,
        slot: WorkerSlot,
        command: WorkerCommand,
        *,
        has_any_listened: Callable[[], bool],
        on_exit: Callable[["SupervisedWorker"], None] = lambda _: None,
        limits: WorkerLimits = _DEFAULT_LIMITS,
    ) -> None:
        """
        Prepare a worker; `run` starts it.

        Args:
            slot: The worker's slot.
            command: Makes the command line.
            has_any_listened: Returns whether any worker of the pool has ever listened.
            on_exit: Called whenever a process has ended.
            limits: Time limits.

        """
        self.slot = slot
        self.state = WorkerState.STOPPED
        self.starts = 0
        self.has_listened = asyncio.Event()
        self.stopped = asyncio.Event()
        self.stopped.set()
        self.failure: WorkersFailedError | None = None
        self._command = command
        self._has_any_listened = has_any_listened
        self._on_exit = on_exit
        self._limits = limits
        self._client = WorkerClient(slot.operator_socket)
        self._draining = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._channel: asyncio.StreamWriter | None = None

    @property
    def is_listening(self) -> bool:
        """Whether clients can connect to the worker."""
        return self.state is WorkerState.LISTENING

    @property
    def is_starting_process(self) -> bool:
        """Whether there may be a process whose id is not known yet."""
        return self.state is WorkerState.STARTING and self._process is None

    @property
    def pid(self) -> int | None:
        """The id of the current process; ``None`` if there is none."""
        return self._process.pid if self._process else None

    async def ask(self, request: WorkerRequest) -> WorkerAnswer | None:
        """
        Send a request to the worker; ``None`` if it does not listen or answer in time.

        Cancellation:
            Safe; the worker may still process the request.

        """
        return await self._client.ask(request) if self.is_listening else None

    def send(self, message: ControlMessage) -> None:
        """Send a message to the process, if there is one. DRAIN also ends restarts."""
        if message is ControlMessage.DRAIN:
            self._draining.set()
        if self._channel is not None and not self._channel.is_closing():
            self._channel.write(message.value)

    def kill(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    # --- the lifecycle

    async def run(self) -> None:
        """
        Keep a process running until DRAIN was sent, or until the worker is given up.

        Raises:
            OSError: If the very first process of the pool cannot be started.

        Cancellation:
            Kills the process, and waits for its end.

        """
        self.stopped.clear()
        try:
            async with self._client.open():
                await self._keep_running()
        finally:
            self.state = WorkerState.STOPPED
            self.stopped.set()

    async def _keep_running(self) -> None:
        early_exits = 0
        while not self._draining.is_set():
            self.state = WorkerState.STARTING
            try:
                ended = await self._run_process()
            except OSError as exc:
                # No process, memory or file descriptor is available, or the program is
                # being replaced by an upgrade.
                if not self._has_any_listened():
                    raise
                log.error(  # noqa: TRY400 - no traceback
                    "worker.start_failed", worker=self.slot.index, problem=str(exc)
                )
                ended = WorkerExit(ExitCode.FAILED, None)
            self.state = WorkerState.RESTARTING
            self._on_exit(self)
            if self._draining.is_set():
                return
            early_exits = early_exits + 1 if ended.is_early else 1
            decision = decide_restart(
                ended,
                early_exits=early_exits,
                has_any_listened=self._has_any_listened(),
                roll=random.random(),  # noqa: S311 - a delay is not a secret
            )
            if isinstance(decision, GiveUp):
                text = f"worker {self.slot.index} {ended}"
                if early_exits > 1:
                    text += f", {early_exits} times in a row soon after its start"
                text += "; its own log is above"
                self.failure = WorkersFailedError(decision.code, text)
                return
            log.error(
                "worker.ended",
                worker=self.slot.index,
                how=str(ended),
                restart_after_s=round(decision.delay_s, 2),
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(decision.delay_s):
                    await self._draining.wait()

    async def _run_process(self) -> WorkerExit:
        """Start a process, and return when it has ended."""
        own_end, process = await self._start_process()
        self.starts += 1
        self._process = process
        log.info("worker.started", worker=self.slot.index, pid=process.pid)
        try:
            reader, self._channel = await asyncio.open_connection(sock=own_end)
            if self._draining.is_set():  # DRAIN was sent before there was a channel
                self.send(ControlMessage.DRAIN)
            began_s = await self._wait_until_listening(reader)
            code = await self._wait_for_exit(process)
            listened_s = monotonic() - began_s if began_s is not None else None
            return WorkerExit(code, listened_s)
        finally:
            self.state = WorkerState.RESTARTING
            if process.returncode is None:
                process.kill()
                await process.wait()
            if self._channel is not None:
                self._channel.close()
            self._process = self._channel = None

    async def _start_process(
        self,
    ) -> tuple[socket.socket, asyncio.subprocess.Process]:
        """Return the supervisor's end of the control channel and the new process."""
        own_end, worker_end = socket.socketpair()
        try:
            with worker_end:
                process = await asyncio.create_subprocess_exec(
                    *self._command(self.slot, worker_end.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(worker_end.fileno(),),
                    # Ctrl-C reaches only the supervisor, which then drains its workers.
                    start_new_session=True,
                )
        except BaseException:
            own_end.close()
            raise
        return own_end, process

    async def _wait_until_listening(self, reader: asyncio.StreamReader) -> float | None:
        """Return the time at which the worker began to listen; ``None`` if it did not."""
        try:
            async with asyncio.timeout(self._limits.start_s):
                message = await receive(reader)
        except TimeoutError:
            log.error("worker.start_timed_out", worker=self.slot.index)  # noqa: TRY400 - no traceback
            self.kill()
            return None
        if message is not ControlMessage.LISTENING:
            return None
        self.state = WorkerState.LISTENING
        self.has_listened.set()
        return monotonic()

    async def _wait_for_exit(self, process: asyncio.subprocess.Process) -> int:
        """Return the exit status; a process that answers no probes is killed."""
        limits = self._limits
        probe = WorkerRequest("GET", "/health/live", timeout_s=limits.probe_interval_s)
        answered_s = monotonic()
        while True:
            try:
                async with asyncio.timeout(limits.probe_interval_s):
                    return await process.wait()
            except TimeoutError:
                pass  # it still runs
            # Also asked if it never listened: a process whose start failed may hang in a
            # thread instead of exiting.
            answer = await self._client.ask(probe)
            if answer is not None and answer.status == 200:
                answered_s = monotonic()
            elif monotonic() - answered_s > limits.stuck_s:
                # Until it is killed, the kernel gives it connections that it never serves.
                log.error("worker.stuck", worker=self.slot.index)
                self.kill()
