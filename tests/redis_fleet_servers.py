"""Several private Redis servers that belong together, for tests."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.redis_server import RedisServer


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
