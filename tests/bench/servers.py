"""The servers under test: start, readiness and resource usage."""

import asyncio
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.error import URLError

from bridge.core.broker_names import BrokerNames
from tests.bench import go_peer

ROOT: Final = Path(__file__).parents[2]
SECRET: Final = "a-secret-of-the-bench-that-is-long-enough"
_START_S: Final = 30.0
PEERS: Final = Path(__file__).with_name("peers")


@dataclass(frozen=True, slots=True)
class Processors:
    """The processors of the server, and those of broker, publisher and windows."""

    server: str
    others: str


def processors() -> Processors:
    """Reserve one processor for the server; all other processes share the rest."""
    have = sorted(os.sched_getaffinity(0))
    if len(have) < 2:
        return Processors("any", "any")
    return Processors(str(have[0]), ",".join(map(str, have[1:])))


@dataclass(frozen=True, slots=True)
class ServerKind:
    """
    A kind of server.

    Attributes:
        name: Its name in options and JSON.
        title: Its name in tables.
        inbox: The store of a bridge; empty for other servers.
        group: The shared namespace of several bridges; empty for a single server.
        python: The interpreter of a bridge.

    """

    name: str
    title: str
    inbox: str = ""
    group: str = ""
    python: str = sys.executable

    @property
    def names(self) -> BrokerNames:
        """The names of its exchanges and queues."""
        return BrokerNames(f"bench.{self.group or self.name}")

    @property
    def syncs(self) -> bool:
        """Whether it notifies a window of the end of its replay."""
        return bool(self.inbox)


SERVER_KINDS: Final = {
    kind.name: kind
    for kind in (
        ServerKind("memory", "bridge, `memory:`", "memory:"),
        ServerKind("sqlite", "bridge, `sqlite:`", "sqlite:"),
        ServerKind("node", "Node"),
        ServerKind("node-each", "Node, acking each"),
        ServerKind("go", "Go"),
        ServerKind("python", "plain Python"),
        ServerKind("bare", "bare calls"),
    )
}


@dataclass
class Server:
    """A running server."""

    kind: ServerKind
    process: asyncio.subprocess.Process
    port: int = 0
    log: Path = field(default_factory=Path)

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self.process.pid

    def cpu_us(self) -> float:
        """
        Return the processor time of all threads, user and system, in microseconds.

        Raises:
            RuntimeError: If the server has exited, with the end of its log.

        """
        if self.process.returncode is not None:
            raise RuntimeError(_failure_text(self))
        return cpu_us(self.pid)

    def rss_kib(self) -> int:
        """Return the resident memory in KiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1])
        raise AssertionError(self.pid)

    def pause(self) -> None:
        """Stop it (SIGSTOP); messages wait in the broker."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume it (SIGCONT)."""
        self.process.send_signal(signal.SIGCONT)


def cpu_us(pid: int) -> float:
    """Return the processor time that `pid` has used, with all threads, in microseconds."""
    return sum(cpu_us_of_threads(pid).values())


def cpu_us_of_threads(pid: int) -> dict[int, float]:
    """Return the processor time of each thread, by thread id, in microseconds."""
    used: dict[int, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        # schedstat counts nanoseconds; stat only counts ticks of 10 ms.
        with suppress(FileNotFoundError):
            used_ns = int((task / "schedstat").read_text().split()[0])
            used[int(task.name)] = used_ns / 1000
    return used


@asynccontextmanager
async def running(
    kind: ServerKind,
    *,
    broker_url: str,
    folder: Path,
    pin: Processors,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Server]:
    """
    Start a server and yield it when it consumes.

    Args:
        kind: The kind of server.
        broker_url: The AMQP URL with the login.
        folder: For its log and its store; both are deleted at the end.
        pin: The processors that it may use.
        settings: Additional environment variables of a bridge.

    Raises:
        RuntimeError: If it does not start; the end of its log is in the text.

    """
    command = await asyncio.to_thread(_command, kind)  # may compile
    log = folder / f"{kind.name}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.bench.run_pinned", pin.server),
            *command,
            env={**_environment(kind, broker_url, folder, pin), **settings},
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
        )
    server = Server(kind, process, log=log)
    try:
        await _started(server)
        yield server
    finally:
        if process.returncode is None:
            process.kill()  # its data is deleted, so it need not drain
            await process.wait()
        _remove(folder, kind)


def _remove(folder: Path, kind: ServerKind) -> None:
    for path in folder.glob(f"{kind.name}.*"):
        path.unlink()


def _command(kind: ServerKind) -> tuple[str, ...]:
    match kind.name:
        case "node" | "node-each":
            return ("node", str(PEERS / "page.js"))
        case "go":
            return (str(go_peer.build(ROOT / "build")),)
        case "python":
            return (sys.executable, str(PEERS / "page.py"))
        case "bare":
            return (sys.executable, "-m", "tests.bench.peers.bare")
        case _:
            return (kind.python, "-m", "bridge", "run")


def _environment(
    kind: ServerKind, broker_url: str, folder: Path, pin: Processors
) -> Mapping[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("BRIDGE_")}
    if not kind.inbox:
        return kept | {
            "AMQP_URL": broker_url,
            "EXCHANGE": kind.names.messages,
            "QUEUE": kind.names.inbound_queue(),
            "EVENTS": kind.names.events,
            "REQUESTS": kind.names.requests,
            "JWT_SECRET": SECRET,
            "NODE_PATH": str(ROOT / "tests" / "node_modules"),
            # Go; the others use one core at a time as they are.
            "GOMAXPROCS": "1" if pin.server != "any" else str(os.cpu_count()),
            "ACK_EACH": "1" if kind.name == "node-each" else "100",
        }
    path = folder / f"{kind.name}.sqlite3" if kind.inbox == "sqlite:" else ""
    return kept | {
        "BRIDGE_AMQP_URL": broker_url,
        "BRIDGE_NAMESPACE": kind.names.namespace,
        "BRIDGE_PORT": "0",
        "BRIDGE_OPERATOR_PORT": "0",
        "BRIDGE_JWT_SECRET": SECRET,
        "BRIDGE_INBOX": f"{kind.inbox}{path}",
        # The default limits are for clients on the internet; here all share one address.
        "BRIDGE_MAX_WINDOWS_PER_USER": "100000",
        "BRIDGE_MAX_WINDOWS_PER_ADDRESS": "100000",
    }


async def _started(server: Server) -> None:
    try:
        async with asyncio.timeout(_START_S):
            server.port = await _port(server)
            if server.kind.inbox:
                await _until_ready(server)
    except TimeoutError as exc:
        raise RuntimeError(_failure_text(server)) from exc


async def _port(server: Server) -> int:
    stdout = server.process.stdout
    assert stdout is not None
    line = (await stdout.readline()).decode()
    if not line:
        raise RuntimeError(_failure_text(server))
    if server.kind.inbox:  # bridge ... listens: public http://HOST:PORT, operator ...
        return int(line.split("public ")[1].split(",")[0].rsplit(":", 1)[1])
    return int(line.split()[1])


async def _until_ready(server: Server) -> None:
    url = f"http://127.0.0.1:{server.port}/health/ready"
    while True:
        if server.process.returncode is not None:
            raise RuntimeError(_failure_text(server))
        with suppress(URLError):
            await asyncio.to_thread(urllib.request.urlopen, url, timeout=2)
            return
        await asyncio.sleep(0.05)


def _failure_text(server: Server) -> str:
    tail = server.log.read_text(errors="replace")[-2000:]
    status = server.process.returncode
    how = "does not start" if status is None else f"exited with status {status}"
    return f"{server.kind.title} {how}: {tail}"
