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
from tests.unit.amqp.wire import content, deliver


def tag_of(frame: bytes) -> int:
    """Return the delivery tag in a frame of Basic.Ack."""
    assert frame[7:11] == b"\x00\x3c\x00\x50"
    assert frame[19] == 1  # multiple
    return int.from_bytes(frame[11:19], "big")


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


async def test_a_waiting_ack_is_not_sent_on_a_closed_channel(
    raw: Raw, names: BrokerNames, consuming: IntakeMaker
) -> None:
    """The broker would close the connection, and with it the consumers of all shards."""
    async with consuming():
        pass
    connection = RecordingConnection()
    consumer = consumer_on(raw, names.inbound_queue(), connection)
    await consumer.start()
    consumer._on_deliveries([Delivery(1, False, b"", b"ann", b"", b"{}", "q")])  # noqa: FBT003 - a field
    assert consumer.ack(1)

    await raw.channel.close()

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
