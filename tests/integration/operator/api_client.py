"""A client of the operator API of a running bridge."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.integration.running import OPERATOR_TOKEN, RunningBridge


@dataclass
class ApiAnswer:
    """The status and the JSON of a response."""

    status: int
    body: Any


class ApiAsker:
    """A client of the API of one bridge, with the operator token."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def ask(self, method: str, path: str, body: object = None) -> ApiAnswer:
        """Send a request and read the JSON of its response."""
        async with self._session.request(
            method, self._url + path, json=body if body is not None else None
        ) as response:
            return ApiAnswer(response.status, await response.json(content_type=None))

    async def get(self, path: str) -> Any:
        """Return the body of a GET that must succeed."""
        answer = await self.ask("GET", path)
        assert answer.status == 200, answer
        return answer.body


@asynccontextmanager
async def asking(running: RunningBridge) -> AsyncIterator[ApiAsker]:
    """Yield a client of the API of `running`."""
    headers = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        yield ApiAsker(session, running.listening.operator_url)
