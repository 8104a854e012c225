"""Applications on a free port, and fakes that they need."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from bridge.amqp.publish.messages import MessagePublisher

Client = TestClient[web.Request, web.Application]
Open = Callable[[web.Application], Awaitable[Client]]


@dataclass
class FakePublisher(MessagePublisher):
    """Records every message, or fails."""

    published: list[dict[str, Any]] = field(default_factory=list)
    failure: Exception | None = None

    async def publish_message(self, **message: Any) -> None:
        """Record the message, or raise `failure`."""
        if self.failure is not None:
            raise self.failure
        self.published.append(message)


class OpenGuard:
    """Lets every request pass."""

    def refusal(self, request: web.Request) -> web.Response | None:
        """Refuse nothing."""
        assert request
        return None


@pytest.fixture
def publisher() -> FakePublisher:
    """A publisher whose broker confirms everything."""
    return FakePublisher()


@pytest_asyncio.fixture
async def open_app() -> AsyncIterator[Open]:
    """Serve an app and return a client for it; all are closed at the end."""
    async with AsyncExitStack() as stack:

        async def open_one(app: web.Application) -> Client:
            return await stack.enter_async_context(TestClient(TestServer(app)))

        yield open_one
