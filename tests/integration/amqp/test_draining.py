"""
A queue that is released: no delivery returns to it, because that would break the order.

A quorum queue delivers a returned message after others that were returned before it
(docs/decisions). So a draining consumer settles everything that it has received.
"""

import asyncio

from bridge.amqp.consume.consumer import ConsumerState, IntakeLimits
from bridge.core.broker_names import BrokerNames
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import IntakeMaker, Raw, Taker
from tests.integration.amqp.proxy import TcpProxy


async def publish(raw: Raw, names: BrokerNames, count: int, *, size: int = 4) -> None:
    """Publish `count` numbered bodies of this size."""
    for number in range(count):
        await raw.publish(names.messages, body=b"%04d" % number + b"x" * (size - 4))


async def test_order_holds_when_a_consumer_with_a_lower_prefetch_is_lost(
    proxy: TcpProxy, consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """Deliveries that the earlier consumer had returned would arrive first."""
    async with consuming(proxy.address, prefetch_count=20) as taker:
        await publish(raw, names, 100)
        await eventually(lambda: taker.intake.in_flight == 20)
        await taker.intake.set_prefetch(3)
        await taker.take_from_one()
        await eventually(lambda: taker.intake.in_flight == 3)
        assert 20 <= len(taker.taken) <= 60  # many wait behind these three

        proxy.cut()
        await eventually(lambda: taker.intake.in_flight == 0)
        await taker.take(100)

    assert taker.bodies == [b"%04d" % number for number in range(100)]


async def test_nothing_returns_to_the_queue_when_another_bridge_takes_over_a_backlog(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """Otherwise each restart would redeliver thousands of messages."""
    async with consuming(prefetch_count=50) as first, consuming() as second:
        await publish(raw, names, 500)
        await first.take(100)
        taking = asyncio.create_task(keep_taking(first), name="keep taking")
        await first.intake.stop_consuming()
        async with asyncio.timeout(10 * SLOW_FACTOR):
            await first.intake.settled()
        taking.cancel()
        await asyncio.wait([taking])
        await second.take(500 - len(first.taken))

    assert 100 <= len(first.taken) < 500
    assert first.bodies + second.bodies == [b"%04d" % number for number in range(500)]
    assert not any(delivery.redelivered for delivery in second.taken)


async def test_waiting_deliveries_are_bounded_by_bytes_while_a_consumer_drains(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """A draining consumer must not fill the memory, and does not wait forever."""
    size = 100_000
    limits = IntakeLimits(waiting_bytes=5 * size, drain_s=0.5 * SLOW_FACTOR)
    async with consuming():
        pass  # it declares the queue
    await publish(raw, names, 100, size=size)
    async with consuming(prefetch_count=100, limits=limits) as taker:
        await eventually(lambda: taker.intake.in_flight > 5)
        consumer = taker.intake._session.consumers[0]  # type: ignore[union-attr] # it consumes
        await eventually(lambda: consumer.state is ConsumerState.DISCARDING)
        # A chunk is accepted as a whole.
        assert taker.intake.in_flight < 15

        await taker.take(100)

    assert [body[:4] for body in taker.bodies] == [b"%04d" % n for n in range(100)]


async def keep_taking(taker: Taker) -> None:
    """Take and ack until cancelled."""
    while True:
        await taker.take(len(taker.taken) + 1)
