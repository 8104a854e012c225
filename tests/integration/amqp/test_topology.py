"""The topology on a real broker: declared twice, compared, refused."""

from collections.abc import AsyncIterator

import pytest
from yarl import URL

from bridge.amqp.connection import (
    BrokerAddress,
    BrokerConnection,
    Purpose,
    open_connection,
)
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.topology import ComparisonState, Topology, compare, declare
from bridge.core.broker_names import BrokerNames
from bridge.errors import TopologyError
from tests.integration.amqp.conftest import Raw
from tests.local_node import LocalNode

TIMEOUT_S = 10.0


@pytest.fixture
async def connection(
    address: BrokerAddress,
) -> AsyncIterator[BrokerConnection[FrameReader]]:
    opened = await open_connection(address, purpose=Purpose.CHECK, reader=FrameReader)
    yield opened
    await opened.disconnect()


@pytest.fixture
async def restricted(
    broker: LocalNode, names: BrokerNames
) -> AsyncIterator[BrokerConnection[FrameReader]]:
    """Connect as a user without permissions on the bridge's names."""
    user = f"restricted-{names.namespace}"
    await broker.add_user(user, "pw", "^$", "^$", "^$")
    url = str(URL(broker.url).with_user(user).with_password("pw"))
    opened = await open_connection(
        BrokerAddress((url,)), purpose=Purpose.CHECK, reader=FrameReader
    )
    yield opened
    await opened.disconnect()
    await broker.delete_user(user)


async def test_declaring_twice_changes_nothing(
    connection: BrokerConnection[FrameReader], wanted: Topology
) -> None:
    """The bridge declares its topology at every connect."""
    await declare(connection, wanted, timeout_s=TIMEOUT_S)
    await declare(connection, wanted, timeout_s=TIMEOUT_S)

    comparisons = await compare(connection, wanted, timeout_s=TIMEOUT_S)

    assert {comparison.state for comparison in comparisons} == {ComparisonState.OK}
    assert len(comparisons) == len(wanted.exchanges) + len(wanted.queues)


async def test_comparing_declares_nothing(
    connection: BrokerConnection[FrameReader], wanted: Topology
) -> None:
    """`bridge check` must not change the broker."""
    for _ in range(2):
        comparisons = await compare(connection, wanted, timeout_s=TIMEOUT_S)

        assert {comparison.state for comparison in comparisons} == {
            ComparisonState.MISSING
        }
        assert all(
            "bridge run will declare it" in comparison.text
            for comparison in comparisons
        )


async def test_each_difference_is_found(
    connection: BrokerConnection[FrameReader],
    wanted: Topology,
    names: BrokerNames,
    raw: Raw,
) -> None:
    """One run of `bridge check` reports all of them, each with its fix."""
    await raw.channel.exchange_declare(
        names.messages, exchange_type="fanout", durable=True
    )
    await raw.channel.queue_declare(names.dead, durable=True)

    comparisons = await compare(connection, wanted, timeout_s=TIMEOUT_S)

    different = {
        comparison.name: comparison.text
        for comparison in comparisons
        if comparison.state is ComparisonState.DIFFERENT
    }
    assert different == {
        f"exchange {names.messages}": (
            "has type = fanout, the bridge needs topic; "
            "delete it, or set another BRIDGE_NAMESPACE"
        ),
        f"queue {names.dead}": different[f"queue {names.dead}"],
    }
    assert "drain and delete the queue" in different[f"queue {names.dead}"]


async def test_a_missing_permission_is_named(
    restricted: BrokerConnection[FrameReader], wanted: Topology
) -> None:
    """Least privilege is recommended, so it must be easy to set up."""
    comparisons = await compare(restricted, wanted, timeout_s=TIMEOUT_S)
    assert {comparison.state for comparison in comparisons} <= {
        ComparisonState.REFUSED,
        ComparisonState.MISSING,
    }

    with pytest.raises(TopologyError, match="configure, write and read permission"):
        await declare(restricted, wanted, timeout_s=TIMEOUT_S)
