"""Browsing stops before RabbitMQ drops dead letters at the delivery limit."""

import aiormq
import pytest

from bridge.amqp.connection import BrokerAddress
from bridge.amqp.dead_letters.delivery_limit import CHECK_AGAIN_S, DeliveryLimitGuard
from bridge.amqp.dead_letters.operations import DeadLetterQueue
from bridge.amqp.publish.publisher import Publisher
from bridge.core.broker_names import BrokerNames
from bridge.core.contracts.operator.dead_letters import (
    DeadLetterFilter,
    DeadLetterSelection,
)
from bridge.core.contracts.operator.jobs import JobKind
from bridge.core.message import Delivery
from bridge.core.properties import (
    PERSISTENT,
    Properties,
    render_properties,
    render_table,
)
from bridge.errors import BrokerUnavailableError
from bridge.http.jobs import OperatorJob
from bridge.metrics import Metrics
from tests.integration.operator.api_client import asking
from tests.integration.operator.dead_letter_fixtures import (
    fill,
    publish_dead_letters,
    ready,
)
from tests.integration.running import running_bridge, settings_for
from tests.local_node import LocalNode

_OF_TOM = {"filter": {"user": "tom"}, "dry_run": True}


def delivery_with(count: int, *, redelivered: bool) -> Delivery:
    """Return a delivery with this delivery count."""
    properties = Properties(headers=render_table({"x-delivery-count": count}))
    return Delivery(
        1, redelivered, b"", b"ann", render_properties(properties), b"1", "dead"
    )


async def test_dead_letters_near_the_limit_can_still_be_discarded(
    broker: LocalNode, namespace: str
) -> None:
    """The error text advises that; browsing is allowed again afterwards."""
    names = BrokerNames(namespace)
    address = BrokerAddress((broker.url,))
    async with running_bridge(settings_for(broker, namespace)):
        await publish_dead_letters(broker, names, 5)
    queue = DeadLetterQueue(
        address,
        names,
        publisher=Publisher(address, names, metrics=Metrics()),
        deliveries_max=3,
    )
    of_tom = DeadLetterSelection(filter=DeadLetterFilter(user="tom"))
    everything = DeadLetterSelection(all=True)

    with pytest.raises(BrokerUnavailableError, match="discard all of them"):  # noqa: PT012 - the number of sessions depends on the broker
        for _ in range(10):
            await queue.count(of_tom)
    counted = await queue.count(everything)
    await queue.discard(
        everything, counted, progress=OperatorJob("1", JobKind.DISCARD, 5, 0.0)
    )

    assert counted.matching == 5
    assert await ready(broker, names.dead) == 0
    await publish_dead_letters(broker, names, 1)
    assert (await queue.browse(lambda: lambda _: True)).matching == 1


async def test_a_delivery_count_of_a_producer_is_ignored(
    broker: LocalNode, namespace: str
) -> None:
    """RabbitMQ dead-letters an expired message with all its headers."""
    names = BrokerNames(namespace)
    properties = Properties(
        headers=render_table({"x-delivery-count": 1_000_000}), delivery_mode=PERSISTENT
    )
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        asking(running) as api,
    ):
        connection = aiormq.Connection(broker.url)
        await connection.connect()
        channel = await connection.channel()
        assert isinstance(channel, aiormq.Channel)
        await fill(
            channel, names.dead, iter([("ann", render_properties(properties), b"1")])
        )
        await connection.close()
        answers = [
            await api.ask("POST", "/api/dead/discard", _OF_TOM) for _ in range(3)
        ]

    assert [answer.status for answer in answers] == [200, 200, 200]


def test_browsing_is_tried_again_after_an_hour() -> None:
    """Another client than the bridge may have emptied the queue."""
    now_s = 0.0
    guard = DeliveryLimitGuard("dead", lambda: now_s)
    guard.inspect(delivery_with(900_000, redelivered=False))
    guard.refuse_near_limit()

    guard.inspect(delivery_with(900_000, redelivered=True))
    with pytest.raises(BrokerUnavailableError, match="redrive or discard all"):
        guard.refuse_near_limit()

    now_s = CHECK_AGAIN_S
    guard.refuse_near_limit()
