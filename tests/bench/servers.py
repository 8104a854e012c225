"""The servers under test: how each is started, when it is ready, what it has used."""

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

ROOT: Final = Path(__file__).parents[2]
SECRET: Final = "a-secret-of-the-bench-that-is-long-enough"
_START_S: Final = 30.0
_PEERS: Final = Path(__file__).with_name("peers")


@dataclass(frozen=True, slots=True)
class Processors:
    """Where the server runs, and where broker, worker and windows run."""

    server: str
    others: str


def processors() -> Processors:
    """Give the server one of its own; all others share the next one, or all that is left."""
    have = sorted(os.sched_getaffinity(0))
    if len(have) < 2:
        return Processors("any", "any")
    return Processors(str(have[0]), ",".join(map(str, have[1:])))


@dataclass(frozen=True, slots=True)
class Kind:
    """
    One of the servers that are compared.

    Attributes:
        name: As in options and JSON.
        title: As in tables.
        inbox: The bridge's store; empty for a peer.
        group: What several share that work together; empty for one alone.

    """

    name: str
    title: str
    inbox: str = ""
    group: str = ""

    @property
    def names(self) -> BrokerNames:
        """What its exchanges and queues are called."""
        return BrokerNames(f"bench.{self.group or self.name}")

    @property
    def syncs(self) -> bool:
        """Whether it tells a window that its replay is over."""
        return bool(self.inbox)


KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("memory", "bridge, `memory:`", "memory:"),
        Kind("sqlite", "bridge, `sqlite:`", "sqlite:"),
        Kind("node", "Node"),
        Kind("node-each", "Node, acking each"),
        Kind("python", "plain Python"),
        Kind("bare", "bare calls"),
    )
}


@dataclass
class Server:
    """A running one."""

    kind: Kind
    process: asyncio.subprocess.Process
    port: int = 0
    log: Path = field(default_factory=Path)

    @property
    def pid(self) -> int:
        """The process that does all of its work."""
        return self.process.pid

    def cpu_us(self) -> float:
        """
        Return the processor time of all threads, user and system, in microseconds.

        Raises:
            RuntimeError: If the server is gone, with the end of its log.

        """
        if self.process.returncode is not None:
            raise RuntimeError(_why(self))
        return cpu_us(self.pid)

    def rss_kib(self) -> int:
        """Resident memory in KiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1])
        raise AssertionError(self.pid)

    def freeze(self) -> None:
        """Stop it; what comes meanwhile waits in the broker."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)


def cpu_us(pid: int) -> float:
    """Return the processor time that `pid` has used, with all threads, in microseconds."""
    return sum(cpu_us_of_threads(pid).values())


def cpu_us_of_threads(pid: int) -> dict[int, float]:
    """Return the same for each thread, by its id."""
    used: dict[int, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        # Nanoseconds on the processor; `stat` counts in ticks of 10 ms.
        with suppress(FileNotFoundError):
            used_ns = int((task / "schedstat").read_text().split()[0])
            used[int(task.name)] = used_ns / 1000
    return used


@asynccontextmanager
async def running(
    kind: Kind,
    *,
    broker_url: str,
    folder: Path,
    pin: Processors,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Server]:
    """
    Start a server and hand it out when it consumes.

    Args:
        kind: Which.
        broker_url: With log-in.
        folder: For its log and its store; both are deleted at the end.
        pin: Where it may run.
        settings: More of a bridge's environment.

    Raises:
        RuntimeError: If it does not start; the end of its log is in the text.

    """
    log = folder / f"{kind.name}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.bench.pinned", pin.server),
            *_command(kind),
            env={**_environment(kind, broker_url, folder), **settings},
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
            process.kill()  # nothing is kept, so nothing needs an orderly end
            await process.wait()
        _remove(folder, kind)


def _remove(folder: Path, kind: Kind) -> None:
    for path in folder.glob(f"{kind.name}.*"):
        path.unlink()


def _command(kind: Kind) -> tuple[str, ...]:
    match kind.name:
        case "node" | "node-each":
            return ("node", str(_PEERS / "page.js"))
        case "python":
            return (sys.executable, str(_PEERS / "page.py"))
        case "bare":
            return (sys.executable, "-m", "tests.bench.peers.bare")
        case _:
            return (sys.executable, "-m", "bridge", "run")


def _environment(kind: Kind, broker_url: str, folder: Path) -> Mapping[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("BRIDGE_")}
    if not kind.inbox:
        return kept | {
            "AMQP_URL": broker_url,
            "EXCHANGE": kind.names.messages,
            "QUEUE": kind.names.inbound_queue(),
            "JWT_SECRET": SECRET,
            "NODE_PATH": str(ROOT / "tests" / "node_modules"),
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
        # The bounds are for strangers, and here all windows are in one place.
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
        raise RuntimeError(_why(server)) from exc


async def _port(server: Server) -> int:
    stdout = server.process.stdout
    assert stdout is not None
    line = (await stdout.readline()).decode()
    if not line:
        raise RuntimeError(_why(server))
    if server.kind.inbox:  # bridge ... listens: public http://HOST:PORT, operator ...
        return int(line.split("public ")[1].split(",")[0].rsplit(":", 1)[1])
    return int(line.split()[1])


async def _until_ready(server: Server) -> None:
    url = f"http://127.0.0.1:{server.port}/health/ready"
    while True:
        if server.process.returncode is not None:
            raise RuntimeError(_why(server))
        with suppress(URLError):
            await asyncio.to_thread(urllib.request.urlopen, url, timeout=2)
            return
        await asyncio.sleep(0.05)


def _why(server: Server) -> str:
    tail = server.log.read_text(errors="replace")[-2000:]
    status = server.process.returncode
    how = "does not start" if status is None else f"ended with status {status}"
    return f"{server.kind.title} {how}: {tail}"
