"""
Bridges that share a store, with all that stands around them, and what each part uses.

All bridges run on the one processor that the bench gives to servers, the others on the
other: processor time is what is measured, and how many of them there are does not matter.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

from bridge.demo.private_node import LocalNode
from tests.bench.page_load import windows
from tests.bench.publisher import Publisher
from tests.bench.servers import Kind, Processors, Server, cpu_us, running
from tests.bench.works import Scale, Stage
from tests.redis_server import RedisServer


@dataclass(frozen=True, slots=True)
class SetUp:
    """
    What is measured.

    Attributes:
        name: In JSON and in names on the broker.
        bridges: How many.
        inbox: `sqlite:`, for one bridge alone, or `redis:`.
        shards: Of the way in.
        fsync: When Redis writes to the disk: `always`, before it answers, as a file's
            commit does; or `everysec`.
        traffic: Of a steady stream, how much of the usual.
        settings: More of each bridge's environment.

    """

    name: str
    bridges: int
    inbox: str = "redis:"
    shards: int = 1
    fsync: str = "always"
    traffic: float = 1.0
    settings: Mapping[str, str] = field(default_factory=dict)


class Herd(Server):
    """Several bridges as if they were one: what they use is added up."""

    def __init__(self, members: Sequence[Server]) -> None:
        first = members[0]
        super().__init__(first.kind, first.process, first.port, first.log)
        self.members = members

    def cpu_us(self) -> float:
        """Return the processor time of all of them; errors as `Server.cpu_us`."""
        return sum(member.cpu_us() for member in self.members)

    def rss_kib(self) -> int:
        """Resident memory of all of them in KiB."""
        return sum(member.rss_kib() for member in self.members)

    def freeze(self) -> None:
        """Stop all of them."""
        for member in self.members:
            member.freeze()

    def thaw(self) -> None:
        """Let all of them go on."""
        for member in self.members:
            member.thaw()


@dataclass(frozen=True, slots=True)
class Used:
    """Microseconds of processor time: of each bridge, of RabbitMQ, of Redis."""

    bridges: Sequence[float]
    broker: float
    store: float

    def since(self, before: "Used") -> "Used":
        """Return what was used from `before` to this."""
        pairs = zip(self.bridges, before.bridges, strict=True)
        return Used(
            [now - then for now, then in pairs],
            self.broker - before.broker,
            self.store - before.store,
        )


@dataclass
class World:
    """What all set-ups share."""

    node: LocalNode
    folder: Path
    pin: Processors


@dataclass
class Fleet:
    """A running set-up, and windows, and a worker."""

    set_up: SetUp
    herd: Herd
    stage: Stage
    world: World
    redis: RedisServer | None

    @property
    def exchange(self) -> str:
        """Where workers publish."""
        return self.herd.kind.names.messages

    async def open(self, users: Sequence[str], *, at: int | None = None) -> None:
        """Open a window for each of `users`: in turn, or all at the bridge `at`."""
        members = self.herd.members
        for number, member in enumerate(members):
            if at is None:
                own = users[number :: len(members)]
            else:
                own = users if number == at else ()
            if own:
                await self.stage.windows.open(member.port, own, syncs=True)

    def used(self) -> Used:
        """Return what all have used since they were started."""
        return Used(
            [member.cpu_us() for member in self.herd.members],
            cpu_us(self.world.node.pids["node"]),
            cpu_us(self.redis.pid) if self.redis else 0.0,
        )

    def store_bytes(self) -> int:
        """Return what Redis holds in memory, by its own count."""
        assert self.redis is not None
        lines = self.redis.command("INFO", "memory").split()
        (line,) = (line for line in lines if line.startswith("used_memory:"))
        return int(line.partition(":")[2])


@asynccontextmanager
async def open_fleet(
    world: World, set_up: SetUp, scale: Scale, *, seed: int
) -> AsyncIterator[Fleet]:
    """Start it all, in order, so that the first bridge is the one that consumes."""
    async with AsyncExitStack() as stack:
        some = await stack.enter_async_context(windows(world.pin.others))
        redis = None
        if set_up.inbox == "redis:":
            redis = await stack.enter_async_context(
                RedisServer.start(
                    world.folder / f"{set_up.name}-redis",
                    options={"appendfsync": set_up.fsync},
                )
            )
            stack.callback(_empty, redis.folder)
        members = [
            await stack.enter_async_context(
                running(
                    Kind(
                        f"{set_up.name}-{number}",
                        set_up.name,
                        set_up.inbox,
                        group=set_up.name,
                    ),
                    broker_url=world.node.url,
                    folder=world.folder,
                    pin=world.pin,
                    settings=_settings(set_up, world.folder, redis),
                )
            )
            for number in range(set_up.bridges)
        ]
        await asyncio.sleep(scale.start_s)
        herd = Herd(members)
        publisher = stack.enter_context(closing(Publisher(world.node.url)))
        stage = Stage(herd, some, publisher, scale, seed)
        yield Fleet(set_up, herd, stage, world, redis)


def _settings(
    set_up: SetUp, folder: Path, redis: RedisServer | None
) -> Mapping[str, str]:
    place = redis.url if redis else f"sqlite:{folder / set_up.name}-0.sqlite3"
    shards = {"BRIDGE_SHARDS": str(set_up.shards)} if set_up.shards > 1 else {}
    return {"BRIDGE_INBOX": place, **shards, **set_up.settings}


def _empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    folder.rmdir()
