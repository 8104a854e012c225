"""Dead letters for tests, published as the bridge does it, in large numbers."""

from collections.abc import Iterator, Sequence
from uuid import uuid4

import aiormq
from aiormq.abc import ChannelFrame

from bridge.core.broker_names import BrokerNames
from bridge.core.message import Delivery
from bridge.core.properties import (
    PERSISTENT,
    Properties,
    header_bytes,
    render_properties,
    render_table,
)
from bridge.enums import Header
from tests.conftest import eventually
from tests.local_node import LocalNode
from tests.unit.amqp.wire import publish

_AT_ONCE = 500
BASE_S = 1_700_000_000


def dead_letter_properties(
    number: int,
    *,
    names: BrokerNames,
    reason: str = "attempts_exhausted",
    user: str = "ann",
    message_id: bytes | None = None,
) -> bytes:
    """Return the properties that the bridge writes into a dead letter."""
    headers: dict[str, str | int | bytes] = {
        "x-number": number,
        Header.REASON: reason,
        Header.ERROR: f"attempt 4: message {number}",
        Header.TIME: BASE_S + number,
        Header.ATTEMPT: 4,
        Header.ORIGIN_EXCHANGE: names.messages,
        Header.ORIGIN_QUEUE: names.inbound_queue(),
        Header.ROUTING_KEY: user,
        Header.DEAD_LETTER_ID: uuid4().hex,
    }
    properties = Properties(
        headers=render_table(headers),
        delivery_mode=PERSISTENT,
        message_id=message_id,
    )
    return render_properties(properties)


async def fill(
    channel: aiormq.Channel, exchange: str, messages: Iterator[tuple[str, bytes, bytes]]
) -> None:
    """Publish messages (user, raw properties, body); the broker has them when this returns."""
    frames: list[bytes] = []

    async def flush() -> None:
        await channel.write_queue.put(
            ChannelFrame(b"".join(frames), should_close=False)
        )
        await channel.basic_qos(
            prefetch_count=0
        )  # the reply follows all earlier frames
        frames.clear()

    for user, raw_properties, body in messages:
        frames.append(
            publish(
                channel.number,
                exchange.encode(),
                user.encode(),
                raw_properties=raw_properties,
                body=body,
            )
        )
        if len(frames) == _AT_ONCE:
            await flush()
    if frames:
        await flush()


async def publish_dead_letters(
    broker: LocalNode,
    names: BrokerNames,
    count: int,
    *,
    users: Sequence[str] = ("ann",),
    reasons: Sequence[str] = ("attempts_exhausted",),
    start: int = 0,
) -> None:
    """Publish `count` dead letters to the existing queue; the bodies are numbers."""
    connection = aiormq.Connection(broker.url)
    await connection.connect()
    try:
        channel = await connection.channel(publisher_confirms=False)
        assert isinstance(channel, aiormq.Channel)
        before = (
            await channel.queue_declare(names.dead, passive=True)
        ).message_count or 0
        await fill(
            channel,
            names.dead,
            (
                (
                    users[number % len(users)],
                    dead_letter_properties(
                        number,
                        names=names,
                        user=users[number % len(users)],
                        reason=reasons[number % len(reasons)],
                    ),
                    str(number).encode(),
                )
                for number in range(start, start + count)
            ),
        )

        async def is_stored() -> bool:
            reply = await channel.queue_declare(names.dead, passive=True)
            return (reply.message_count or 0) >= before + count

        await eventually(is_stored, within_s=60)
    finally:
        await connection.close()


async def ready(broker: LocalNode, queue: str) -> int:
    """Return how many messages are ready in `queue`."""
    connection = aiormq.Connection(broker.url)
    await connection.connect()
    try:
        channel = await connection.channel(publisher_confirms=False)
        return (await channel.queue_declare(queue, passive=True)).message_count or 0
    finally:
        await connection.close()


def numbers(deliveries: Sequence[Delivery]) -> list[int]:
    """Return the numbers of dead letters, in order."""
    return [int(delivery.body) for delivery in deliveries]


def header(delivery: Delivery, name: str) -> bytes | None:
    """Return the bytes of a string header."""
    return header_bytes(delivery.properties.headers, name)
