"""A private redis-server with its own folder and port, for tests."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from io import BufferedReader
from pathlib import Path
from shutil import which
from time import monotonic, sleep
from typing import Final, Self

from tests.conftest import SLOW_FACTOR
from tests.faults.suite.proxy import free_ports

# The program of the servers: `TESTS_REDIS_SERVER=valkey-server`, or a path.
PROGRAM: Final = os.environ.get("TESTS_REDIS_SERVER", "redis-server")
READY_WITHIN_S: Final = 10.0 * SLOW_FACTOR
_ENDED_WITHIN_S: Final = 10.0 * SLOW_FACTOR
_PROBE_WITHIN_S: Final = 1.0
_PAUSE_S: Final = 0.02


def free_port() -> int:
    """
    Return a free port below the range of outgoing connections.

    A node of a cluster also uses the port 10,000 above it.
    """
    while True:
        (port,) = free_ports(1)
        if port < 22_000:
            return port


class RedisServer:
    """
    One server, which can be stopped and restarted. Use `start` or `started` to create it.

    It does not depend on an event loop. `command`, `run`, `stop` and `kill` block for some
    milliseconds; call them in a thread if the loop must run meanwhile.
    """

    program = PROGRAM

    def __init__(self, folder: Path, *, port: int, options: dict[str, str]) -> None:
        self.folder = folder
        self.host = "127.0.0.1"
        self.port = port
        self.options = options
        self.is_sentinel = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return f"redis://{self.host}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @classmethod
    @contextmanager
    def started(
        cls,
        folder: Path,
        *,
        port: int = 0,
        is_durable: bool = True,
        is_sentinel: bool = False,
        options: dict[str, str] | None = None,
    ) -> Iterator[Self]:
        """
        Start a server, wait until it answers, and kill it at the end.

        Args:
            folder: The folder of its files; it is created if it does not exist.
            port: The port to listen on; 0 = any free port.
            is_durable: Whether each write is synced to the disk before the reply.
            is_sentinel: Whether it is a Sentinel, which writes its own configuration.
            options: Further options of redis.conf.

        """
        folder.mkdir(parents=True, exist_ok=True)
        kept = {"appendonly": "yes", "appendfsync": "always"} if is_durable else {}
        server = cls(folder, port=port or free_port(), options=kept | (options or {}))
        server.is_sentinel = is_sentinel
        server.run()
        try:
            yield server
        finally:
            server.kill()

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        folder: Path,
        *,
        port: int = 0,
        is_durable: bool = True,
        is_sentinel: bool = False,
        options: dict[str, str] | None = None,
    ) -> AsyncIterator[Self]:
        """Do the same as `started` without blocking the event loop."""
        starting = cls.started(
            folder,
            port=port,
            is_durable=is_durable,
            is_sentinel=is_sentinel,
            options=options,
        )
        server = await asyncio.to_thread(starting.__enter__)
        try:
            yield server
        finally:
            await asyncio.to_thread(starting.__exit__, None, None, None)

    # --- lifecycle

    def run(self) -> None:
        """Start the server and wait until it answers."""
        assert self._process is None, "the server runs already"
        program = which(self.program)
        assert program, f"no {self.program}: install the package of that name"
        words = {
            "port": str(self.port),
            "bind": self.host,
            "dir": str(self.folder),
            "daemonize": "no",
            "logfile": str(self.folder / "redis.log"),
            **({} if self.is_sentinel else {"save": ""}),
            **self.options,
        }
        arguments = [
            word for name, value in words.items() for word in (f"--{name}", value)
        ]
        if self.is_sentinel:
            own = self.folder / "sentinel.conf"
            own.touch()
            arguments = [str(own), "--sentinel", *arguments]
        self._process = subprocess.Popen(
            [program, *arguments],
            # A reader of the output of the tests must not wait for the end of the server.
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
        )
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until the server answers and has loaded its files."""
        until_s = monotonic() + READY_WITHIN_S
        while True:
            try:
                answer = self.command("PING")
            except OSError as exc:
                answer = str(exc)
            if answer in {"+PONG", "-NOAUTH Authentication required."}:
                return
            assert self._process is not None
            assert self._process.poll() is None, self.log_tail()
            assert monotonic() < until_s, f"{answer}\n{self.log_tail()}"
            sleep(_PAUSE_S)

    def log_tail(self) -> str:
        """Return the end of the server's log."""
        log = self.folder / "redis.log"
        return log.read_text()[-2000:] if log.exists() else "no log"

    def stop(self) -> None:
        """Stop the server with SIGTERM; it writes its data to the disk first."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server with SIGKILL; no effect if it does not run."""
        self._end(signal.SIGKILL)

    def restart(self, *, is_empty: bool = False) -> None:
        """Kill and start the server; `is_empty` deletes its files in between."""
        self.kill()
        if is_empty:
            self.delete_files()
        self.run()

    def delete_files(self) -> None:
        """Delete the files of the server, which must not run."""
        assert self._process is None, "the server runs"
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir():
                path.rmdir()
            elif path.name != "redis.log":
                path.unlink()

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): the kernel accepts connections, but it never answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume the server after `pause`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server does not run"
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)  # it may be frozen
        process.wait(_ENDED_WITHIN_S)

    # --- commands, without a client library

    def wait_until(self, answer: str, *words: str) -> None:
        """Wait until the reply to a command contains `answer`."""
        until_s = monotonic() + READY_WITHIN_S
        while answer not in (found := self.command(*words)):
            assert monotonic() < until_s, found
            sleep(_PAUSE_S)

    def command(self, *words: str) -> str:
        """Send one command and return the lines of its reply; errors begin with `-`."""
        request = f"*{len(words)}\r\n" + "".join(
            f"${len(word.encode())}\r\n{word}\r\n" for word in words
        )
        with closing(
            socket.create_connection((self.host, self.port), _PROBE_WITHIN_S)
        ) as peer:
            peer.sendall(request.encode())
            with peer.makefile("rb") as answer:
                return "\n".join(_lines_of(answer))


class ValkeyServer(RedisServer):
    """A Valkey server."""

    program = "valkey-server"


def _lines_of(answer: BufferedReader) -> Iterator[str]:
    """Parse one RESP reply and yield its scalars as text."""
    line = answer.readline().decode().rstrip("\r\n")
    if not line:
        message = "the server closed the connection"
        raise ConnectionError(message)
    kind, rest = line[0], line[1:]
    if kind == "$" and int(rest) >= 0:
        yield answer.read(int(rest) + 2)[:-2].decode(errors="backslashreplace")
    elif kind == "$":
        yield "(nil)"
    elif kind == "*":
        for _ in range(max(0, int(rest))):
            yield from _lines_of(answer)
    else:
        yield line
