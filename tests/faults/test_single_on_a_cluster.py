"""Whoever takes messages alone, on a cluster of which a node dies; see test_alone."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from bridge.amqp.connection import BrokerAddress
from bridge.core.broker_names import BrokerNames
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.test_ownership import has_turn, one
from tests.rabbit_cluster import RabbitCluster, start_cluster

WITHIN_S = 180 * SLOW_FACTOR


@pytest.fixture
async def cluster() -> AsyncIterator[RabbitCluster]:
    async with start_cluster(ready_within_s=90 * SLOW_FACTOR) as cluster:
        yield cluster


@pytest.mark.timeout(WITHIN_S)
async def test_the_turn_passes_on_when_the_node_of_who_has_it_dies(
    cluster: RabbitCluster, namespace: str
) -> None:
    """The others' brokers have a majority; what the dead node held is given on, and not twice."""
    names = BrokerNames(namespace)
    addresses = [
        BrokerAddress((url,), timeout_s=10 * SLOW_FACTOR) for url in cluster.urls
    ]
    async with AsyncExitStack() as stack:
        first = await one(stack, addresses[2], names, has_own_inbox=True)
        assert await has_turn(first)
        second = await one(stack, addresses[0], names, has_own_inbox=True)
        third = await one(stack, addresses[1], names, has_own_inbox=False)
        assert not await has_turn(second)
        assert not await has_turn(third)

        await cluster.nodes[2].kill()

        await eventually(lambda: has_turn(second), within_s=60)
        assert not await has_turn(third)
        await cluster.nodes[2].restart()
        assert not await has_turn(third)
        late = await one(stack, addresses[2], names, has_own_inbox=True)
        assert not await has_turn(late)
