"""
A queue that is given away: nothing goes back to it that would come out of order.

What goes back to a quorum queue stands behind what went back before and still waits
(docs/measurements.md). So a consumer that leaves takes all that it was given.
"""

import asyncio

import pytest

import bridge.amqp.consume.consumer
from bridge.amqp.consume.consumer import BatchLimits
from bridge.core.broker_names import BrokerNames
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import IntakeMaker, Raw, Taker
from tests.integration.amqp.proxy import TcpProxy


async def publish(raw: Raw, names: BrokerNames, count: int, *, size: int = 4) -> None:
    """Publish as many numbered bodies of this size."""
    for number in range(count):
        await raw.publish(names.messages, body=b"%04d" % number + b"x" * (size - 4))


async def test_order_holds_when_a_consumer_with_a_lower_prefetch_is_lost(
    proxy: TcpProxy, consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """What the one before was given and gave back would come first."""
    async with consuming(proxy.address, prefetch_count=20) as taker:
        await publish(raw, names, 100)
        await eventually(lambda: taker.intake.in_flight == 20)
        await taker.intake.set_prefetch(3)
        await taker.take_from_one()
        await eventually(lambda: taker.intake.in_flight == 3)
        assert 20 <= len(taker.taken) <= 60  # much waits behind these three

        proxy.cut()
        await eventually(lambda: taker.intake.in_flight == 0)
        await taker.take(100)

    assert taker.bodies == [b"%04d" % number for number in range(100)]


async def test_nothing_goes_back_when_another_takes_over_a_backlog(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """A restart would else bring thousands of messages twice over the wire."""
    async with consuming(prefetch_count=50) as first, consuming() as second:
        await publish(raw, names, 500)
        await first.take(100)
        taking = asyncio.create_task(take_on(first), name="take on")
        await first.intake.stop_consuming()
        async with asyncio.timeout(10 * SLOW_FACTOR):
            await first.intake.settled()
        taking.cancel()
        await asyncio.wait([taking])
        await second.take(500 - len(first.taken))

    assert 100 <= len(first.taken) < 500
    assert first.bodies + second.bodies == [b"%04d" % number for number in range(500)]
    assert not any(delivery.redelivered for delivery in second.taken)


async def test_what_waits_is_bounded_by_bytes_though_all_that_was_given_is_taken(
    consuming: IntakeMaker,
    raw: Raw,
    names: BrokerNames,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else one that leaves would fill the memory; and it does not wait for ever."""
    monkeypatch.setattr(
        bridge.amqp.consume.consumer, "_LEAVE_WITHIN_S", 0.5 * SLOW_FACTOR
    )
    size = 100_000
    limits = BatchLimits(waiting_bytes=5 * size)
    async with consuming():
        pass  # it declares
    await publish(raw, names, 100, size=size)
    async with consuming(prefetch_count=100, limits=limits) as taker:
        await eventually(lambda: taker.intake.in_flight > 5)
        consumer = taker.intake._session.consumers[0]  # type: ignore[union-attr] # it consumes
        await eventually(lambda: consumer._is_deaf)
        # A chunk that was read is looked at as a whole.
        assert taker.intake.in_flight < 15

        await taker.take(100)

    assert [body[:4] for body in taker.bodies] == [b"%04d" % n for n in range(100)]


async def take_on(taker: Taker) -> None:
    """Take and ack until cancelled."""
    while True:
        await taker.take(len(taker.taken) + 1)
