"""
The clients that pages and services use, unchanged, in several versions.

Each receives live messages, is cut, recovers without a loss, acks, and is refused. Clients
without recovery of their own send the position of their last message.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import socketio

from tests.conftest import eventually
from tests.integration.running import python_client
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.raw_pages import LIMIT_S
from tests.integration.sockets.running_server import Plan, RunningServer, open_server
from tests.integration.sockets.security import WITHOUT_AND_WITH_TLS, connector
from tests.tokens import token

# `None` is the newest. The aliases are in tests/package.json.
RECOVERING = [None, "4.6"]
OTHERS = ["4.5", "3.1"]
WAYS = pytest.mark.parametrize(
    "transports", [["websocket"], ["polling"], ["polling", "websocket"]], ids="+".join
)


async def acked(server: RunningServer) -> int:
    """Return the delivered mark of alice."""
    return (await server.inbox.state("alice")).delivered


@WITHOUT_AND_WITH_TLS
@WAYS
@pytest.mark.parametrize("version", [*RECOVERING, *OTHERS])
async def test_a_javascript_client_receives_acks_and_recovers(
    server: RunningServer, pages: Pages, version: str | None, transports: list[str]
) -> None:
    """What was under way at the cut, and what came during it, arrives once."""
    auth = {"token": token(), "acks": "manual"}
    await pages.connected(
        "page", server.url, version=version, transports=transports, auth=auth
    )
    await server.store_numbers("alice", start=0, stop=3)
    await pages.until("page", "event", "message", count=3)
    last = pages.positions("page")[-1]

    pages.command("emit", "page", "ack", last)
    assert await pages.until("page", "answer", "ack") == [{"ok": True}]
    assert await acked(server) == 3

    if version in OTHERS:
        pages.command("auth", "page", auth | {"position": last})
        pages.command("emit", "page", "ack", last)  # the driver has executed both then
        await pages.until("page", "answer", "ack", count=2)
    server.cut("alice")
    await server.store_numbers("alice", start=3, stop=6)
    (connected,) = await pages.until("page", "connect", count=2)
    await pages.until("page", "event", "message", count=6)

    assert pages.data("page") == list(range(6))
    assert connected["recovered"] is (True if version in RECOVERING else None)
    assert pages.data("page", "bridge:sync")[-1]["complete"] is True


@pytest.mark.parametrize("transport", ["websocket", "polling"])
@pytest.mark.parametrize("version", [*RECOVERING, *OTHERS])
async def test_a_javascript_client_is_refused_with_a_code(
    server: RunningServer, pages: Pages, version: str | None, transport: str
) -> None:
    """The page decides by it whether to get another token."""
    auth = {"token": "invalid"}
    pages.open("page", server.url, version=version, transports=[transport], auth=auth)
    (error,) = await pages.until("page", "connect_error")
    assert error["data"] == {"code": "token_invalid", "temporary": False}


class PythonPage:
    """A client of python-socketio that keeps its position."""

    def __init__(self, client: Any, url: str) -> None:
        self._client = client
        self._url = url
        self.data: list[object] = []
        self.syncs: list[dict[str, object]] = []
        self.notices: list[dict[str, object]] = []
        self.auth: dict[str, object] = {"token": token(), "acks": "manual"}
        client.on("message", self._message)
        client.on("bridge:sync", self.syncs.append)
        client.on("bridge:closing", self.notices.append)

    def _message(self, data: object, position: str) -> None:
        self.data.append(data)
        self.auth["position"] = position

    @property
    def is_connected(self) -> bool:
        """Whether the client is connected now."""
        return bool(self._client.connected)

    def on(self, event: str, handler: Callable[..., None]) -> None:
        """Call `handler` for an event of the client."""
        self._client.on(event, handler)

    async def call(self, method: str, *args: object, **options: object) -> Any:
        """Call a method of either kind of client."""
        function: Callable[..., Any] = getattr(self._client, method)
        async with asyncio.timeout(LIMIT_S):
            if isinstance(self._client, socketio.AsyncClient):
                return await function(*args, **options)
            return await asyncio.to_thread(function, *args, **options)

    async def connect(self, transports: list[str]) -> None:
        """Connect; each reconnect sends the position at that time."""
        await self.call(
            "connect", self._url, auth=lambda: self.auth, transports=transports
        )


@asynccontextmanager
async def python_page(kind: str, url: str) -> AsyncIterator[PythonPage]:
    """A client that is disconnected at the end."""
    options = {"reconnection_delay": 0.01, "reconnection_delay_max": 0.05}
    if kind == "async":
        async with python_client(connector=connector(), **options) as client:
            yield PythonPage(client, url)
        return
    page = PythonPage(socketio.Client(handle_sigint=False, **options), url)
    try:
        yield page
    finally:
        await page.call("shutdown")


@WITHOUT_AND_WITH_TLS
@WAYS
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_python_client_receives_acks_and_recovers(
    server: RunningServer, kind: str, transports: list[str]
) -> None:
    """It has no recovery of its own, but its `auth` may be a function."""
    async with python_page(kind, server.url) as page:
        await page.connect(transports)
        await eventually(lambda: len(page.syncs) == 1)
        await server.store_numbers("alice", start=0, stop=3)
        await eventually(lambda: len(page.data) == 3)

        reply = await page.call("call", "ack", page.auth["position"])
        assert reply == {"ok": True}
        assert await acked(server) == 3

        server.cut("alice")
        await server.store_numbers("alice", start=3, stop=6)
        await eventually(lambda: len(page.data) == 6)
        await eventually(lambda: len(page.syncs) == 2)

    assert page.data == list(range(6))
    assert page.syncs[-1]["complete"] is True


@pytest.mark.parametrize("transport", ["websocket", "polling"])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_python_client_is_refused_with_a_code(
    server: RunningServer, kind: str, transport: str
) -> None:
    """The library raises, and passes the data to `connect_error`."""
    errors: list[Any] = []
    async with python_page(kind, server.url) as page:
        page.auth = {"token": "invalid"}
        page._client.on("connect_error", errors.append)
        with pytest.raises(socketio.exceptions.ConnectionError):
            await page.connect([transport])
    assert errors[0]["data"] == {"code": "token_invalid", "temporary": False}


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_python_client_in_the_middle_of_a_flood_gets_the_notice(
    kind: str,
) -> None:
    """The WebSocket libraries close in their own ways."""
    async with open_server(Plan(events_per_second=10)) as server:
        for number in range(5):
            async with python_page(kind, server.url) as page:
                await page.connect(["websocket"])
                with suppress(socketio.exceptions.BadNamespaceError):  # it is closed
                    for event in range(300):
                        await page.call("emit", "nonsense", event)
                await eventually(lambda page=page: page.notices)  # type: ignore[misc] # mypy does not see through the default
                assert page.notices[0]["code"] == "flooding", number
