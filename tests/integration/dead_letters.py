"""Reading the dead letter queue byte by byte, as an operator's tool would."""

from dataclasses import dataclass

from bridge.broker.connection import BrokerAddress, Purpose, open_connection
from bridge.broker.frame_reader import DeliveryReader
from bridge.broker.local_node import LocalNode
from bridge.core.message import Delivery
from bridge.core.properties import Properties
from tests.conftest import eventually


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What was set aside."""

    body: bytes
    properties: Properties


async def take_dead_letters(broker: LocalNode, queue: str) -> list[DeadLetter]:
    """Take all that is in `queue` now, and ack it."""
    connection = await open_connection(
        BrokerAddress((broker.url,)), purpose=Purpose.CHECK, reader=DeliveryReader
    )
    found: list[Delivery] = []
    try:
        connection.reader.on_deliveries = found.extend
        channel = await connection.open_channel(confirms=False)
        count = (await channel.queue_declare(queue, passive=True)).message_count or 0

        async def never_called(_message: object) -> None: ...

        await channel.basic_consume(queue, never_called)
        await eventually(lambda: len(found) >= count)
        if found:
            await channel.basic_ack(found[-1].tag, multiple=True)
    finally:
        await connection.leave()
    return [DeadLetter(one.body, one.properties) for one in found]
