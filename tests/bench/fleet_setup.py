"""
Bridges with a shared store, the parts around them, and the resources that they use.

All bridges run on the processor that the bench reserves for servers, the other parts on the
rest. Only processor time is measured, so the number of processors does not matter.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.publisher import RawPublisher
from tests.bench.servers import Processors, Server, ServerKind, cpu_us, running
from tests.bench.window_process import windows
from tests.bench.workloads import Scale, Stage
from tests.local_node import LocalNode
from tests.redis_server import RedisServer


@dataclass(frozen=True, slots=True)
class FleetSetup:
    """
    A setup to measure.

    Attributes:
        name: Its name in JSON and in names on the broker.
        bridges: The number of bridges.
        inbox: `sqlite:`, for a single bridge, or `redis:`.
        shards: The number of inbound queues.
        fsync: When Redis writes to the disk: `always` before an answer, like a commit of
            SQLite, or `everysec`.
        traffic: The share of the usual rate of a steady stream.
        settings: Additional environment variables of each bridge.

    """

    name: str
    bridges: int
    inbox: str = "redis:"
    shards: int = 1
    fsync: str = "always"
    traffic: float = 1.0
    settings: Mapping[str, str] = field(default_factory=dict)


class ServerGroup(Server):
    """Several bridges that are measured like one server; their usage is summed."""

    def __init__(self, members: Sequence[Server]) -> None:
        first = members[0]
        super().__init__(first.kind, first.process, first.port, first.log)
        self.members = members

    def cpu_us(self) -> float:
        """Return the total processor time; raises like `Server.cpu_us`."""
        return sum(member.cpu_us() for member in self.members)

    def rss_kib(self) -> int:
        """Return the total resident memory in KiB."""
        return sum(member.rss_kib() for member in self.members)

    def pause(self) -> None:
        """Stop all bridges."""
        for member in self.members:
            member.pause()

    def resume(self) -> None:
        """Resume all bridges."""
        for member in self.members:
            member.resume()


@dataclass(frozen=True, slots=True)
class Used:
    """Microseconds of processor time of each bridge, of RabbitMQ and of Redis."""

    bridges: Sequence[float]
    broker: float
    store: float

    def since(self, before: "Used") -> "Used":
        """Return the usage since `before`."""
        pairs = zip(self.bridges, before.bridges, strict=True)
        return Used(
            [now - then for now, then in pairs],
            self.broker - before.broker,
            self.store - before.store,
        )


@dataclass
class FleetBenchWorld:
    """The parts that all setups share."""

    node: LocalNode
    folder: Path
    pin: Processors


@dataclass
class RunningFleet:
    """A running setup with windows and a publisher."""

    setup: FleetSetup
    servers: ServerGroup
    stage: Stage
    world: FleetBenchWorld
    redis: RedisServer | None

    @property
    def exchange(self) -> str:
        """The exchange that workers publish to."""
        return self.servers.kind.names.messages

    async def open(self, users: Sequence[str], *, at: int | None = None) -> None:
        """Open a window per user: distributed over the bridges, or all at bridge `at`."""
        members = self.servers.members
        for number, member in enumerate(members):
            if at is None:
                own = users[number :: len(members)]
            else:
                own = users if number == at else ()
            if own:
                await self.stage.windows.open(member.port, own, syncs=True)

    def used(self) -> Used:
        """Return the usage of all parts since their start."""
        return Used(
            [member.cpu_us() for member in self.servers.members],
            cpu_us(self.world.node.pids["node"]),
            cpu_us(self.redis.pid) if self.redis else 0.0,
        )

    def store_bytes(self) -> int:
        """Return the memory usage that Redis reports."""
        assert self.redis is not None
        lines = self.redis.command("INFO", "memory").split()
        (line,) = (line for line in lines if line.startswith("used_memory:"))
        return int(line.partition(":")[2])


@asynccontextmanager
async def open_fleet(
    world: FleetBenchWorld, setup: FleetSetup, scale: Scale, *, seed: int
) -> AsyncIterator[RunningFleet]:
    """Start all parts in order; the first bridge becomes the consumer."""
    async with AsyncExitStack() as stack:
        some = await stack.enter_async_context(windows(world.pin.others))
        redis = None
        if setup.inbox == "redis:":
            redis = await stack.enter_async_context(
                RedisServer.start(
                    world.folder / f"{setup.name}-redis",
                    options={"appendfsync": setup.fsync},
                )
            )
            stack.callback(_empty, redis.folder)
        members = [
            await stack.enter_async_context(
                running(
                    ServerKind(
                        f"{setup.name}-{number}",
                        setup.name,
                        setup.inbox,
                        group=setup.name,
                    ),
                    broker_url=world.node.url,
                    folder=world.folder,
                    pin=world.pin,
                    settings=_settings(setup, world.folder, redis),
                )
            )
            for number in range(setup.bridges)
        ]
        await asyncio.sleep(scale.start_s)
        servers = ServerGroup(members)
        publisher = stack.enter_context(closing(RawPublisher(world.node.url)))
        stage = Stage(servers, some, publisher, scale, seed)
        yield RunningFleet(setup, servers, stage, world, redis)


def _settings(
    setup: FleetSetup, folder: Path, redis: RedisServer | None
) -> Mapping[str, str]:
    inbox = redis.url if redis else f"sqlite:{folder / setup.name}-0.sqlite3"
    shards = {"BRIDGE_SHARDS": str(setup.shards)} if setup.shards > 1 else {}
    return {"BRIDGE_INBOX": inbox, **shards, **setup.settings}


def _empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    folder.rmdir()
