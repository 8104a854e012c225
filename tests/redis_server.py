"""A private redis-server, in a folder and on a port of its own, for tests."""

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

# What the servers of a run are: `TESTS_REDIS_SERVER=valkey-server`, or a path.
PROGRAM: Final = os.environ.get("TESTS_REDIS_SERVER", "redis-server")
READY_WITHIN_S: Final = 10.0 * SLOW_FACTOR
_ENDED_WITHIN_S: Final = 10.0 * SLOW_FACTOR
_PROBE_WITHIN_S: Final = 1.0
_PAUSE_S: Final = 0.02


def free_port() -> int:
    """
    Return a port that is free now, below the range of outgoing connections.

    So is the one 10,000 above, which a node of a cluster takes as well.
    """
    while True:
        (port,) = free_ports(1)
        if port < 22_000:
            return port


class RedisServer:
    """
    One server. Make it with `start` or `started`; it may be ended and started again.

    Nothing in it belongs to an event loop. `command`, `run`, `stop` and `kill` block for
    some milliseconds; where the loop has to go on meanwhile, call them in a thread.
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
        """Where it answers, database 0."""
        return f"redis://{self.host}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self._process is not None, "it does not run"
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
        Start a server and hand it out when it answers; kill it at the end.

        Args:
            folder: Where its files are, made if it is not there.
            port: To be reached at; 0 = any that is free.
            is_durable: Every write is on the disk before it is answered.
            is_sentinel: It is a Sentinel, which keeps its own configuration.
            options: More of redis.conf, by name.

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
        """Do what `started` does, without holding the event loop up."""
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

    # --- its life

    def run(self) -> None:
        """Start it on its folder and port, and wait until it answers."""
        assert self._process is None, "it runs already"
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
            # Whoever waits for the end of our output must not wait for it.
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
        )
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until it answers and has read its files."""
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
        """Return the end of its log."""
        log = self.folder / "redis.log"
        return log.read_text()[-2000:] if log.exists() else "no log"

    def stop(self) -> None:
        """End it in an orderly way (SIGTERM): what it keeps is on the disk."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut of its process would (SIGKILL). Harmless if it is ended."""
        self._end(signal.SIGKILL)

    def restart(self, *, is_empty: bool = False) -> None:
        """Start it again, after its end if need be; `is_empty`: its files are lost."""
        self.kill()
        if is_empty:
            self.lose_files()
        self.run()

    def lose_files(self) -> None:
        """Remove what it kept. It must not run."""
        assert self._process is None, "it runs"
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir():
                path.rmdir()
            elif path.name != "redis.log":
                path.unlink()

    def pause(self) -> None:
        """Freeze it: it takes connections and answers nothing (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "it does not run"
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)  # it may be frozen
        process.wait(_ENDED_WITHIN_S)

    # --- talking to it, past any client library

    def wait_until(self, answer: str, *words: str) -> None:
        """Wait until a command is answered with a text that holds `answer`."""
        until_s = monotonic() + READY_WITHIN_S
        while answer not in (found := self.command(*words)):
            assert monotonic() < until_s, found
            sleep(_PAUSE_S)

    def command(self, *words: str) -> str:
        """Send one command and return its answer's raw lines; errors begin with `-`."""
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
    """The same of Valkey, where that is installed."""

    program = "valkey-server"


def _lines_of(answer: BufferedReader) -> Iterator[str]:
    """Read one RESP answer: its scalars, one after the other, in plain."""
    line = answer.readline().decode().rstrip("\r\n")
    if not line:
        message = "it hung up"
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
