"""`bridge demo` as a process of its own, as a user starts it, and what it leaves behind."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from tests.conftest import SLOW_FACTOR, eventually
from tests.processes import is_alive

_SOURCES: Final = Path(__file__).parents[2]
_START_WITHIN_S: Final = 60.0
_END_WITHIN_S: Final = 30.0


@dataclass
class DemoProcess:
    """
    One running demo.

    Attributes:
        process: The command.
        folder: Its TMPDIR and, beside it, what it prints.
        environment: What it was started with; lines that it prints run in it too.

    """

    process: subprocess.Popen[bytes]
    folder: Path
    environment: Mapping[str, str]

    @property
    def facts(self) -> str:
        """What it has printed to standard output."""
        return (self.folder / "stdout").read_text()

    @property
    def talk(self) -> str:
        """What it has printed to standard error."""
        return (self.folder / "stderr").read_text()

    @property
    def url(self) -> str:
        """Where the page is, without the last slash."""
        found = re.search(r"The page: (http://[^\s]+)/", self.facts)
        assert found, f"no page: {self.facts}{self.talk}"
        return found[1]

    @property
    def console(self) -> tuple[str, str]:
        """Where the console is, and the token that opens it."""
        found = re.search(r"The console: (\S+), signed in to with (\S+)", self.facts)
        assert found, f"no console: {self.facts}"
        return found[1], found[2]

    @property
    def shell_lines(self) -> dict[str, str]:
        """The lines to copy, by their titles."""
        return dict(re.findall(r"^(over \w+):\n(.+)$", self.facts, re.MULTILINE))

    @property
    def ports(self) -> list[int]:
        """The ports of the page, the operator and the broker, as they were printed."""
        return sorted(
            {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", self.facts)}
        )

    async def started(self) -> None:
        """Wait until the page is there."""
        await eventually(
            lambda: "Ctrl-C stops" in self.talk or self.process.poll() is not None,
            within_s=_START_WITHIN_S,
        )
        assert self.process.poll() is None, f"it ended: {self.facts}{self.talk}"

    async def consumes(self) -> None:
        """Wait until it is ready: the page is there before RabbitMQ is connected to."""

        async def is_ready() -> bool:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{self.url}/health/ready") as answer,
            ):
                return answer.status == 200

        await eventually(is_ready, within_s=_START_WITHIN_S)

    async def end(self, number: signal.Signals) -> int:
        """Signal its whole group, as a terminal does; return its exit code."""
        os.killpg(self.process.pid, number)
        async with asyncio.timeout(_END_WITHIN_S * SLOW_FACTOR):
            return await asyncio.to_thread(self.process.wait)

    async def assert_nothing_left(
        self, family: Sequence[int], ports: Sequence[int]
    ) -> None:
        """Check for processes, files and ports; the keeper may take a moment after a crash."""
        await eventually(lambda: not [pid for pid in family if is_alive(pid)])
        await eventually(lambda: not list((self.folder / "tmp").iterdir()))
        assert [port for port in ports if not is_free(port)] == []


@asynccontextmanager
async def running_demo(
    folder: Path,
    *flags: str,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[DemoProcess]:
    """Start a demo on free ports; at the end, kill what is left of it."""
    (folder / "tmp").mkdir(parents=True)
    full_environment = {
        **os.environ,
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": str(_SOURCES),
        **(environment or {}),
    }
    process = _start(folder, flags, full_environment)
    try:
        yield DemoProcess(process, folder, full_environment)
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


def _start(
    folder: Path, flags: Sequence[str], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    # To files: nobody reads a pipe while a test waits for something else.
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "bridge", "demo", *flags],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            cwd="/",
            start_new_session=True,  # as the foreground group of a terminal
        )


ANY_PORTS: Final = ("--port", "0", "--operator-port", "0")


def is_free(port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
