"""
The public port: each connection opens a WebSocket session or goes to aiohttp.

The common WebSocket handshake is recognized in the first bytes of a connection and never
reaches aiohttp, which costs more per connection than the session. Any other connection is
passed to aiohttp together with its first bytes.
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import cast

from aiohttp import web

from bridge.core.websocket_handshake import Handshake, parse_handshake


class Listener:
    """
    Decides which protocol serves a new connection.

    `open_websocket` opens a session for a handshake; it returns false, with nothing
    written, to let aiohttp refuse the request.

    Attributes:
        silent: Connections that have sent nothing yet.

    """

    def __init__(
        self, open_websocket: Callable[[asyncio.Transport, Handshake], bool]
    ) -> None:
        self._open_websocket = open_websocket
        self._http: web.Server | None = None
        self.silent: set[NewConnection] = set()

    @property
    def is_open(self) -> bool:
        """Whether connections can be served."""
        return self._http is not None

    def open(self, http: web.Server) -> None:
        """Serve connections, those without a WebSocket handshake by `http`."""
        self._http = http

    def serve(self, transport: asyncio.Transport, data: bytes) -> None:
        """Replace the protocol of a connection whose first bytes are `data`."""
        handshake = parse_handshake(data)
        if handshake is not None and self._open_websocket(transport, handshake):
            return
        assert self._http is not None  # noqa: S101 - connections are accepted after `open`
        http = self._http()
        transport.set_protocol(http)
        http.connection_made(transport)
        http.data_received(data)

    def abort_silent(self, *, opened_before_s: float) -> None:
        """Abort connections that have sent nothing since before that monotonic time."""
        for connection in tuple(self.silent):
            if connection.opened_s < opened_before_s:
                connection.transport.abort()


class NewConnection(asyncio.Protocol):
    """
    The protocol of a connection until its first bytes arrive.

    `received` are bytes that another worker has read from the connection already.
    """

    __slots__ = ("_listener", "_received", "opened_s", "transport")

    transport: asyncio.Transport

    def __init__(self, listener: Listener, *, received: bytes = b"") -> None:
        self._listener = listener
        self._received = received
        self.opened_s = monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first bytes, unless they are known."""
        # The transports of uvloop are not subclasses of asyncio's.
        self.transport = cast("asyncio.Transport", transport)
        self._listener.silent.add(self)
        if self._received:
            self.data_received(self._received)

    def data_received(self, data: bytes) -> None:
        """Hand the connection over to its real protocol."""
        self._listener.silent.discard(self)
        self._listener.serve(self.transport, data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """Forget the connection."""
        self._listener.silent.discard(self)


class ListenerSite(web.TCPSite):
    """An aiohttp site whose connections start as `NewConnection`."""

    __slots__ = ("_listener",)

    def __init__(
        self,
        runner: web.BaseRunner,
        host: str,
        port: int,
        *,
        listener: Listener,
        is_shared: bool,
    ) -> None:
        """Prepare a site; with `is_shared` other processes listen on the same port."""
        super().__init__(runner, host, port, reuse_port=is_shared)
        self._listener = listener

    async def start(self) -> None:
        """
        Start to listen.

        Raises:
            OSError: If the port cannot be bound.

        """
        await web.BaseSite.start(self)
        http = self._runner.server
        assert isinstance(http, web.Server)  # noqa: S101 - the server of an AppRunner
        self._listener.open(http)
        self._server = await asyncio.get_running_loop().create_server(
            lambda: NewConnection(self._listener),
            self._host,
            self._port,
            backlog=self._backlog,
            reuse_address=True,
            reuse_port=self._reuse_port or None,
        )
