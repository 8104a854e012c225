"""Private Redis servers as a cluster, with replicas, or with Sentinels, for tests."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Self

from tests.redis_server import RedisServer

# Periods of Sentinel in ms; the defaults are a second and more. A Sentinel does not choose
# a replica whose last INFO is older than five pings, and while the master is down an INFO
# comes every second.
_SENTINEL_PERIODS: Final = {
    "ask": "100",
    "info": "100",
    "min-link-reconnect": "100",
    "ping": "300",
    "publish": "100",
}


def join_cluster(masters: Sequence[RedisServer], *replicas: RedisServer) -> None:
    """Form a cluster of `masters`; `replicas` follow the first of them."""
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
    """Start a master and its replicas, and wait until they are in sync."""
    # By default a master waits five seconds for further replicas.
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
    """Start three Sentinels that monitor `master` and its replicas as `main`."""
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
            # Sentinels before Redis 7 ignore this and use the defaults.
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
                query = ("SENTINEL", "MASTER", "main")
                found = f"{name}\n{count}"
                await asyncio.to_thread(each.wait_until, found, *query)
        yield sentinels


@dataclass(frozen=True, slots=True)
class SlotMove:
    """The move of a slot to another master, in the steps of redis-cli."""

    slot: str
    masters: Sequence[RedisServer]
    source: RedisServer
    target: RedisServer

    @classmethod
    def of_slot(cls, slot: int, masters: Sequence[RedisServer]) -> Self:
        """Return the move of `slot` to the master after its owner."""
        index = next(
            number
            for number in range(len(masters))
            if slot < 16384 * (number + 1) // len(masters)
        )
        target = masters[(index + 1) % len(masters)]
        return cls(str(slot), masters, masters[index], target)

    def begin(self) -> None:
        """Set the slot to importing and migrating, so that clients are redirected by key."""
        ids = {node: node.command("CLUSTER", "MYID") for node in self.masters}
        for node, word, other in (
            (self.target, "IMPORTING", self.source),
            (self.source, "MIGRATING", self.target),
        ):
            words = ("CLUSTER", "SETSLOT", self.slot, word, ids[other])
            assert node.command(*words) == "+OK"

    def move_keys(self, pattern: str = "*") -> None:
        """Move the keys of the slot that match."""
        count = self.source.command("CLUSTER", "COUNTKEYSINSLOT", self.slot)[1:]
        query = ("CLUSTER", "GETKEYSINSLOT", self.slot, count)
        keys = self.source.command(*query).splitlines()
        target = (self.target.host, str(self.target.port))
        for key in keys:
            if fnmatchcase(key, pattern):
                words = ("MIGRATE", *target, key, "0", "5000")
                assert self.source.command(*words) in {"+OK", "+NOKEY"}

    def end(self) -> None:
        """Move the remaining keys, and announce the new owner to all nodes."""
        while self.source.command("CLUSTER", "COUNTKEYSINSLOT", self.slot) != ":0":
            self.move_keys()
        owner = self.target.command("CLUSTER", "MYID")
        for node in (self.target, self.source, *self.masters):
            words = ("CLUSTER", "SETSLOT", self.slot, "NODE", owner)
            assert node.command(*words) == "+OK"
