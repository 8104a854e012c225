"""Acks: told together where that saves the broker work, and never late where it matters."""

import asyncio

from bridge.amqp.consume.consumer import ConsumerSession
from bridge.amqp.frame_reader import DeliveryReader
from bridge.core.broker_names import BrokerNames
from bridge.metrics import Metrics
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import IntakeMaker, Raw


class Written(list[bytes]):
    """What was written to a connection."""

    def write(self, frame: bytes) -> bool:
        """Keep `frame`."""
        self.append(frame)
        return True


def tag_of(frame: bytes) -> int:
    """Return the delivery tag that a frame of Basic.Ack is about."""
    assert frame[7:11] == b"\x00\x3c\x00\x50"
    assert frame[19] == 1  # and all before it
    return int.from_bytes(frame[11:19], "big")


async def start(
    raw: Raw, names: BrokerNames, metrics: Metrics, frames: Written
) -> ConsumerSession:
    """Consume with a prefetch of 40, and write to `frames` instead of the connection."""
    consumer = ConsumerSession(
        raw.channel,
        queue=names.inbound_queue(),
        timeout_s=10 * SLOW_FACTOR,
        arrived=asyncio.Event(),
        look=asyncio.Event(),
        metrics=metrics,
        write=frames.write,
        reader=DeliveryReader(),
        waiting_max_bytes=1000,
    )
    await consumer.start(40)
    return consumer


async def test_acks_of_small_batches_are_told_together(
    raw: Raw, names: BrokerNames, metrics: Metrics, consuming: IntakeMaker
) -> None:
    """Within 10 ms, and at once when there are many; the last when the queue is given away."""
    async with consuming():
        pass  # declares it
    frames = Written()
    consumer = await start(raw, names, metrics, frames)

    assert consumer.ack(1)
    assert consumer.ack(2)
    assert not frames
    await eventually(lambda: len(frames) == 1)
    assert consumer.ack(11)
    assert consumer.ack(12)
    assert consumer.ack(13)
    consumer.leave()
    assert consumer.ack(14)
    await consumer.close()

    assert [tag_of(frame) for frame in frames] == [2, 12, 14]


async def test_an_ack_that_waits_is_not_sent_on_a_channel_that_was_closed(
    raw: Raw, names: BrokerNames, metrics: Metrics, consuming: IntakeMaker
) -> None:
    """The broker would end the connection, and with it every other shard's consumer."""
    async with consuming():
        pass
    frames = Written()
    consumer = await start(raw, names, metrics, frames)
    assert consumer.ack(1)

    await raw.channel.close()

    assert not consumer.tell()
    assert not frames


async def test_nothing_that_was_acked_comes_again_after_an_orderly_end(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """What waits to be told is told before the connection is closed."""
    async with consuming() as taker:
        for number in range(5):
            await raw.publish(names.messages, body=b"%d" % number)
        await taker.take(5)  # acks them
    async with consuming() as taker:
        await raw.publish(names.messages, body=b"new")
        await taker.take(1)

    assert taker.bodies == [b"new"]
