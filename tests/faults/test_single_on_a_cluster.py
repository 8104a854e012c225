"""Ownership of a namespace on a cluster of which a node dies; see test_ownership."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from bridge.amqp.connection import BrokerAddress
from bridge.core.broker_names import BrokerNames
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.test_ownership import acquires, connect
from tests.rabbit_cluster import RabbitCluster, start_cluster

WITHIN_S = 180 * SLOW_FACTOR


@pytest.fixture
async def cluster() -> AsyncIterator[RabbitCluster]:
    async with start_cluster(ready_within_s=90 * SLOW_FACTOR) as cluster:
        yield cluster


@pytest.mark.timeout(WITHIN_S)
async def test_ownership_passes_on_when_the_node_of_its_holder_dies(
    cluster: RabbitCluster, namespace: str
) -> None:
    """The remaining nodes have a majority, and give the lock message to one other bridge."""
    names = BrokerNames(namespace)
    addresses = [
        BrokerAddress((url,), timeout_s=10 * SLOW_FACTOR) for url in cluster.urls
    ]
    async with AsyncExitStack() as stack:
        first = await connect(stack, addresses[2], names, has_own_inbox=True)
        assert await acquires(first)
        second = await connect(stack, addresses[0], names, has_own_inbox=True)
        third = await connect(stack, addresses[1], names, has_own_inbox=False)
        assert not await acquires(second)
        assert not await acquires(third)

        await cluster.nodes[2].kill()

        await eventually(lambda: acquires(second), within_s=60)
        assert not await acquires(third)
        await cluster.nodes[2].restart()
        assert not await acquires(third)
        late = await connect(stack, addresses[2], names, has_own_inbox=True)
        assert not await acquires(late)
