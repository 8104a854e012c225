"""One place of the crew: the process that works there, and the next one when it has died."""

import asyncio
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

import aiohttp
import structlog

from bridge.core.restart_policy import Ended, GiveUp, next_start
from bridge.core.worker_slot import Workplace
from bridge.enums import ExitCode
from bridge.workers.control_channel import Word, hear

log = structlog.get_logger(__name__)

# From the start of a process to its first window; the imports alone take a second or two.
START_WITHIN_S: Final = 60.0
_LOOK_EVERY_S: Final = 10.0
# A worker that answers nobody for so long is stuck: windows pile up at its door.
_LIVE_WITHIN_S: Final = 30.0

# Makes the command line of the worker of a place, given the descriptor of its line.
Command = Callable[[Workplace, int], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Lost:
    """Why a place was given up."""

    code: int
    text: str


class Member:
    """
    A place and its worker.

    Attributes:
        place: Which.
        is_listening: Whether windows can come to its worker.
        listened: Set once a worker of the place has listened for the first time.
        starts: How many processes were started.
        gone: Set while nobody works there, and nobody will.
        lost: Why the place was given up; ``None`` while it was not.
        session: Asks its worker; ``None`` before the crew runs.

    """

    def __init__(
        self,
        place: Workplace,
        command: Command,
        *,
        was_any_listening: Callable[[], bool],
        on_ended: Callable[["Member"], None] = lambda _: None,
    ) -> None:
        self.place = place
        self.is_listening = False
        self.listened = asyncio.Event()
        self.gone = asyncio.Event()
        self.gone.set()
        self.starts = 0
        self.lost: Lost | None = None
        self._command = command
        self._was_any_listening = was_any_listening
        self._on_ended = on_ended
        self._leaving = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._line: asyncio.StreamWriter | None = None
        self.session: aiohttp.ClientSession | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that works there now."""
        return self._process.pid if self._process else None

    # --- words for the worker

    def tell(self, word: Word) -> None:
        """Say something to the worker, if there is one."""
        if word is Word.DRAIN:
            self._leaving.set()
        if self._line is not None and not self._line.is_closing():
            self._line.write(word.value)

    def kill(self) -> None:
        """End the worker, if there is one, without asking it."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    # --- running

    async def run(self) -> None:
        """
        Keep a worker in the place until `DRAIN` was told, or it has to be given up.

        Raises:
            OSError: If the very first worker of all cannot be started.

        Cancellation:
            Kills the worker, and waits for that.

        """
        self.gone.clear()
        try:
            await self._keep()
        finally:
            self.gone.set()

    async def _keep(self) -> None:
        quick_ends = 0
        while not self._leaving.is_set():
            try:
                ended = await self._work()
            except OSError as exc:
                # No process, no memory, no file is left, or the program is being replaced.
                if not self._was_any_listening():
                    raise
                log.error(  # noqa: TRY400 - no traceback
                    "worker.not_started", worker=self.place.index, problem=str(exc)
                )
                ended = Ended(ExitCode.FAILED, None)
            self._on_ended(self)
            if self._leaving.is_set():
                return
            quick_ends = quick_ends + 1 if ended.is_quick else 1
            step = next_start(
                ended,
                quick_ends=quick_ends,
                was_any_listening=self._was_any_listening(),
                roll=random.random(),  # noqa: S311 - a pause, no secret
            )
            if isinstance(step, GiveUp):
                text = f"worker {self.place.index} {ended}"
                if quick_ends > 1:
                    text += f", {quick_ends} times in a row soon after its start"
                self.lost = Lost(step.code, f"{text}; its own words are above")
                return
            log.error(
                "worker.ended",
                worker=self.place.index,
                how=str(ended),
                again_after_s=round(step.after_s, 2),
            )
            await self._pause(step.after_s)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._leaving.wait()
        except TimeoutError:
            return

    async def _work(self) -> Ended:
        """Start a worker, and return when it has ended."""
        ours, process = await self._start()
        self.starts += 1
        self._process = process
        log.info("worker.started", worker=self.place.index, pid=process.pid)
        try:
            reader, self._line = await asyncio.open_connection(sock=ours)
            if self._leaving.is_set():  # told to nobody, in between
                self.tell(Word.DRAIN)
            began_s = await self._listens(reader)
            code = await self._lives(process)
            listened_s = monotonic() - began_s if began_s is not None else None
            return Ended(code, listened_s)
        finally:
            self.is_listening = False
            if process.returncode is None:
                process.kill()
                await process.wait()
            if self._line is not None:
                self._line.close()
            self._process = self._line = None

    async def _start(self) -> tuple[socket.socket, asyncio.subprocess.Process]:
        """Return a new process, and our end of the line to it; OSError if there is none."""
        ours, its = socket.socketpair()
        try:
            with its:
                process = await asyncio.create_subprocess_exec(
                    *self._command(self.place, its.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(its.fileno(),),
                    # Ctrl-C is for the supervisor, which tells its workers.
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        return ours, process

    async def _listens(self, reader: asyncio.StreamReader) -> float | None:
        """Wait until the worker listens; ``None`` if it does not get there."""
        try:
            async with asyncio.timeout(START_WITHIN_S):
                said = await hear(reader)
        except TimeoutError:
            log.error("worker.start_too_slow", worker=self.place.index)  # noqa: TRY400 - no traceback
            self.kill()
            return None
        if said is not Word.LISTENING:
            return None
        self.is_listening = True
        self.listened.set()
        return monotonic()

    async def _lives(self, process: asyncio.subprocess.Process) -> int:
        """Wait for the end of a worker; one that is stuck is killed."""
        answered_s = monotonic()
        while True:
            try:
                async with asyncio.timeout(_LOOK_EVERY_S):
                    return await process.wait()
            except TimeoutError:
                pass
            if self.session is None or await self._is_live():
                answered_s = monotonic()
            elif monotonic() - answered_s > _LIVE_WITHIN_S:
                log.error("worker.stuck", worker=self.place.index)
                self.kill()

    async def _is_live(self) -> bool:
        assert self.session is not None  # noqa: S101 - asked before
        try:
            async with (
                asyncio.timeout(_LOOK_EVERY_S),
                self.session.get("http://worker/health/live") as answer,
            ):
                return answer.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False
