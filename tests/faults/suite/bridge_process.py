"""`bridge run` as a child process that faults kill, freeze and terminate."""

import asyncio
import fcntl
import os
import re
import signal
import sys
import termios
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Final
from urllib.parse import urlencode

import aiohttp
import orjson

from tests.faults.suite.program import (
    CLOCK_VARIABLE,
    CONTROL_VARIABLE,
    MUTANTS_VARIABLE,
)

_RESTART_PAUSE_S: Final = 0.2
# The bridge must report every fault as an error text, never as a traceback.
_BUGS: Final = (b"Traceback", b"was never awaited")
_POLL_S: Final = 0.05
_ANSWER_TIMEOUT_S: Final = 2.0
_WINDOWS: Final = re.compile(r"^bridge_windows (\S+)$", re.MULTILINE)
_SHOWN: Final = 2000
_LOG_PIPE_BYTES: Final = 4096
_LINE_BYTES: Final = 250  # shorter than any line about a message
ROOT: Final = Path(__file__).parents[3]


@dataclass
class BridgeProcess:
    """
    A bridge that is restarted whenever it exits, with the same ports and store.

    Attributes:
        folder: Holds its settings and its log.
        operator_port: The port for readiness and metrics.
        operator_token: The token of the operator port.
        mutants: Its deliberate defects (program.py).
        name: Its name in texts.
        exit_timeout_s: How long it may take to exit after a signal.
        anomalies: Exits and tracebacks that no fault explains.
        starts: How often it was started.

    """

    folder: Path
    operator_port: int
    operator_token: str
    mutants: Sequence[str] = ()
    name: str = "the bridge"
    exit_timeout_s: float = 15.0
    anomalies: list[str] = field(default_factory=list)
    starts: int = 0
    _process: asyncio.subprocess.Process | None = None
    _log_pipe: asyncio.ReadTransport | None = None
    _may_run: asyncio.Event = field(default_factory=asyncio.Event)
    _reported: int = 0

    @property
    def control(self) -> Path:
        """The file that arms a crash point."""
        return self.folder / "control"

    @property
    def clock(self) -> Path:
        """The file that sets its clock: the seconds by which it is ahead, or no file."""
        return self.folder / "clock"

    @property
    def log(self) -> Path:
        """The log of all runs."""
        return self.folder / "bridge.log"

    @property
    def pid(self) -> int | None:
        """The process id; `None` if it does not run."""
        process = self._process
        return (
            None if process is None or process.returncode is not None else process.pid
        )

    def write_settings(self, **settings: object) -> None:
        """Write the settings file, which SIGHUP reloads."""
        lines = [f'{name} = "{value}"\n' for name, value in settings.items()]
        (self.folder / "bridge.toml").write_text("".join(lines))

    async def run(self) -> None:
        """Start it, and restart it whenever it exits; when cancelled, kill it."""
        with self.log.open("ab", buffering=0) as log:
            try:
                while True:
                    await self._may_run.wait()
                    # Through a pipe, because faults limit the sizes of its files.
                    read_fd, write_fd = os.pipe()
                    lines = await self._read_log(read_fd)
                    try:
                        process = self._process = await self._start(write_fd)
                    finally:
                        os.close(write_fd)
                    self.starts += 1
                    async for line in lines:
                        log.write(line)
                        self._note_line(line)
                    code = await process.wait()
                    self._note_exit(code)
                    await asyncio.sleep(_RESTART_PAUSE_S)
            finally:
                if self.pid and self._process:
                    self._process.kill()
                    await self._process.wait()

    async def _read_log(self, read_fd: int) -> asyncio.StreamReader:
        # Its process is blocked, or drops lines, once a page is full.
        fcntl.fcntl(read_fd, fcntl.F_SETPIPE_SZ, _LOG_PIPE_BYTES)
        lines = asyncio.StreamReader(limit=1 << 20)
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(read_fd, "rb", 0)
        )
        self._log_pipe = pipe
        return lines

    def stop_reading_log(self) -> bool:
        """Let its log pipe fill up until `resume_reading_log`; false if it does not run."""
        if self.pid is None or self._log_pipe is None:
            return False
        self._log_pipe.pause_reading()
        return True

    def has_full_log_pipe(self) -> bool:
        """Whether its log pipe has no room for another line of the usual length."""
        pipe = self._log_pipe
        if pipe is None or pipe.is_closing():
            return False
        waiting = array("i", [0])
        fcntl.ioctl(pipe.get_extra_info("pipe"), termios.FIONREAD, waiting)
        return waiting[0] > _LOG_PIPE_BYTES - _LINE_BYTES

    def resume_reading_log(self) -> None:
        """Read its log again."""
        if self._log_pipe is not None:
            self._log_pipe.resume_reading()

    def _note_line(self, line: bytes) -> None:
        if any(words in line for words in _BUGS):
            self.anomalies.append(f"{self.name} logged: {line.decode()[:_SHOWN]}")

    def _note_exit(self, code: int) -> None:
        if code not in (0, -signal.SIGKILL):
            self.anomalies.append(f"{self.name} ended with status {code}")

    def new_problems(self) -> list[str]:
        """Return the anomalies that no earlier call returned."""
        new = self.anomalies[self._reported :]
        self._reported = len(self.anomalies)
        return new

    async def _start(self, log_fd: int) -> asyncio.subprocess.Process:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("BRIDGE_")}
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.faults.suite.program",
            "run",
            "--config",
            str(self.folder / "bridge.toml"),
            env=kept
            | {
                CONTROL_VARIABLE: str(self.control),
                CLOCK_VARIABLE: str(self.clock),
                MUTANTS_VARIABLE: " ".join(self.mutants),
            },
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=log_fd,
            stderr=log_fd,
            # A signal to the suite's process group must not end the bridges first.
            start_new_session=True,
        )

    def allow_start(self) -> None:
        """Let `run` start the process."""
        self._may_run.set()

    async def kill(self, *, keep_down: bool = False) -> bool:
        """Kill it with SIGKILL; false if it did not run. `keep_down` prevents a restart."""
        if keep_down:
            self._may_run.clear()
        return await self._end(signal.SIGKILL)

    async def terminate_and_wait(self) -> bool:
        """Send SIGTERM and wait until it has drained; false if it did not run."""
        return await self._end(signal.SIGTERM)

    def send_signal(self, number: signal.Signals) -> bool:
        """Send a signal; false if it does not run."""
        if self.pid is None:
            return False
        os.kill(self.pid, number)
        return True

    def resume(self) -> bool:
        """Resume it after SIGSTOP; false if it does not run."""
        return self.send_signal(signal.SIGCONT)

    async def _end(self, number: signal.Signals) -> bool:
        process = self._process
        if process is None or not self.send_signal(number):
            return False
        try:
            async with asyncio.timeout(self.exit_timeout_s):
                await process.wait()
        except TimeoutError:
            self.anomalies.append(
                f"{self.name} still ran {self.exit_timeout_s:g} s after {number.name}"
            )
            process.kill()
            await process.wait()
        return True

    async def arm(self, point: str, *, count: int) -> None:
        """Make it crash when it reaches `point` for the `count`th time."""
        draft = self.control.with_suffix(".new")
        draft.write_text(f"{point} {count}")
        draft.rename(self.control)

    def set_clock(self, *, ahead_s: int) -> None:
        """Set its clock ahead of real time, or back with a negative number."""
        draft = self.clock.with_suffix(".new")
        draft.write_text(str(ahead_s))
        draft.rename(self.clock)

    def disarm(self) -> bool:
        """Remove the crash point; true if it was reached before."""
        if self.control.exists():
            self.control.unlink(missing_ok=True)
            return False
        return True

    async def count_windows(self) -> int:
        """Return the number of its windows by its metrics; 0 without an answer."""
        found = _WINDOWS.search(await self._ask("/metrics"))
        return int(float(found[1])) if found else 0

    async def windows_of(self, users: Sequence[str]) -> dict[str, int]:
        """Return the windows of each user on all bridges, as it says; -1 without an answer."""
        query = urlencode([("user", user) for user in users])
        answer = await self._ask(f"/api/presence?{query}")
        if not answer:
            return dict.fromkeys(users, -1)
        return {each["user"]: each["windows"] for each in orjson.loads(answer)["items"]}

    async def _ask(self, path: str) -> str:
        """Return the answer of its operator port; empty without one."""
        url = f"http://127.0.0.1:{self.operator_port}{path}"
        headers = {"Authorization": f"Bearer {self.operator_token}"}
        timeout = aiohttp.ClientTimeout(_ANSWER_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
                session.get(url) as response,
            ):
                return await response.text() if response.status == 200 else ""
        except (aiohttp.ClientError, TimeoutError, OSError):
            return ""

    async def wait_until_ready(self, *, within_s: float) -> bool:
        """Wait until it is ready; false after `within_s`."""
        deadline_s = monotonic() + within_s
        while monotonic() < deadline_s:
            if not await self.unready_reasons():
                return True
            await asyncio.sleep(_POLL_S)
        return False

    async def unready_reasons(self) -> str:
        """Return why it is not ready; empty if it is."""
        try:
            async with (
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(_ANSWER_TIMEOUT_S)
                ) as session,
                session.get(
                    f"http://127.0.0.1:{self.operator_port}/health/ready"
                ) as response,
            ):
                return "" if response.status == 200 else await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            return f"does not answer: {type(exc).__name__}"
