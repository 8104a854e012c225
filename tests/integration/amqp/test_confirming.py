"""A consumer verifies that the broker has not cut it off."""

import pytest

from bridge.amqp.consume.consumer import IntakeLimits
from bridge.core.broker_names import BrokerNames
from bridge.errors import BrokerUnavailableError
from tests.conftest import eventually
from tests.integration.amqp.conftest import IntakeMaker, Raw, consumer_on
from tests.integration.amqp.proxy import TcpProxy


async def test_the_active_consumer_is_confirmed_until_it_is_cut_off(
    consuming: IntakeMaker,
    raw: Raw,
    names: BrokerNames,
    proxy: TcpProxy,
) -> None:
    """Other consumers wait for the queue, and many deliveries are on their way."""
    async with consuming(proxy.address) as taker, consuming():
        for number in range(200):
            await raw.publish(names.messages, body=b"%d" % number)
        batch = await taker.next()
        (consumer,) = batch.consumers
        await consumer.confirm()
        await consumer.confirm()

        proxy.cut()

        with pytest.raises(BrokerUnavailableError):
            await consumer.confirm()


async def test_a_queue_that_reports_no_consumer_confirms_none(
    raw: Raw,
    names: BrokerNames,
    consuming: IntakeMaker,
) -> None:
    """A node answers this if it cannot reach the leader, which may have replaced the consumer."""
    queue = names.inbound_queue()
    async with consuming():
        pass  # it declares the queue

    async def has_no_consumer() -> bool:
        reply = await raw.channel.queue_declare(queue, passive=True)
        return reply.consumer_count == 0

    await eventually(has_no_consumer)  # the broker removes the consumer a little later
    consumer = consumer_on(raw, queue)

    with pytest.raises(BrokerUnavailableError, match="its leader does not answer"):
        await consumer.confirm()
    assert consumer.is_alive()


async def test_a_consumer_that_is_not_confirmed_in_time_gives_up(
    raw: Raw, names: BrokerNames
) -> None:
    """The batches of all shards waited as long as one of them had no leader."""
    consumer = consumer_on(raw, names.inbound_queue(), limits=IntakeLimits(stall_s=0.0))

    with pytest.raises(BrokerUnavailableError):
        await consumer.confirm()

    assert not consumer.is_alive()
