"""
How a TCP connection leaves aiohttp's hands and becomes ours.

Aiohttp keeps a request, a task, a parser, a timer and two readers for as long as a
websocket lives, some 20 kB. None of that is needed once the handshake is over, so the
transport gets a protocol of our own and aiohttp believes that the page has hung up.
"""

import asyncio

from aiohttp import web


class _Rest:
    """Gets what came behind the request, by aiohttp's own way for protocols above it."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Keep it."""
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Do nothing: it is over as soon as it has begun."""


def take_over(request: web.BaseRequest) -> tuple[asyncio.Transport | None, bytes]:
    """
    Take the connection of `request` out of aiohttp.

    Returns:
        The transport, still without a protocol that listens, and what has come behind
        the request. `None` if the page is gone. Whatever the handler answers after this
        goes nowhere.

    """
    protocol = request.protocol
    transport = protocol.transport
    if transport is None or transport.is_closing():
        return None, b""
    rest = _Rest()
    # It hands on what came too early, and lets the transport read again.
    protocol.set_parser(rest)  # type: ignore[arg-type] # all that is used of a parser
    protocol.transport = None  # or the next line would close it
    protocol.connection_lost(None)
    return transport, rest.data
