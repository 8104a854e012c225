"""
Three private RabbitMQ nodes as one cluster, for the tests of many bridges.

The first node starts alone and with it epmd; then the others join it concurrently. Each is
a `LocalNode`, which tests can kill, freeze and restart separately.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from tests.local_node import LocalNode

NODES: Final = 3
PLUGINS: Final = ("rabbitmq_sharding",)
# As in production: a node without a majority pauses until it has one.
_CONFIG: Final = ("cluster_partition_handling = pause_minority",)


@dataclass(frozen=True, slots=True)
class RabbitCluster:
    """The nodes. The first one owns epmd and is closed last."""

    nodes: Sequence[LocalNode]

    @property
    def urls(self) -> tuple[str, ...]:
        """The AMQP URL of each node."""
        return tuple(node.url for node in self.nodes)


@asynccontextmanager
async def start_cluster(
    *, ready_within_s: float = 120.0
) -> AsyncIterator[RabbitCluster]:
    """
    Start the nodes, wait until all answer, and remove them at the end.

    Raises:
        PrivateNodeError: If a node does not start.

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
