"""`bridge demo` as a child process, started like a user starts it."""

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
_START_TIMEOUT_S: Final = 60.0
_END_TIMEOUT_S: Final = 30.0


@dataclass
class DemoProcess:
    """
    One running demo.

    Attributes:
        process: The command.
        folder: Holds its TMPDIR and its output.
        environment: The environment of the demo, for the commands that it prints, too.

    """

    process: subprocess.Popen[bytes]
    folder: Path
    environment: Mapping[str, str]

    @property
    def out(self) -> str:
        """Its standard output so far."""
        return (self.folder / "stdout").read_text()

    @property
    def err(self) -> str:
        """Its standard error so far."""
        return (self.folder / "stderr").read_text()

    @property
    def url(self) -> str:
        """The URL of the page, without the final slash."""
        found = re.search(r"The page: (http://[^\s]+)/", self.out)
        assert found, f"no page: {self.out}{self.err}"
        return found[1]

    @property
    def console(self) -> tuple[str, str]:
        """The URL of the console, and the token to sign in with."""
        found = re.search(r"The console: (\S+), sign in with (\S+)", self.out)
        assert found, f"no console: {self.out}"
        return found[1], found[2]

    @property
    def shell_lines(self) -> dict[str, str]:
        """The printed commands, by title."""
        return dict(re.findall(r"^(over \w+):\n(.+)$", self.out, re.MULTILINE))

    @property
    def ports(self) -> list[int]:
        """The ports of the page, the operator and the broker, as they were printed."""
        return sorted(
            {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", self.out)}
        )

    async def started(self) -> None:
        """Wait until the page is served."""
        await eventually(
            lambda: "Ctrl-C stops" in self.err or self.process.poll() is not None,
            within_s=_START_TIMEOUT_S,
        )
        assert self.process.poll() is None, f"it ended: {self.out}{self.err}"

    async def consumes(self) -> None:
        """Wait until it is ready, which is later than `started`: after RabbitMQ is connected."""

        async def is_ready() -> bool:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{self.url}/health/ready") as answer,
            ):
                return answer.status == 200

        await eventually(is_ready, within_s=_START_TIMEOUT_S)

    async def end(self, number: signal.Signals) -> int:
        """Send a signal to its process group, as a terminal does; return its exit code."""
        os.killpg(self.process.pid, number)
        async with asyncio.timeout(_END_TIMEOUT_S * SLOW_FACTOR):
            return await asyncio.to_thread(self.process.wait)

    async def assert_nothing_left(
        self, family: Sequence[int], ports: Sequence[int]
    ) -> None:
        """Wait until its processes, files and ports are gone."""
        await eventually(lambda: not [pid for pid in family if is_alive(pid)])
        await eventually(lambda: not list((self.folder / "tmp").iterdir()))
        assert [port for port in ports if not is_free(port)] == []


@asynccontextmanager
async def running_demo(
    folder: Path,
    *flags: str,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[DemoProcess]:
    """Start a demo; kill it at the end if it still runs."""
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
    # To files: a pipe that is not read while a test waits would fill up and block.
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
    """Whether a server could listen on this port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
