"""Workers that receive the events of bridges, and a queue that takes none."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

from tests.local_node import LocalNode

Keep = Callable[[AbstractIncomingMessage], object]


class PresenceWorker:
    """A worker that receives the events about presence, and drops repeats."""

    def __init__(self) -> None:
        self._ids: set[str | None] = set()
        self.changes: list[tuple[str, str]] = []
        self.bodies: list[dict[str, object]] = []

    def receive(self, event: AbstractIncomingMessage) -> None:
        """Record an event, unless a bridge repeats it after a crash."""
        if event.message_id in self._ids:
            return
        self._ids.add(event.message_id)
        body = json.loads(event.body)
        self.bodies.append(body)
        self.changes.append((body["user"], (event.routing_key or "").split(".")[1]))


@asynccontextmanager
async def presence_worker(
    broker: LocalNode, namespace: str
) -> AsyncIterator[PresenceWorker]:
    """Receive all events about presence, also of a bridge that starts later."""
    worker = PresenceWorker()
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        await consume_events(channel, namespace, worker.receive, topics="user.*")
        yield worker


async def consume_events(
    channel: AbstractChannel, namespace: str, keep: Keep, *, topics: str = "#"
) -> None:
    """Give `keep` each event from now on; bridge may declare the exchange later."""
    exchange = await channel.declare_exchange(
        f"{namespace}.events", "topic", durable=True
    )
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(exchange, topics)
    await consume(queue, keep)


async def consume_replies(channel: AbstractChannel, keep: Keep) -> str:
    """Declare a queue for replies and return its name; give `keep` what arrives there."""
    queue = await channel.declare_queue(exclusive=True)
    await consume(queue, keep)
    return queue.name


async def consume(queue: AbstractQueue, keep: Keep) -> None:
    """Give `keep` what arrives in a queue."""

    async def receive(message: AbstractIncomingMessage) -> None:
        keep(message)

    await queue.consume(receive, no_ack=True)


async def queue_without_room(channel: AbstractChannel) -> AbstractQueue:
    """Declare a queue that makes the broker refuse what it is published for."""
    return await channel.declare_queue(
        exclusive=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"}
    )


async def refuse_all(channel: AbstractChannel, exchange: str) -> AbstractQueue:
    """Let the broker refuse all that is published to an exchange, until the queue is deleted."""
    full = await queue_without_room(channel)
    await full.bind(exchange, "#")
    return full
