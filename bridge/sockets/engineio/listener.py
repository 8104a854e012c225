"""
The first bytes of a connection: a page that opens a websocket, or HTTP.

A page that opens a websocket in the usual way is let in here. Every other connection is
handed to aiohttp together with what it has sent, and nobody notices.
"""

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, cast

from aiohttp import web

from bridge.core.websocket_handshake import parse_handshake

if TYPE_CHECKING:
    from bridge.sockets.engineio.server import Engine


class FrontDoors:
    """
    Makes a protocol for each connection.

    Attributes:
        waiting: Those that have not sent anything yet.
        http: What takes those that are no websockets; ``None`` before the site is open.

    """

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self.http: web.Server | None = None
        self.waiting: set[FrontDoor] = set()

    def tick(self, now_s: float) -> None:
        """Cut those that have sent nothing for as long as a page has to connect."""
        oldest_s = now_s - self.engine.bounds.connect_s
        for door in tuple(self.waiting):
            if door.opened_s < oldest_s:
                door.transport.abort()

    def shut(self) -> None:
        """Cut all."""
        for door in tuple(self.waiting):
            door.transport.abort()


class FrontDoor(asyncio.Protocol):
    """One connection, until it has sent its first bytes."""

    __slots__ = ("_doors", "_http", "opened_s", "transport")

    transport: asyncio.Transport

    def __init__(self, doors: FrontDoors, http: web.Server) -> None:
        self._doors = doors
        self._http = http
        self.opened_s = monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for its first bytes."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._doors.waiting.add(self)

    def data_received(self, data: bytes) -> None:
        """Let the page in, or hand the connection to aiohttp."""
        self._doors.waiting.discard(self)
        handshake = parse_handshake(data)
        if handshake is None or not self._doors.engine.enter(self.transport, handshake):
            http = self._http()
            self.transport.set_protocol(http)
            http.connection_made(self.transport)
            http.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """Forget it."""
        self._doors.waiting.discard(self)


class FrontSite(web.TCPSite):
    """A site of aiohttp's whose connections begin at a front door."""

    __slots__ = ("_doors",)

    def __init__(
        self,
        runner: web.BaseRunner,
        host: str,
        port: int,
        *,
        doors: FrontDoors,
        is_shared: bool = False,
    ) -> None:
        """Take a place; `is_shared`: other processes listen there too."""
        super().__init__(runner, host, port, reuse_port=is_shared)
        self._doors = doors

    async def start(self) -> None:
        """
        Listen.

        Raises:
            OSError: If the port cannot be had.

        """
        await web.BaseSite.start(self)
        http = self._runner.server
        assert isinstance(http, web.Server)  # noqa: S101 - an application's always is
        self._doors.http = http
        self._server = await asyncio.get_running_loop().create_server(
            lambda: FrontDoor(self._doors, http),
            self._host,
            self._port,
            backlog=self._backlog,
            reuse_address=True,
            reuse_port=self._reuse_port or None,
        )
