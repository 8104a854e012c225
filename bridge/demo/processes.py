"""
Child processes that end with this process: the parent's side of process_keeper.py.

Nothing here is bound to an event loop: each wait registers the pipe with the running loop.
Tests with a loop each can therefore share one set of processes.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

from bridge.demo import process_keeper
from bridge.errors import PrivateNodeError

# The keeper answers within milliseconds, after the start of its interpreter.
_ANSWER_TIMEOUT_S: Final = 20.0


class KeptProcesses:
    """A temporary folder and named processes. Use it from one task at a time."""

    def __init__(self) -> None:
        # Python's pipes are close-on-exec: no other child inherits the write end and
        # thereby keeps the keeper running.
        self._keepers_commands, self._commands = os.pipe()
        self._reports, self._keepers_reports = os.pipe()
        os.set_blocking(self._commands, False)
        os.set_blocking(self._reports, False)
        self._keeper: subprocess.Popen[bytes] | None = None
        self._is_open = True
        self._unread = b""
        self._acknowledged = 0
        self.folder = Path()
        self.pids: dict[str, int] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Self]:
        """
        Start a keeper with an empty temporary folder; end it and remove the folder at exit.

        Raises:
            PrivateNodeError: If the keeper does not start.

        """
        kept = cls()
        try:
            await asyncio.to_thread(kept._start_keeper)
            await kept._until(lambda: kept.folder != Path())
            yield kept
        finally:
            await kept.close()

    @property
    def keeper_pid(self) -> int:
        """The process id of the keeper; 0 before it has started."""
        return self._keeper.pid if self._keeper else 0

    async def start(
        self, name: str, program: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        """Start `program` under `name`; its output goes to NAME.out in the folder."""
        command = {"do": "start", "program": program, "environment": environment}
        await self._send(name, command)

    async def signal(self, name: str, number: int) -> None:
        """Send a signal to the process group of `name`; no effect if it has ended."""
        await self._send(name, {"do": "signal", "signal": int(number)})

    async def wait_until_ended(self, name: str, *, within_s: float) -> None:
        """
        Wait until the process `name` has ended.

        Raises:
            PrivateNodeError: If it still runs after `within_s`.

        """
        await self._until(lambda: name not in self.pids, within_s=within_s)

    def take_reports(self) -> None:
        """
        Update `pids` without waiting.

        Raises:
            PrivateNodeError: If the keeper has ended, and with it all processes.

        """
        try:
            chunk = os.read(self._reports, 65536)
        except BlockingIOError:
            return
        if not chunk:
            self.pids.clear()
            problem = "the keeper of the private RabbitMQ node has ended"
            raise PrivateNodeError(problem)
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        for line in lines:
            self._take_report(json.loads(line))

    async def close(self) -> None:
        """
        End every process, remove the folder, and wait for both. Idempotent.

        Cancellation:
            Safe: the keeper finishes without this process.

        """
        if not self._is_open:
            return
        self._is_open = False
        self.pids.clear()
        os.close(self._commands)
        try:
            if self._keeper:
                # The keeper limits its own shutdown, so this wait needs no timeout.
                await asyncio.to_thread(self._keeper.wait)
        finally:
            os.close(self._reports)

    def _start_keeper(self) -> None:
        # As a file and isolated (-I): the keeper needs the standard library only, and
        # must not depend on the import path of this process.
        try:
            self._keeper = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-I", process_keeper.__file__],
                stdin=self._keepers_commands,
                stdout=self._keepers_reports,
                start_new_session=True,
            )
        finally:
            os.close(self._keepers_commands)
            os.close(self._keepers_reports)

    async def _send(self, name: str, command: Mapping[str, object]) -> None:
        due = self._acknowledged + 1
        line = json.dumps({"name": name, **command}).encode() + b"\n"
        try:
            # It cannot block: a command is far smaller than the pipe's buffer, and the
            # previous command was acknowledged.
            os.write(self._commands, line)
        except BrokenPipeError:
            self.take_reports()  # raises the error that names the cause
            raise
        await self._until(lambda: self._acknowledged >= due)

    async def _until(
        self, condition: Callable[[], bool], *, within_s: float = _ANSWER_TIMEOUT_S
    ) -> None:
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        loop.add_reader(self._reports, arrived.set)
        try:
            async with asyncio.timeout(within_s):
                while not condition():
                    await arrived.wait()
                    arrived.clear()
                    self.take_reports()
        except TimeoutError as exc:
            problem = f"a process of the private node did not react in {within_s:g} s"
            raise PrivateNodeError(problem) from exc
        finally:
            loop.remove_reader(self._reports)

    def _take_report(self, report: Mapping[str, object]) -> None:
        match report:
            case {"folder": str(folder)}:
                self.folder = Path(folder)
            case {"started": str(name), "pid": int(pid)}:
                self.pids[name] = pid
                self._acknowledged += 1
            case {"signalled": str()}:
                self._acknowledged += 1
            case {"exited": str(name)}:
                self.pids.pop(name, None)
