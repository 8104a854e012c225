"""
Take a TCP connection out of aiohttp.

Aiohttp keeps a request, a task, a parser, a timer and two readers for the life of a
WebSocket, about 20 kB. Nothing of that is needed after the handshake, so the transport
gets a protocol of the bridge, and aiohttp is notified that the client has disconnected.
"""

import asyncio

from aiohttp import web

from bridge.sockets.engineio.listener import HttpConnection


class _TailParser:
    """Receives the bytes after a request, as the parser of an upgraded connection does."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Ignore the end: aiohttp reports it when the connection is detached."""


def detach_transport(
    request: web.BaseRequest,
) -> tuple[asyncio.Transport | None, bytes]:
    """
    Detach the connection of `request` from aiohttp.

    Returns:
        The transport, whose protocol the caller must replace at once, and the bytes
        received after the request. ``None`` if the client has disconnected. The response
        that the handler returns afterwards is not sent.

    """
    protocol = request.protocol
    transport = protocol.transport
    if transport is None or transport.is_closing():
        return None, b""
    connection = transport.get_protocol()
    if isinstance(connection, HttpConnection):
        connection.end()
    tail = _TailParser()
    # This passes the bytes received so far to the parser and resumes reading.
    protocol.set_parser(tail)  # type: ignore[arg-type] # it uses these two methods only
    protocol.transport = None  # connection_lost would close it
    protocol.connection_lost(None)
    return transport, tail.data
