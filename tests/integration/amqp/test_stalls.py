"""No hand-over and no lost consumer leaves a queue without progress."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from bridge.amqp.connection import (
    BrokerAddress,
    Purpose,
    ignore_message,
    open_connection,
)
from bridge.amqp.consume.consumer import IntakeLimits
from bridge.amqp.consume.session import IntakeSession
from bridge.amqp.frame_reader import DeliveryReader
from bridge.core.broker_names import BrokerNames
from bridge.errors import BrokerUnavailableError
from bridge.metrics import Metrics
from tests.conftest import eventually
from tests.integration.amqp.conftest import IntakeMaker, Raw, reconnects

LIMITS = IntakeLimits(stall_s=0.5, pause_s=0.01, poll_s=0.1, look_s=0.1, still_s=0.3)
STILL = "bridge_shard_still_seconds"


@pytest.fixture
async def session(
    address: BrokerAddress, raw: Raw, names: BrokerNames, metrics: Metrics
) -> AsyncIterator[IntakeSession]:
    """A session that consumes two queues and maintains its consumers."""
    queues = names.inbound_queues(2)
    for queue in queues:
        await raw.channel.queue_declare(queue, durable=True)
    connection = await open_connection(
        address, purpose=Purpose.CONSUME, reader=DeliveryReader
    )
    session = IntakeSession(
        connection,
        queues,
        prefetch_count=20,
        arrived=asyncio.Event(),
        metrics=metrics,
        limits=LIMITS,
    )
    await session.start()
    maintaining = asyncio.create_task(session.maintain(), name="maintain")
    yield session
    maintaining.cancel()
    await asyncio.wait([maintaining])
    await connection.disconnect()
    for queue in queues:
        await raw.channel.queue_delete(queue)


async def test_a_hand_over_whose_deliveries_are_not_settled_ends(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames, metrics: Metrics
) -> None:
    """The bridge waited for them without a limit, and the next one received nothing."""
    async with consuming(limits=LIMITS) as first:
        await raw.publish(names.messages, body=b"0")
        batch = await first.next()
        async with consuming() as second:
            await raw.publish(names.messages, body=b"1")
            batch.consumers[0].drain()

            await second.take(2)

            assert not first.intake.is_current(batch)
            assert not await first.intake.ack(batch)
            await eventually(
                lambda: first.intake.in_flight_of(names.inbound_queue()) == 0
            )

    assert second.bodies == [b"0", b"1"]
    assert reconnects(metrics, "consume") == 0


async def test_a_hand_over_acks_what_was_settled_before_it_gave_up(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """Only the deliveries that were not settled are repeated."""
    limits = IntakeLimits(batch_deliveries=1, stall_s=0.5, pause_s=0.01, poll_s=0.1)
    async with consuming(limits=limits) as first:
        for number in range(3):
            await raw.publish(names.messages, body=b"%d" % number)
        await eventually(lambda: first.intake.in_flight == 3)
        settled = await first.next()
        (consumer,) = settled.consumers
        # It consumes before the hand-over begins: the first consumes again after that.
        async with consuming() as second:
            consumer.drain()
            assert await first.intake.ack(settled)
            await second.take(2)

    assert second.bodies == [b"1", b"2"]


async def test_a_lost_channel_costs_the_other_queues_nothing(
    session: IntakeSession, raw: Raw
) -> None:
    """The whole connection was closed, and the deliveries of all shards were repeated."""
    lost, other = session.consumers
    for queue in session.queues:
        await raw.publish("", queue.encode())
    await eventually(lambda: session.waiting == 2)
    batch = session.take_batch()
    assert batch is not None
    assert len(batch.deliveries) == 2

    await lost._channel.basic_ack(4711)  # an unknown tag closes the channel with 406
    await eventually(lambda: not session.is_current(batch))

    assert session.put_back(batch) == 1
    await eventually(lambda: session.waiting == 2)
    assert other in session.consumers
    again = session.take_batch()
    assert again is not None
    assert {one.queue: one.redelivered for one in again.deliveries} == {
        lost.queue: True,
        other.queue: False,
    }
    assert session.ack(again)


async def test_deliveries_that_are_acked_are_not_put_back(
    session: IntakeSession, raw: Raw
) -> None:
    """They would be stored twice."""
    lost, _ = session.consumers
    for queue in session.queues:
        await raw.publish("", queue.encode())
    await eventually(lambda: session.waiting == 2)
    batch = session.take_batch()
    assert batch is not None

    lost.give_up("a test")
    assert not session.ack(batch)

    assert session.put_back(batch) == 1
    await eventually(lambda: session.waiting == 1)
    again = session.take_batch()
    assert again is not None
    assert [one.queue for one in again.deliveries] == [lost.queue]


async def test_deliveries_that_are_not_settled_are_reported(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames, metrics: Metrics
) -> None:
    """The bridge was ready, and every queue had an active consumer."""
    queue = names.inbound_queue()

    def still_s() -> float | None:
        return metrics.registry.get_sample_value(STILL, {"queue": queue})

    async with consuming(limits=LIMITS) as taker:
        assert still_s() == 0
        await raw.publish(names.messages, body=b"0")
        batch = await taker.next()

        await eventually(taker.intake.stalls)
        (stall,) = taker.intake.stalls()
        assert stall.startswith(
            f"queue {queue}: 1 deliveries wait, nothing settled for"
        )
        assert (still_s() or 0) > LIMITS.still_s

        assert await taker.intake.ack(batch)
        assert taker.intake.stalls() == []
        assert still_s() == 0


async def test_a_queue_that_delivers_nothing_is_consumed_again(
    session: IntakeSession, raw: Raw
) -> None:
    """Messages waited at the broker, and nothing showed it."""
    stuck, _ = session.consumers
    await raw.publish("", stuck.queue.encode())
    await eventually(lambda: session.waiting == 1)
    batch = session.take_batch()
    assert batch is not None
    assert session.ack(batch)
    # A delivery that is lost on its way: the broker has another consumer active.
    await stuck._channel.basic_cancel(stuck._consumer_tag or "")
    stuck._channel.consumers[stuck._consumer_tag or ""] = ignore_message
    await raw.publish("", stuck.queue.encode())
    observing = asyncio.create_task(session.observe(), name="observe")

    await eventually(lambda: session.waiting == 1)

    assert stuck not in session.consumers
    observing.cancel()
    await asyncio.wait([observing])


async def test_a_queue_that_cannot_be_consumed_is_reported(
    session: IntakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example because its leader is gone; the other queues go on."""
    lost, other = session.consumers

    async def refuse(queue: str) -> None:
        raise BrokerUnavailableError(f"consume {queue}", "a test")

    monkeypatch.setattr(session, "consume", refuse)
    lost.give_up("a test")

    await eventually(session.stalls)
    assert session.stalls()[0].startswith(f"queue {lost.queue} has not been consumed")
    assert session.consumers == [other]
    monkeypatch.undo()
    await eventually(lambda: not session.stalls())
