"""Several private Redis servers that belong together, for tests."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from tests.redis_server import RedisServer

# What Sentinels do every second, or less often.
_SENTINEL_PERIODS: Final = ("info", "ping", "publish", "ask", "min-link-reconnect")


def join_cluster(nodes: Sequence[RedisServer]) -> None:
    """Make a cluster of three masters and, of the first one, a replica."""
    first, *others, replica = nodes
    for number, node in enumerate((first, *others)):
        ends = [str(16384 * each // 3) for each in (number, number + 1)]
        last = str(int(ends[1]) - 1)
        node.command("CLUSTER", "ADDSLOTSRANGE", ends[0], last)
        node.command("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
    for node in nodes[1:]:
        node.command("CLUSTER", "MEET", first.host, str(first.port))
    for node in nodes:
        node.wait_until("cluster_known_nodes:4", "CLUSTER", "INFO")
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
            for name in _SENTINEL_PERIODS:
                each.command("SENTINEL", "DEBUG", f"{name}-period", "100")
            monitored = ("main", master.host, str(master.port), "2")
            each.command("SENTINEL", "MONITOR", *monitored)
            for name, value in (
                ("down-after-milliseconds", "500"),
                ("failover-timeout", "2000"),
            ):
                each.command("SENTINEL", "SET", "main", name, value)
        for each in sentinels:
            for name, value in (("num-other-sentinels", 2), ("num-slaves", replicas)):
                asked = ("SENTINEL", "MASTER", "main")
                found = f"{name}\n{value}"
                await asyncio.to_thread(each.wait_until, found, *asked)
        yield sentinels
