"""Doors on a free port, and a publisher that keeps what it is given."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

Client = TestClient[web.Request, web.Application]
Open = Callable[[web.Application], Awaitable[Client]]


@dataclass
class Desk:
    """A publisher that takes everything, or fails as it is told."""

    published: list[dict[str, Any]] = field(default_factory=list)
    failure: Exception | None = None

    async def publish_message(self, **message: Any) -> None:
        """Keep the message."""
        if self.failure is not None:
            raise self.failure
        self.published.append(message)


@dataclass
class Patient:
    """A bridge that says how it is."""

    reasons: list[str] = field(default_factory=list)

    def unready_reasons(self) -> list[str]:
        """Say what keeps it from being ready."""
        return self.reasons


@pytest.fixture
def desk() -> Desk:
    """The broker's side."""
    return Desk()


@pytest.fixture
def health() -> Patient:
    """A healthy bridge."""
    return Patient()


@pytest_asyncio.fixture
async def open_app() -> AsyncIterator[Open]:
    """Serve an app and return a client for it; all are closed at the end."""
    async with AsyncExitStack() as stack:

        async def open_one(app: web.Application) -> Client:
            return await stack.enter_async_context(TestClient(TestServer(app)))

        yield open_one
