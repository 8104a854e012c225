"""Consuming a queue of dead letters in tests."""

from bridge.amqp.connection import BrokerAddress, Purpose, open_connection
from bridge.amqp.frame_reader import DeliveryReader
from bridge.core.message import Delivery
from tests.conftest import eventually
from tests.local_node import LocalNode


async def take_all(broker: LocalNode, queue: str) -> list[Delivery]:
    """Consume and ack all ready messages of `queue`, in order."""
    connection = await open_connection(
        BrokerAddress((broker.url,)), purpose=Purpose.CHECK, reader=DeliveryReader
    )
    received: list[Delivery] = []
    found: list[Delivery] = []
    try:
        channel = await connection.open_channel(confirms=False)
        connection.reader.subscribe(channel.number, queue, received.extend)
        count = (await channel.queue_declare(queue, passive=True)).message_count or 0

        async def never_called(_message: object) -> None: ...

        await channel.basic_consume(queue, never_called)
        # A quorum queue delivers at most 2,000 messages before an ack.
        while len(found) < count:
            await eventually(lambda: received, within_s=60)
            found += received
            received.clear()
            await channel.basic_ack(found[-1].tag, multiple=True)
    finally:
        await connection.disconnect()
    return found  # later messages are requeued when the connection closes
