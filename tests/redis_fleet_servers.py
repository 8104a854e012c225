"""Several private Redis servers that belong together, for tests."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Self

from tests.redis_server import RedisServer

# What Sentinels do every second, or less often (ms). They choose no replica whose last
# INFO is older than five pings, and while the master is down that comes each second.
_SENTINEL_PERIODS: Final = {
    "ask": "100",
    "info": "100",
    "min-link-reconnect": "100",
    "ping": "300",
    "publish": "100",
}


def join_cluster(masters: Sequence[RedisServer], *replicas: RedisServer) -> None:
    """Make a cluster of masters, and replicas of the first of them."""
    first, nodes = masters[0], [*masters, *replicas]
    for number, node in enumerate(masters):
        ends = [16384 * each // len(masters) for each in (number, number + 1)]
        node.command("CLUSTER", "ADDSLOTSRANGE", str(ends[0]), str(ends[1] - 1))
        node.command("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
    for node in nodes[1:]:
        node.command("CLUSTER", "MEET", first.host, str(first.port))
    for node in nodes:
        node.wait_until(f"cluster_known_nodes:{len(nodes)}", "CLUSTER", "INFO")
    for replica in replicas:
        replica.command("CLUSTER", "REPLICATE", first.command("CLUSTER", "MYID"))
        replica.wait_until("master_link_status:up", "INFO", "replication")
    for node in nodes:
        node.wait_until("cluster_state:ok", "CLUSTER", "INFO")


@asynccontextmanager
async def replicated(
    folder: Path, *, replicas: int = 1, options: dict[str, str] | None = None
) -> AsyncIterator[tuple[RedisServer, list[RedisServer]]]:
    """Start a master and its replicas, which have followed when it is handed out."""
    # It would wait five seconds for others to come along.
    given = {"repl-diskless-sync-delay": "0", "repl-timeout": "5"} | (options or {})
    async with AsyncExitStack() as stack:
        master, *others = [
            await stack.enter_async_context(
                RedisServer.start(folder / str(number), options=given)
            )
            for number in range(1 + replicas)
        ]
        for each in others:
            each.command("REPLICAOF", master.host, str(master.port))
        for each in others:
            up = ("master_link_status:up", "INFO", "replication")
            await asyncio.to_thread(each.wait_until, *up)
        yield master, others


@asynccontextmanager
async def watched(
    folder: Path, master: RedisServer, *, replicas: int = 1
) -> AsyncIterator[list[RedisServer]]:
    """Start three Sentinels, which know `master`, each other and the replicas as `main`."""
    async with AsyncExitStack() as stack:
        sentinels = [
            await stack.enter_async_context(
                RedisServer.start(
                    folder / f"sentinel-{number}", is_durable=False, is_sentinel=True
                )
            )
            for number in range(3)
        ]
        for each in sentinels:
            # Those older than Redis 7 keep to their seconds.
            for name, period in _SENTINEL_PERIODS.items():
                each.command("SENTINEL", "DEBUG", f"{name}-period", period)
            monitored = ("main", master.host, str(master.port), "2")
            each.command("SENTINEL", "MONITOR", *monitored)
            for name, value in (
                ("down-after-milliseconds", "600"),
                ("failover-timeout", "2000"),
            ):
                each.command("SENTINEL", "SET", "main", name, value)
        for each in sentinels:
            for name, count in (("num-other-sentinels", 2), ("num-slaves", replicas)):
                asked = ("SENTINEL", "MASTER", "main")
                found = f"{name}\n{count}"
                await asyncio.to_thread(each.wait_until, found, *asked)
        yield sentinels


@dataclass(frozen=True, slots=True)
class Move:
    """A slot on its way from one master to another, step by step as redis-cli does it."""

    slot: str
    masters: Sequence[RedisServer]
    source: RedisServer
    target: RedisServer

    @classmethod
    def of_slot(cls, slot: int, masters: Sequence[RedisServer]) -> Self:
        """Move a slot to the master behind the one that has it."""
        place = next(
            number
            for number in range(len(masters))
            if slot < 16384 * (number + 1) // len(masters)
        )
        target = masters[(place + 1) % len(masters)]
        return cls(str(slot), masters, masters[place], target)

    def begin(self) -> None:
        """Tell both: from here on keys that are not there are asked for at the other."""
        ids = {node: node.command("CLUSTER", "MYID") for node in self.masters}
        for node, word, other in (
            (self.target, "IMPORTING", self.source),
            (self.source, "MIGRATING", self.target),
        ):
            words = ("CLUSTER", "SETSLOT", self.slot, word, ids[other])
            assert node.command(*words) == "+OK"

    def move_keys(self, pattern: str = "*") -> None:
        """Move the keys that are there and match."""
        count = self.source.command("CLUSTER", "COUNTKEYSINSLOT", self.slot)[1:]
        asked = ("CLUSTER", "GETKEYSINSLOT", self.slot, count)
        keys = self.source.command(*asked).splitlines()
        target = (self.target.host, str(self.target.port))
        for key in keys:
            if fnmatchcase(key, pattern):
                words = ("MIGRATE", *target, key, "0", "5000")
                assert self.source.command(*words) in {"+OK", "+NOKEY"}

    def end(self) -> None:
        """Move the rest, and tell all that it is there."""
        while self.source.command("CLUSTER", "COUNTKEYSINSLOT", self.slot) != ":0":
            self.move_keys()
        owner = self.target.command("CLUSTER", "MYID")
        for node in (self.target, self.source, *self.masters):
            words = ("CLUSTER", "SETSLOT", self.slot, "NODE", owner)
            assert node.command(*words) == "+OK"
