"""Workers that answer requests of pages, and a page of the stock client."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aio_pika
import pytest_asyncio
from aio_pika.abc import AbstractIncomingMessage

from bridge.settings.model import Settings
from tests.conftest import eventually
from tests.integration.running import RunningBridge, running_bridge, settings_for
from tests.integration.sockets.js_pages import Pages, open_pages
from tests.local_node import LocalNode

EVENT = "job.cancel"


def request_settings(broker: LocalNode, namespace: str, **changes: object) -> Settings:
    """Return settings of a bridge that accepts `EVENT` from pages."""
    return settings_for(broker, namespace, **{"page_events": EVENT, **changes})


@asynccontextmanager
async def requesting_bridge(settings: Settings) -> AsyncIterator[RunningBridge]:
    """Run a bridge and wait until it can send requests."""
    async with running_bridge(settings) as running:
        client = running.bridge.components.page_requests.client
        await eventually(lambda: client.problem is None, within_s=20)
        yield running


@dataclass
class RequestWorker:
    """A worker that records its requests and replies when the test asks for it."""

    channel: aio_pika.abc.AbstractChannel
    requests: list[AbstractIncomingMessage] = field(default_factory=list)

    async def reply(
        self, request: AbstractIncomingMessage, body: bytes, **properties: Any
    ) -> None:
        """Reply as the documentation says, and ack the request."""
        message = aio_pika.Message(
            body, correlation_id=request.correlation_id, **properties
        )
        assert request.reply_to
        await self.channel.default_exchange.publish(
            message, request.reply_to, mandatory=False
        )
        await request.ack()


@asynccontextmanager
async def request_worker(
    broker: LocalNode,
    namespace: str,
    *,
    answer: Callable[[Any], object] | None = None,
    event: str = EVENT,
    queue: str | None = None,
) -> AsyncIterator[RequestWorker]:
    """
    Consume requests; without `answer` the test replies.

    Without `queue` it declares one that is bound for `event` and deleted at the end.
    """
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        if queue is None:
            found = await channel.declare_queue(exclusive=True)
            await found.bind(f"{namespace}.requests", event)
        else:
            found = await channel.get_queue(queue)
        worker = RequestWorker(channel)

        async def receive(request: AbstractIncomingMessage) -> None:
            worker.requests.append(request)
            if answer is not None:
                data = answer(json.loads(request.body))
                await worker.reply(request, json.dumps(data).encode())

        await found.consume(receive)
        yield worker


@pytest_asyncio.fixture
async def pages() -> AsyncIterator[Pages]:
    """A Node process with the official client."""
    async with open_pages() as opened:
        yield opened


async def connected_page(
    pages: Pages, running: RunningBridge, *, user: str = "ann", name: str = "page"
) -> None:
    """Open a window of `user`."""
    url = running.listening.public_url
    await pages.connected(name, url, auth={"token": running.token(user)})


async def ask(
    pages: Pages,
    data: object,
    *,
    event: str = EVENT,
    name: str = "page",
    within_s: float = 20,
) -> Any:
    """Send a request and return its answer, of which there is one only."""
    number = len(pages.all(name, "answer", event)) + 1
    pages.command("ask", name, event, data)
    return (await pages.until(name, "answer", event, count=number, within_s=within_s))[
        0
    ]
