"""When the broker hears of what is settled: in few acks, and soon."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import aiormq

from bridge.broker.consumer import ConsumerSession
from bridge.metrics import Metrics
from tests.conftest import eventually


@dataclass
class FakeReply:
    """The broker's answer to Basic.Consume."""

    consumer_tag: str = "ctag"


@dataclass
class FakeChannel:
    """A channel whose frames stay in their queue."""

    write_queue: asyncio.Queue[Any]
    number: int = 1
    closing: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    on_consumer_cancel_callbacks: set[object] = field(default_factory=set)

    async def basic_qos(self, **_: object) -> None:
        """Take any prefetch."""

    async def basic_consume(self, *_: object) -> FakeReply:
        """Have a consumer."""
        return FakeReply()

    def acked_tags(self) -> list[int]:
        """Take out the acks that wait, and return their tags."""
        frames = [
            self.write_queue.get_nowait() for _ in range(self.write_queue.qsize())
        ]
        return [int.from_bytes(frame.payload[11:19], "big") for frame in frames]


async def consuming(channel: FakeChannel, *, prefetch_count: int) -> ConsumerSession:
    """Start a session on `channel`."""
    session = ConsumerSession(
        cast("aiormq.Channel", channel),
        queue="q",
        timeout_s=5,
        arrived=asyncio.Event(),
        acked=asyncio.Event(),
        metrics=Metrics(),
    )
    await session.start_consumer(prefetch_count)
    return session


async def test_small_batches_are_acked_together_soon() -> None:
    """An ack for each message costs us as much as the message, and the broker more."""
    channel = FakeChannel(asyncio.Queue(10))
    session = await consuming(channel, prefetch_count=500)

    for tag in (1, 2, 3):
        session.ack(tag)

    assert channel.acked_tags() == []
    await eventually(channel.write_queue.qsize)
    assert channel.acked_tags() == [3]


async def test_a_share_of_the_prefetch_is_acked_at_once() -> None:
    """The broker hands over no more than the prefetch: it must never wait for an ack."""
    channel = FakeChannel(asyncio.Queue(10))
    session = await consuming(channel, prefetch_count=8)

    session.ack(1)
    session.ack(2)
    session.ack(3)

    assert channel.acked_tags() == [2]


async def test_with_a_prefetch_of_one_each_message_is_acked_at_once() -> None:
    """Else each would wait for the ack of the one before."""
    channel = FakeChannel(asyncio.Queue(10))
    session = await consuming(channel, prefetch_count=1)

    session.ack(1)
    session.ack(2)

    assert channel.acked_tags() == [1, 2]


async def test_an_ack_that_finds_no_room_is_sent_when_there_is_some() -> None:
    """A broker that stops reading for a moment must not cost an ack."""
    channel = FakeChannel(asyncio.Queue(1))
    session = await consuming(channel, prefetch_count=1)

    session.ack(1)
    session.ack(2)

    assert channel.acked_tags() == [1]
    await eventually(channel.write_queue.qsize)
    assert channel.acked_tags() == [2]


async def test_what_is_settled_can_be_acked_before_its_time() -> None:
    """An orderly end leaves nothing to be delivered twice."""
    channel = FakeChannel(asyncio.Queue(10))
    session = await consuming(channel, prefetch_count=500)

    session.ack(7)
    session.send_acks()

    assert channel.acked_tags() == [7]
