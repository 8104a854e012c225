"""Acks are sent together where that saves work for the broker, and never too late."""

import asyncio

from bridge.amqp.consume.consumer import ConsumerState
from bridge.core.broker_names import BrokerNames
from bridge.core.message import Delivery
from tests.conftest import eventually
from tests.integration.amqp.conftest import (
    IntakeMaker,
    Raw,
    RecordingConnection,
    consumer_on,
)
from tests.unit.amqp.wire import content, deliver, method, short


def tag_of(frame: bytes) -> int:
    """Return the delivery tag in a frame of Basic.Ack."""
    assert frame[7:11] == b"\x00\x3c\x00\x50"
    assert frame[19] == 1  # multiple
    return int.from_bytes(frame[11:19], "big")


def acks_of(connection: RecordingConnection) -> list[tuple[int, int]]:
    """Remove and return the recorded acks: tag, and 1 if it acks all before it."""
    sent = b"".join(connection.frames)
    connection.frames.clear()
    frames = [sent[at : at + 21] for at in range(0, len(sent), 21)]
    return [(int.from_bytes(each[11:19], "big"), each[19]) for each in frames]


async def test_acks_of_small_batches_are_sent_together(
    raw: Raw, names: BrokerNames, consuming: IntakeMaker
) -> None:
    """Within 10 ms, at once if there are many, and the last when the queue is released."""
    async with consuming():
        pass  # it declares the queue
    connection = RecordingConnection()
    consumer = consumer_on(raw, names.inbound_queue(), connection)
    await consumer.start()
    for tag in range(1, 15):
        chunk = deliver(raw.channel.number, tag) + b"".join(
            content(raw.channel.number, b"\x00\x00", b"{}")
        )
        connection.reader.feed_data(chunk)

    assert consumer.ack(1)
    assert consumer.ack(2)
    assert not connection.frames
    await eventually(lambda: len(connection.frames) == 1)
    assert consumer.ack(11)
    assert consumer.ack(12)
    assert consumer.ack(13)
    leaving = asyncio.create_task(consumer.leave(), name="leave")
    await eventually(lambda: consumer.is_draining)
    assert consumer.ack(14)
    await leaving

    assert consumer.state is ConsumerState.CLOSED
    assert [tag_of(frame) for frame in connection.frames] == [2, 12, 14]


async def test_an_ack_that_cannot_be_sent_wakes_the_session(
    raw: Raw, names: BrokerNames, consuming: IntakeMaker
) -> None:
    """Batches read states only, so a loss must not wait for the next look of the session."""
    async with consuming():
        pass  # it declares the queue
    consumer = consumer_on(raw, names.inbound_queue())
    await consumer.start()
    consumer._on_deliveries([Delivery(1, False, b"", b"ann", b"", b"{}", "q")])  # noqa: FBT003 - a field
    await raw.channel.close()
    await eventually(consumer._changed.is_set)
    consumer._changed.clear()

    assert consumer.ack(1)

    await eventually(consumer._changed.is_set)
    assert not consumer.is_alive()


async def test_held_deliveries_are_left_out_of_acks_until_they_are_acked(
    raw: Raw, names: BrokerNames, consuming: IntakeMaker
) -> None:
    """One ack up to the first of them, then one each; a tag is never acked twice."""
    async with consuming():
        pass  # it declares the queue
    connection = RecordingConnection()
    consumer = consumer_on(raw, names.inbound_queue(), connection)
    await consumer.start()
    deliveries = [
        Delivery(tag, False, b"", b"ann", b"", b"{}", "q")  # noqa: FBT003 - a field
        for tag in range(1, 13)
    ]
    consumer._on_deliveries(deliveries)
    third, fifth, ninth = deliveries[2], deliveries[4], deliveries[8]

    assert all(map(consumer.hold, (third, fifth, ninth)))
    assert consumer.ack(7)
    assert consumer.in_flight == 5 + 2
    assert consumer.flush_acks()
    assert acks_of(connection) == [(2, 1), (4, 0), (6, 0), (7, 0)]

    consumer.ack_held(fifth)
    assert consumer.ack(10)
    assert consumer.flush_acks()
    assert acks_of(connection) == [(5, 0), (8, 0), (10, 0)]

    consumer.ack_held(third)
    assert consumer.flush_acks()
    assert acks_of(connection) == [(3, 1)]

    assert consumer.ack(12)
    assert (consumer.in_flight, consumer.still_s) == (1, 0)  # it is no stall
    consumer.ack_held(ninth)
    assert consumer.flush_acks()
    assert acks_of(connection) == [(12, 1)]
    assert consumer.in_flight == 0


async def test_a_held_delivery_that_is_put_back_is_not_published_again(
    raw: Raw, names: BrokerNames, consuming: IntakeMaker
) -> None:
    """A batch of several queues is taken again if another of its consumers is lost."""
    async with consuming():
        pass
    connection = RecordingConnection()
    consumer = consumer_on(raw, names.inbound_queue(), connection)
    await consumer.start()
    first = Delivery(1, False, b"", b"ann", b"", b"{}", "q")  # noqa: FBT003 - a field
    consumer._on_deliveries([first])
    consumer.take(max_deliveries=1, max_bytes=100)
    assert consumer.hold(first)
    consumer.ack_held(first)

    consumer.put_back([first])

    assert consumer.was_published(first)
    assert consumer.ack(1)
    assert consumer.flush_acks()
    assert acks_of(connection) == [(1, 1)]
    assert consumer.in_flight == 0


async def test_only_some_deliveries_can_be_held(raw: Raw, names: BrokerNames) -> None:
    """A quarter of the prefetch of 40: the others need the rest."""
    consumer = consumer_on(raw, names.inbound_queue())
    deliveries = [
        Delivery(tag, False, b"", b"ann", b"", b"{}", "q")  # noqa: FBT003 - a field
        for tag in range(1, 13)
    ]
    consumer._on_deliveries(deliveries)

    assert [consumer.hold(each) for each in deliveries] == [True] * 10 + [False] * 2


async def test_a_waiting_ack_is_not_sent_once_the_broker_closes_the_channel(
    raw: Raw, names: BrokerNames, consuming: IntakeMaker
) -> None:
    """
    The broker would close the connection, and with it the consumers of all shards.

    The library answers the broker before it reports the channel as closed.
    """
    async with consuming():
        pass
    connection = RecordingConnection()
    consumer = consumer_on(raw, names.inbound_queue(), connection)
    await consumer.start()
    consumer._on_deliveries([Delivery(1, False, b"", b"ann", b"", b"{}", "q")])  # noqa: FBT003 - a field
    assert consumer.ack(1)
    reason = b"\x01\x94" + short(b"NOT_FOUND") + b"\0" * 4
    connection.reader.feed_data(method(raw.channel.number, 40, reason, class_id=20))

    assert not consumer.flush_acks()
    assert not connection.frames


async def test_an_ack_is_not_sent_after_a_call_that_failed(
    raw: Raw, names: BrokerNames, consuming: IntakeMaker
) -> None:
    """The library closes a channel whose call was cancelled or took too long."""
    async with consuming():
        pass
    connection = RecordingConnection()
    consumer = consumer_on(raw, names.inbound_queue(), connection)
    await consumer.start()
    consumer._on_deliveries([Delivery(1, False, b"", b"ann", b"", b"{}", "q")])  # noqa: FBT003 - a field
    confirming = asyncio.create_task(consumer.confirm())
    await asyncio.sleep(0)
    confirming.cancel()
    await asyncio.wait({confirming})
    consumer.ack(1)

    assert not consumer.flush_acks()
    assert not connection.frames


async def test_nothing_that_was_acked_is_redelivered_after_an_orderly_end(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """Waiting acks are sent before the connection is closed."""
    async with consuming() as taker:
        for number in range(5):
            await raw.publish(names.messages, body=b"%d" % number)
        await taker.take(5)
    async with consuming() as taker:
        await raw.publish(names.messages, body=b"new")
        await taker.take(1)

    assert taker.bodies == [b"new"]
