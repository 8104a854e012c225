"""Reading the dead letter queue byte by byte, as an operator's tool would."""

from bridge.amqp.connection import BrokerAddress, Purpose, open_connection
from bridge.amqp.frame_reader import DeliveryReader
from bridge.core.message import Delivery
from bridge.demo.private_node import LocalNode
from tests.conftest import eventually


async def take_all(broker: LocalNode, queue: str) -> list[Delivery]:
    """Take all that is ready in `queue`, in its order, and ack it."""
    connection = await open_connection(
        BrokerAddress((broker.url,)), purpose=Purpose.CHECK, reader=DeliveryReader
    )
    come: list[Delivery] = []
    found: list[Delivery] = []
    try:
        channel = await connection.open_channel(confirms=False)
        connection.reader.subscribe(channel.number, queue, come.extend)
        count = (await channel.queue_declare(queue, passive=True)).message_count or 0

        async def never_called(_message: object) -> None: ...

        await channel.basic_consume(queue, never_called)
        # As they come: a quorum queue hands out no more than 2,000 before an ack.
        while len(found) < count:
            await eventually(lambda: come, within_s=60)
            found += come
            come.clear()
            await channel.basic_ack(found[-1].tag, multiple=True)
    finally:
        await connection.leave()
    return found  # what came since is given back to the queue
