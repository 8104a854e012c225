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
from bridge.demo.private_node import LocalNode
from bridge.errors import TopologyError
from tests.integration.amqp.conftest import Raw

TIMEOUT_S = 10.0


@pytest.fixture
async def connection(
    address: BrokerAddress,
) -> AsyncIterator[BrokerConnection[FrameReader]]:
    opened = await open_connection(address, purpose=Purpose.CHECK, reader=FrameReader)
    yield opened
    await opened.disconnect()


@pytest.fixture
async def poor(
    broker: LocalNode, names: BrokerNames
) -> AsyncIterator[BrokerConnection[FrameReader]]:
    """A log-in that may not do anything with our names."""
    user = f"poor-{names.namespace}"
    await broker.ctl("add_user", user, "pw")
    await broker.ctl("set_permissions", user, "^$", "^$", "^$")
    url = str(URL(broker.url).with_user(user).with_password("pw"))
    opened = await open_connection(
        BrokerAddress((url,)), purpose=Purpose.CHECK, reader=FrameReader
    )
    yield opened
    await opened.disconnect()
    await broker.ctl("delete_user", user)


async def test_declaring_twice_changes_nothing(
    connection: BrokerConnection[FrameReader], wanted: Topology
) -> None:
    """Every connect declares."""
    await declare(connection, wanted, timeout_s=TIMEOUT_S)
    await declare(connection, wanted, timeout_s=TIMEOUT_S)

    findings = await compare(connection, wanted, timeout_s=TIMEOUT_S)

    assert {finding.state for finding in findings} == {ComparisonState.OK}
    assert len(findings) == len(wanted.exchanges) + len(wanted.queues)


async def test_comparing_declares_nothing(
    connection: BrokerConnection[FrameReader], wanted: Topology
) -> None:
    """`bridge check` looks; it must not leave anything behind."""
    for _ in range(2):
        findings = await compare(connection, wanted, timeout_s=TIMEOUT_S)

        assert {finding.state for finding in findings} == {ComparisonState.MISSING}
        assert all("bridge run will declare it" in finding.text for finding in findings)


async def test_each_difference_is_found(
    connection: BrokerConnection[FrameReader],
    wanted: Topology,
    names: BrokerNames,
    raw: Raw,
) -> None:
    """One run of `bridge check` tells all of them, each with its way out."""
    await raw.channel.exchange_declare(
        names.messages, exchange_type="fanout", durable=True
    )
    await raw.channel.queue_declare(names.dead, durable=True)

    findings = await compare(connection, wanted, timeout_s=TIMEOUT_S)

    different = {
        finding.name: finding.text
        for finding in findings
        if finding.state is ComparisonState.DIFFERENT
    }
    assert different == {
        f"exchange {names.messages}": (
            "has type = fanout, the bridge needs topic; "
            "delete it, or set another BRIDGE_NAMESPACE"
        ),
        f"queue {names.dead}": different[f"queue {names.dead}"],
    }
    assert "drain and delete the queue" in different[f"queue {names.dead}"]


async def test_a_poor_login_is_told_what_it_needs(
    poor: BrokerConnection[FrameReader], wanted: Topology
) -> None:
    """Least privilege is encouraged, so it must be easy to get right."""
    findings = await compare(poor, wanted, timeout_s=TIMEOUT_S)
    assert {finding.state for finding in findings} <= {
        ComparisonState.REFUSED,
        ComparisonState.MISSING,
    }

    with pytest.raises(TopologyError, match="configure, write and read permission"):
        await declare(poor, wanted, timeout_s=TIMEOUT_S)
