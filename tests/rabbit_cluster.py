"""
Three private RabbitMQ nodes as one cluster, for the tests of many bridges.

The first one starts alone and brings epmd; the others join it, at the same time. Each is
a `LocalNode`, to be killed, frozen and started again by itself.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from bridge.demo.private_node import LocalNode

NODES: Final = 3
PLUGINS: Final = ("rabbitmq_sharding",)
# As in production: a node that finds itself without a majority pauses until it has one.
_CONFIG: Final = ("cluster_partition_handling = pause_minority",)


@dataclass(frozen=True, slots=True)
class RabbitCluster:
    """The nodes; the first one keeps what all need and is closed last."""

    nodes: Sequence[LocalNode]

    @property
    def urls(self) -> tuple[str, ...]:
        """Where AMQP answers, a node each."""
        return tuple(node.url for node in self.nodes)

    async def members(self) -> set[str]:
        """Return the names of the nodes that the first one sees running."""
        told = await self.nodes[0].ctl("cluster_status", "--formatter", "json")
        return set(json.loads(told)["running_nodes"])


@asynccontextmanager
async def start_cluster(
    *, ready_within_s: float = 120.0
) -> AsyncIterator[RabbitCluster]:
    """
    Start the nodes and hand them out when all answer; remove them at the end.

    Raises:
        PrivateNodeError: If one of them does not start.

    """
    async with AsyncExitStack() as stack:

        async def start(joins: LocalNode | None) -> LocalNode:
            return await stack.enter_async_context(
                LocalNode.start(
                    joins=joins,
                    plugins=PLUGINS,
                    extra_config=_CONFIG,
                    ready_within_s=ready_within_s,
                )
            )

        first = await start(None)
        async with asyncio.TaskGroup() as tasks:
            others = [tasks.create_task(start(first)) for _ in range(NODES - 1)]
        yield RabbitCluster((first, *(each.result() for each in others)))
