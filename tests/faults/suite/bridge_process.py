"""`bridge run` as a process: killed, frozen, told to go; a supervisor starts it again."""

import asyncio
import os
import re
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Final

import aiohttp

from tests.faults.suite.program import CONTROL_VARIABLE, MUTANT_VARIABLE

_RESTART_PAUSE_S: Final = 0.2
# Whatever goes wrong around it, a bridge has sentences for it, not tracebacks.
_BUGS: Final = (b"Traceback", b"was never awaited")
_LOOK_EACH_S: Final = 0.05
_ANSWER_WITHIN_S: Final = 2.0
_WINDOWS: Final = re.compile(r"^bridge_windows (\S+)$", re.MULTILINE)
_SHOWN: Final = 2000
ROOT: Final = Path(__file__).parents[3]


@dataclass
class BridgeProcess:
    """
    One bridge after the other, on the same ports and the same store.

    Attributes:
        folder: Where its settings and its log are.
        operator_port: Where it is asked how it is.
        operator_token: What opens its operator port.
        mutant: What is wrong with it on purpose; empty = nothing.
        name: What it is called where it surprises.
        gone_within_s: The longest that it may be there after a signal to go.
        surprises: What no fault asked for: ends with another status, tracebacks.
        starts: How often it was started.

    """

    folder: Path
    operator_port: int
    operator_token: str
    mutant: str = ""
    name: str = "the bridge"
    gone_within_s: float = 15.0
    surprises: list[str] = field(default_factory=list)
    starts: int = 0
    _process: asyncio.subprocess.Process | None = None
    _may_run: asyncio.Event = field(default_factory=asyncio.Event)
    _told: int = 0

    @property
    def control(self) -> Path:
        """The file that arms a place to die at."""
        return self.folder / "control"

    @property
    def log(self) -> Path:
        """What all of them have said."""
        return self.folder / "bridge.log"

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        process = self._process
        return (
            None if process is None or process.returncode is not None else process.pid
        )

    def write_settings(self, **settings: object) -> None:
        """Write the settings file, which SIGHUP reads again."""
        lines = [f'{name} = "{value}"\n' for name, value in settings.items()]
        (self.folder / "bridge.toml").write_text("".join(lines))

    async def run(self) -> None:
        """Start it again whenever it has ended, until cancelled; then kill it."""
        with self.log.open("ab", buffering=0) as log:
            try:
                while True:
                    await self._may_run.wait()
                    process = self._process = await self._start()
                    self.starts += 1
                    assert process.stdout is not None
                    # Through a pipe: limits of its file sizes are not for its log.
                    async for line in process.stdout:
                        log.write(line)
                        self._note_line(line)
                    code = await process.wait()
                    self._note_exit(code)
                    await asyncio.sleep(_RESTART_PAUSE_S)
            finally:
                if self.pid and self._process:
                    self._process.kill()
                    await self._process.wait()

    def _note_line(self, line: bytes) -> None:
        if any(words in line for words in _BUGS):
            self.surprises.append(f"{self.name} logged: {line.decode()[:_SHOWN]}")

    def _note_exit(self, code: int) -> None:
        if code not in (0, -signal.SIGKILL):
            self.surprises.append(f"{self.name} ended with status {code}")

    def take_news(self) -> list[str]:
        """Return the surprises that were not returned before."""
        news = self.surprises[self._told :]
        self._told = len(self.surprises)
        return news

    async def _start(self) -> asyncio.subprocess.Process:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("BRIDGE_")}
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.faults.suite.program",
            "run",
            "--config",
            str(self.folder / "bridge.toml"),
            env=kept
            | {CONTROL_VARIABLE: str(self.control), MUTANT_VARIABLE: self.mutant},
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=1 << 20,
        )

    def allow(self) -> None:
        """Let it run."""
        self._may_run.set()

    async def kill(self, *, stays_away: bool = False) -> bool:
        """End it with SIGKILL; false if it did not run."""
        if stays_away:
            self._may_run.clear()
        return await self._end(signal.SIGKILL)

    async def ask_to_go(self) -> bool:
        """End it with SIGTERM and wait until it has drained."""
        return await self._end(signal.SIGTERM)

    def send_signal(self, number: signal.Signals) -> bool:
        """Send a signal; false if it does not run."""
        if self.pid is None:
            return False
        os.kill(self.pid, number)
        return True

    def wake(self) -> bool:
        """Let it go on where it was frozen; false if it does not run."""
        return self.send_signal(signal.SIGCONT)

    async def _end(self, number: signal.Signals) -> bool:
        process = self._process
        if process is None or not self.send_signal(number):
            return False
        try:
            async with asyncio.timeout(self.gone_within_s):
                await process.wait()
        except TimeoutError:
            self.surprises.append(
                f"{self.name} was still there {self.gone_within_s:g} s after {number.name}"
            )
            process.kill()
            await process.wait()
        return True

    async def arm(self, place: str, *, count: int) -> None:
        """Let it die at `place`."""
        draft = self.control.with_suffix(".new")
        draft.write_text(f"{place} {count}")
        draft.rename(self.control)

    def disarm(self) -> bool:
        """Take the place away; true if it had been reached already."""
        if self.control.exists():
            self.control.unlink(missing_ok=True)
            return False
        return True

    async def count_windows(self) -> int:
        """Ask its metrics how many windows it has; 0 if it does not answer."""
        url = f"http://127.0.0.1:{self.operator_port}/metrics"
        headers = {"Authorization": f"Bearer {self.operator_token}"}
        timeout = aiohttp.ClientTimeout(_ANSWER_WITHIN_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
                session.get(url) as answer,
            ):
                found = _WINDOWS.search(await answer.text())
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0
        return int(float(found[1])) if found else 0

    async def gets_ready(self, *, within_s: float) -> bool:
        """Wait until it is ready; false if it is not in time."""
        deadline_s = monotonic() + within_s
        while monotonic() < deadline_s:
            if not await self.unready_reasons():
                return True
            await asyncio.sleep(_LOOK_EACH_S)
        return False

    async def unready_reasons(self) -> str:
        """Return what keeps it from being ready; empty if nothing does."""
        try:
            async with (
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(_ANSWER_WITHIN_S)
                ) as session,
                session.get(
                    f"http://127.0.0.1:{self.operator_port}/health/ready"
                ) as answer,
            ):
                return "" if answer.status == 200 else await answer.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            return f"does not answer: {type(exc).__name__}"
