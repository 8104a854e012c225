"""What a consumer hears when it asks whether the broker has cut it off."""

import asyncio

import pytest

from bridge.amqp.consume.consumer import ConsumerSession
from bridge.amqp.frame_reader import DeliveryReader
from bridge.core.broker_names import BrokerNames
from bridge.errors import BrokerUnavailableError
from bridge.metrics import Metrics
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import IntakeMaker, Raw
from tests.integration.amqp.proxy import TcpProxy


async def test_the_active_consumer_is_confirmed_until_it_is_cut_off(
    consuming: IntakeMaker,
    raw: Raw,
    names: BrokerNames,
    proxy: TcpProxy,
) -> None:
    """With others in its line, and many deliveries under way on its channel."""
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


async def test_a_queue_that_says_it_has_no_consumer_confirms_none(
    raw: Raw,
    names: BrokerNames,
    metrics: Metrics,
    consuming: IntakeMaker,
) -> None:
    """So says a node that cannot reach the leader of the queue, which may have given it away."""
    queue = names.inbound_queue()
    async with consuming():
        pass  # declares it

    async def has_no_consumer() -> bool:
        told = await raw.channel.queue_declare(queue, passive=True)
        return told.consumer_count == 0

    await eventually(has_no_consumer)  # the broker forgets ours a little late
    consumer = ConsumerSession(
        raw.channel,
        queue=queue,
        timeout_s=10 * SLOW_FACTOR,
        arrived=asyncio.Event(),
        look=asyncio.Event(),
        metrics=metrics,
        write=lambda _: True,
        reader=DeliveryReader(),
        waiting_max_bytes=1000,
    )

    with pytest.raises(BrokerUnavailableError, match="its leader does not answer"):
        await consumer.confirm()
