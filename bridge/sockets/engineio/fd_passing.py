"""
From worker to worker: a connection goes to the one whose session it asks for.

The kernel spreads connections over the workers and knows nothing of sessions, but a page
that polls, or goes over from polling to a websocket, uses several connections for one.
So whoever gets a request for another's session hands the TCP connection itself over
(SCM_RIGHTS), with what was read of it. From then on it is the owner's, as if it had come
there: no byte takes a detour, and a page that hangs up is noticed where it matters.
"""

import asyncio
import os
import socket
from contextlib import suppress
from typing import Final

import structlog
from aiohttp import web

from bridge.core.worker_slot import Workplace
from bridge.sockets.engineio.listener import FrontDoor, FrontDoors
from bridge.sockets.engineio.polling import read_body
from bridge.sockets.engineio.upgrade import take_over

log = structlog.get_logger(__name__)

_WITHIN_S: Final = 5.0
_CHUNK_BYTES: Final = 1 << 16
_BACKLOG: Final = 512
# What describes a body says something else of one that was read already.
_OF_THE_BODY: Final = frozenset(
    {b"content-length", b"transfer-encoding", b"content-encoding", b"expect"}
)
_ACCEPT_AGAIN_S: Final = 1.0


class Handover:
    """
    One worker's side: gives away what is others', takes what is its own.

    `run` must be running before windows come.
    """

    def __init__(self, place: Workplace, doors: FrontDoors) -> None:
        self._place = place
        self._doors = doors

    def mark(self, session_id: str) -> str:
        """Write the worker's number into a new session id."""
        return self._place.mark(session_id)

    # --- giving

    async def answer(
        self, request: web.Request, *, max_body_bytes: int
    ) -> web.Response | None:
        """
        Hand the connection of `request` to the worker whose session it asks for.

        Returns:
            An answer to nobody. ``None`` if the session is ours or nobody's, if that
            worker is not there, and its sessions with it, or the request is not whole.

        Cancellation:
            Safe before the connection was taken from here; after it, the page finds it
            closed and connects again.

        """
        owner = self._place.owner_of(request.query.get("sid", ""))
        if owner is None:
            return None
        body = await read_body(request, max_bytes=max_body_bytes, within_s=_WITHIN_S)
        if body is None:
            return None
        try:
            peer = await _connected(self._place.neighbour(owner).handover_socket)
        except (OSError, TimeoutError):
            return None
        with peer:
            transport = request.transport
            if transport is not None and transport.get_write_buffer_size():
                return None  # it asks without reading answers, and they would be lost
            transport, rest = take_over(request)
            if transport is not None:
                await _send(peer, transport, _raw(request, body) + rest)
        return web.Response()  # to nobody: the connection is the other worker's

    # --- taking

    async def run(self) -> None:
        """
        Take connections that other workers hand over, until cancelled.

        Raises:
            OSError: If the socket for them cannot be made.

        """
        path = self._place.handover_socket
        loop = asyncio.get_running_loop()
        with suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - of the worker before us
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(0)
            listener.bind(path)
            listener.listen(_BACKLOG)
            async with asyncio.TaskGroup() as tasks:
                while True:
                    try:
                        peer, _ = await loop.sock_accept(listener)
                    except OSError as exc:  # most likely, all files are open
                        log.warning("handover.not_accepted", problem=exc.strerror)
                        await asyncio.sleep(_ACCEPT_AGAIN_S)
                        continue
                    tasks.create_task(self._take(peer), name="handover")

    async def _take(self, peer: socket.socket) -> None:
        with peer:
            try:
                async with asyncio.timeout(_WITHIN_S):
                    connection, first = await _receive(peer)
            except (OSError, TimeoutError) as exc:
                log.warning("handover.failed", problem=type(exc).__name__)
                return
        http = self._doors.http
        if connection is None or http is None:
            log.warning(
                "handover.failed", problem="no door" if connection else "no file"
            )
            if connection is not None:
                connection.close()
            return
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Handed(self._doors, http, first), connection
            )
        except OSError:  # the page has hung up on the way
            connection.close()


class _Handed(FrontDoor):
    """A connection whose first bytes came before it did."""

    __slots__ = ("_first",)

    def __init__(self, doors: FrontDoors, http: web.Server, first: bytes) -> None:
        super().__init__(doors, http)
        self._first = first

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with what was read elsewhere."""
        super().connection_made(transport)
        self.data_received(self._first)


def _raw(request: web.Request, body: bytes) -> bytes:
    """Return a request as it came, its body in one piece."""
    version = request.version
    lines = [
        f"{request.method} {request.raw_path} HTTP/{version.major}.{version.minor}".encode()
    ]
    lines += [
        name + b": " + value
        for name, value in request.raw_headers
        if name.lower() not in _OF_THE_BODY
    ]
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def _connected(path: str) -> socket.socket:
    """Connect to the worker that listens at `path`; OSError, TimeoutError if none does."""
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.settimeout(0)
        async with asyncio.timeout(_WITHIN_S):
            await asyncio.get_running_loop().sock_connect(peer, path)
    except BaseException:
        peer.close()
        raise
    return peer


async def _send(
    peer: socket.socket, transport: asyncio.Transport, first: bytes
) -> None:
    """Send a connection and its first bytes; it is closed here, whatever happens."""
    try:
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
    except OSError as exc:
        log.warning("handover.failed", problem=type(exc).__name__)
        return
    finally:
        # Ours is closed without a word: the connection lives on in the copy.
        transport.set_protocol(asyncio.Protocol())
        transport.abort()
    try:
        async with asyncio.timeout(_WITHIN_S):
            # Nothing was sent on this socket yet: there is room for a chunk.
            sent = socket.send_fds(peer, [first[:_CHUNK_BYTES]], [descriptor])
            await asyncio.get_running_loop().sock_sendall(peer, first[sent:])
    except (OSError, TimeoutError) as exc:
        log.warning("handover.failed", problem=type(exc).__name__)
    finally:
        os.close(descriptor)


async def _receive(peer: socket.socket) -> tuple[socket.socket | None, bytes]:
    """
    Take a connection and its first bytes, up to the end.

    Cancellation: the connection is closed.
    """
    peer.settimeout(0)
    loop = asyncio.get_running_loop()
    await _readable(peer)
    data, descriptors, _, _ = socket.recv_fds(peer, _CHUNK_BYTES, 1)
    if not descriptors:
        return None, b""
    connection = socket.socket(fileno=descriptors[0])
    try:
        connection.settimeout(0)
        while chunk := await loop.sock_recv(peer, _CHUNK_BYTES):
            data += chunk
    except BaseException:
        connection.close()
        raise
    return connection, data


async def _readable(peer: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    is_there = asyncio.Event()
    loop.add_reader(peer, is_there.set)
    try:
        await is_there.wait()
    finally:
        loop.remove_reader(peer)
