"""HTTP requests to a worker's operator API, over its Unix socket, each with a deadline."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import aiohttp
from yarl import URL

# Longer than the longest deadline of the API itself, a trace over many dead letters.
_TIMEOUT_S: Final = 60.0
_KEPT_HEADERS: Final = ("Content-Type", "Retry-After", "WWW-Authenticate", "Allow")


@dataclass(frozen=True, slots=True)
class WorkerRequest:
    """A request to a worker; `target` is the encoded path and query."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    timeout_s: float = _TIMEOUT_S


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """The answer of a worker."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class WorkerClient:
    """A client for one worker's socket. It sends requests while it is open."""

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Accept requests while the block runs."""
        connector = aiohttp.UnixConnector(path=self._socket_path, limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            self._session = session
            try:
                yield
            finally:
                self._session = None

    async def ask(self, request: WorkerRequest) -> WorkerAnswer | None:
        """
        Send a request; ``None`` if the worker does not answer in time.

        Cancellation:
            Safe; the worker may still process the request.

        """
        if self._session is None:
            return None
        try:
            async with (
                asyncio.timeout(request.timeout_s),
                self._session.request(
                    request.method,
                    URL(f"http://worker{request.target}", encoded=True),
                    headers=request.headers,
                    data=request.body or None,
                    allow_redirects=False,
                ) as response,
            ):
                body = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None
        headers = {
            name: response.headers[name]
            for name in _KEPT_HEADERS
            if name in response.headers
        }
        return WorkerAnswer(response.status, body, headers)
