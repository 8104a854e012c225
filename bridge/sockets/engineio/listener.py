"""
A port: each connection opens a WebSocket session or goes to aiohttp.

A connection waits here until its first request head is complete, within a deadline and
the limits of its address. The deadline applies to the heads of later requests, too. The common WebSocket handshake never reaches aiohttp, which
costs more per connection than the session. Any other connection is passed to aiohttp
together with its first bytes.
"""

import asyncio
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from bridge.core.reason_phrase import reason_phrase
from bridge.core.websocket_handshake import Handshake, parse_handshake
from bridge.enums import ConnectionRefusal
from bridge.server_certificate import PortCertificate
from bridge.sockets.engineio.connection_limits import ConnectionLimits
from bridge.sockets.engineio.loop_turns import FirstBytes, LoopTurns
from bridge.sockets.engineio.tls import TlsTransport

_LINE_MAX_BYTES: Final = 8190
_HEADERS_MAX_BYTES: Final = 1 << 16
# Tokens of identity providers may be long, in a header or among cookies.
_HEADER_MAX_BYTES: Final = 17_000
_HEAD_END: Final = b"\r\n\r\n"
# All windows connect at once after the restart of a proxy. The kernel reduces the number to
# its own limit (net.core.somaxconn, usually 4,096) and ignores clients beyond it, which try
# again after one second, then after two.
_BACKLOG: Final = 65_535


class Listener:
    """
    Decides which protocol serves a new connection.

    `open_websocket` opens a session for a handshake; it returns false, with nothing
    written, to let aiohttp refuse the request. A port without sessions has none.

    Attributes:
        limits: Which connections are accepted.
        line_max_bytes: How long the first line of a request may be.
        turns: Limits how many connections are served in one turn of the event loop.
        waiting: Connections that have not sent a complete request head yet.

    """

    def __init__(
        self,
        limits: ConnectionLimits,
        open_websocket: Callable[[asyncio.Transport, Handshake], bool] | None = None,
        *,
        line_max_bytes: int = _LINE_MAX_BYTES,
    ) -> None:
        self.limits = limits
        self.line_max_bytes = line_max_bytes
        self.turns = LoopTurns()
        self.waiting: set[NewConnection] = set()
        self._open_websocket = open_websocket
        self._http: web.Server | None = None

    @property
    def is_open(self) -> bool:
        """Whether connections can be served."""
        return self._http is not None

    def open(self, http: web.Server) -> None:
        """Serve connections, those without a WebSocket handshake by `http`."""
        self._http = http

    def site(
        self,
        runner: web.BaseRunner,
        bound: socket.socket,
        certificate: PortCertificate | None = None,
    ) -> web.BaseSite:
        """Return the site that accepts connections of a socket; with TLS if `certificate`."""
        return _ListenerSite(runner, bound, listener=self, certificate=certificate)

    def serve(self, transport: asyncio.Transport, data: bytes, address: str) -> None:
        """
        Replace the protocol of a connection.

        Args:
            transport: The connection.
            data: Its first bytes, with the head of the first request.
            address: As `ConnectionLimits.admit` returned it.

        """
        if self._open_websocket is not None:
            handshake = parse_handshake(data)
            try:
                is_open = handshake and self._open_websocket(transport, handshake)
            except BaseException:
                # asyncio aborts the connection, and its protocol no longer counts it.
                self.limits.release(address)
                raise
            if is_open:
                self.limits.release(address)
                return
        assert self._http is not None  # noqa: S101 - connections are accepted after `open`
        # As `web.Server` does it, which knows no other class of protocols.
        options = dict(self._http._kwargs)  # noqa: SLF001
        loop = asyncio.get_running_loop()
        options |= {
            "max_field_size": _HEADER_MAX_BYTES,
            "max_line_size": self.line_max_bytes,
        }
        handler = _HttpHandler(self._http, loop=loop, **options)
        http = HttpConnection(
            handler, self.limits, on_end=lambda: self.limits.release(address)
        )
        transport.set_protocol(http)
        http.connection_made(transport)
        http.data_received(data)

    def abort_waiting(self) -> None:
        """Abort all connections that have not sent a complete request head."""
        for connection in tuple(self.waiting):
            connection.transport.abort()


class NewConnection(asyncio.Protocol):
    """
    The protocol of a connection until the head of its first request is complete.

    `received` are bytes that another worker has read from the connection already.
    """

    __slots__ = ("_address", "_deadline", "_listener", "_received", "transport")

    transport: asyncio.Transport

    def __init__(self, listener: Listener, *, received: bytes = b"") -> None:
        self._listener = listener
        self._received: bytes | bytearray = received
        self._address: str | None = None  # `None` = refused, handed over or closed
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request, unless the connection is refused."""
        # The transports of uvloop are not subclasses of asyncio's.
        self.transport = cast("asyncio.Transport", transport)
        limits = self._listener.limits
        self._address = limits.admit(self.transport)
        if self._address is None:
            self.transport.abort()
            return
        self._listener.waiting.add(self)
        self._start_deadline()
        if self._received:
            received, self._received = self._received, b""
            self.data_received(bytes(received))

    def data_received(self, data: bytes) -> None:
        """Hand the connection over to its real protocol when a head is complete."""
        if self._received:
            searched_bytes = max(0, len(self._received) - len(_HEAD_END))
            self._received += data
        else:
            searched_bytes = 0
            # A bytearray only for a request in pieces, the rare case.
            self._received = data.lstrip(b"\r\n")  # RFC 9112 section 2.2
        received = self._received
        if not received:
            return
        # A method begins with a capital letter; aiohttp refuses what is not HTTP at once.
        is_complete = received.find(_HEAD_END, searched_bytes) >= 0
        if is_complete or not received[:1].isupper():
            self._hand_over(bytes(received))
        elif len(received) > self._listener.line_max_bytes + _HEADERS_MAX_BYTES:
            self._give_up()
        elif isinstance(received, bytes):
            self._received = bytearray(received)

    def _hand_over(self, received: bytes) -> None:
        address = self._forget()
        if address is not None:
            self._listener.serve(self.transport, received, address)

    def _start_deadline(self) -> None:
        self._deadline = asyncio.get_running_loop().call_later(
            self._listener.limits.limits.connect_s, self._check_deadline
        )

    def _check_deadline(self) -> None:
        if self._listener.turns.is_behind:
            self._start_deadline()  # its request may be among those that wait
        else:
            self._give_up()

    def _give_up(self) -> None:
        self._listener.limits.note_refusal(ConnectionRefusal.NO_REQUEST)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """Forget the connection."""
        address = self._forget()
        if address is not None:
            self._listener.limits.release(address)

    def _forget(self) -> str | None:
        self._listener.waiting.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()
        address, self._address = self._address, None
        return address


class _HttpHandler(RequestHandler):
    """The protocol of aiohttp, whose errors about requests quote what a client sent."""

    __slots__ = ()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered, and none has arrived completely."""
        waiter = self._waiter
        return waiter is not None and not waiter.done() and not self._messages

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the response to a request that cannot be read."""
        if isinstance(exc, LineTooLong):
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        if message is not None:
            message = reason_phrase(status)
        response = super().handle_error(request, status, exc, message)
        response.headers["Server"] = "bridge"
        return response


class HttpConnection(asyncio.Protocol):
    """
    A connection that aiohttp serves.

    `on_end` is called once, when the connection is closed or detached from aiohttp.
    """

    __slots__ = ("_deadline", "_http", "_limits", "_on_end", "_transport")

    _transport: asyncio.Transport

    def __init__(
        self,
        http: _HttpHandler,
        limits: ConnectionLimits,
        *,
        on_end: Callable[[], None],
    ) -> None:
        self._http = http
        self._limits = limits
        self._on_end: Callable[[], None] | None = on_end
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to serve."""
        self._transport = cast("asyncio.Transport", transport)
        self._http.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Pass bytes on; the deadline for a head begins with its first byte."""
        self._http.data_received(data)
        if not self._http.is_idle:
            self._stop_deadline()
        elif self._deadline is None and data.strip(b"\r\n"):
            self._deadline = asyncio.get_running_loop().call_later(
                self._limits.limits.connect_s, self._give_up
            )

    def _give_up(self) -> None:
        self._limits.note_refusal(ConnectionRefusal.NO_REQUEST)
        self._transport.abort()

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def eof_received(self) -> None:
        """Pass the end of the stream on."""
        self._http.eof_received()

    def pause_writing(self) -> None:
        """Note that the client reads slowly."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """Note that the client has read most of the buffered bytes."""
        self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end."""
        self.end()
        self._http.connection_lost(exc)

    def end(self) -> None:
        """Report that aiohttp does not serve the connection any more."""
        self._stop_deadline()
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()


class _ListenerSite(web.SockSite):
    """An aiohttp site whose connections start as `NewConnection`."""

    __slots__ = ("_certificate", "_listener")

    def __init__(
        self,
        runner: web.BaseRunner,
        bound: socket.socket,
        *,
        listener: Listener,
        certificate: PortCertificate | None,
    ) -> None:
        super().__init__(runner, bound, backlog=_BACKLOG)
        self._listener = listener
        # A Unix socket is for a proxy on this machine, which terminates TLS.
        is_unix = bound.family == socket.AF_UNIX
        self._certificate = None if is_unix else certificate

    async def start(self) -> None:
        """
        Start to listen.

        Raises:
            OSError: If that fails.

        """
        await web.BaseSite.start(self)
        http = self._runner.server
        assert isinstance(http, web.Server)  # noqa: S101 - the server of an AppRunner
        self._listener.open(http)
        loop = asyncio.get_running_loop()
        is_unix = self._sock.family == socket.AF_UNIX
        create_server = loop.create_unix_server if is_unix else loop.create_server
        self._server = await create_server(
            self._new_connection, sock=self._sock, backlog=self._backlog
        )

    def _new_connection(self) -> asyncio.Protocol:
        listener = self._listener
        connection: asyncio.Protocol = NewConnection(listener)
        if self._certificate is not None:
            connection = TlsTransport(
                self._certificate.current.context,
                connection,
                on_failure=listener.limits.note_failed_handshake,
            )
        return FirstBytes(connection, listener.turns)

    async def stop(self) -> None:
        """Stop to listen; connections without a request are aborted."""
        await super().stop()
        self._listener.abort_waiting()
