"""Publish one message and wait for its receipt, as a producer that needs the outcome does."""

import asyncio
from collections.abc import Sequence
from typing import Final

from aiormq.exceptions import AMQPChannelError, DeliveryError

from bridge.amqp.connection import (
    CONNECTION_LOST,
    BrokerAddress,
    Purpose,
    close_reason,
    connected,
    ignore_message,
    problem_text,
)
from bridge.amqp.frame_reader import DeliveryReader
from bridge.amqp.publish.channels import RawProperties
from bridge.core.message import Delivery
from bridge.core.properties import Properties, render_properties
from bridge.errors import BrokerUnavailableError, PublishRefusedError

# RabbitMQ replaces it by the address of the channel: it needs no queue and no permission.
REPLY_TO: Final = "amq.rabbitmq.reply-to"


async def publish_and_wait(
    address: BrokerAddress,
    exchange: str,
    user: str,
    *,
    body: bytes,
    properties: Properties,
    wait_s: float,
) -> bytes | None:
    """
    Publish a message with `REPLY_TO`, and return the body of its receipt.

    Returns:
        ``None`` without a receipt within `wait_s`.

    Raises:
        BrokerUnavailableError: If the broker is away, or the connection is lost during the
            wait. The broker may have the message.
        PublishRefusedError: If the broker refuses the message.

    """
    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def receive(deliveries: Sequence[Delivery]) -> None:
        if not received.done():  # a repeat
            received.set_result(deliveries[0].body)

    async with connected(
        address, purpose=Purpose.PUBLISH, reader=DeliveryReader
    ) as connection:
        channel = await connection.open_channel(confirms=True)
        connection.reader.subscribe(channel.number, REPLY_TO, receive)
        async with connection.call(f"publish to {exchange}"):
            await channel.basic_consume(REPLY_TO, ignore_message, no_ack=True)
            raw = RawProperties(render_properties(properties))
            try:
                await channel.basic_publish(
                    body, exchange=exchange, routing_key=user, properties=raw
                )
            except (AMQPChannelError, DeliveryError) as exc:
                raise PublishRefusedError(exchange, problem_text(exc)) from exc
        await asyncio.wait(
            (received, channel.closing),
            timeout=wait_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if received.done():
            return received.result()
        if channel.closing.done():
            problem = close_reason(channel) or CONNECTION_LOST
            raise BrokerUnavailableError("wait for the receipt", problem)
    return None
