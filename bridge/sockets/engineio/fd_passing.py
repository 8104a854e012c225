"""
Pass TCP connections between workers, to the one that owns the session of a request.

The kernel distributes connections over the workers of a shared port, but a client that
polls, or upgrades to a WebSocket, uses several connections for one session. A worker that
receives a request for the session of another worker passes the connection itself
(SCM_RIGHTS) with the bytes that it has read. From then on the owner serves the connection
as if it had accepted it: no byte is relayed, and the owner notices when the client
disconnects.
"""

import asyncio
import os
import socket
from contextlib import suppress
from typing import Final

import structlog
from aiohttp import web

from bridge.core.worker_slot import WorkerSlot
from bridge.sockets.engineio.detach import detach_transport
from bridge.sockets.engineio.listener import Listener, NewConnection
from bridge.sockets.engineio.polling import BodyError, read_body

log = structlog.get_logger(__name__)

_TIMEOUT_S: Final = 5.0
_CHUNK_BYTES: Final = 1 << 16
_BACKLOG: Final = 512
# These describe the body as the client sent it; it is passed on decoded and complete.
_BODY_HEADERS: Final = frozenset(
    {b"content-length", b"transfer-encoding", b"content-encoding", b"expect"}
)
_ACCEPT_RETRY_S: Final = 1.0


class ConnectionHandover:
    """Passes connections to their workers and receives those of this worker."""

    def __init__(self, slot: WorkerSlot, listener: Listener) -> None:
        self._slot = slot
        self._listener = listener

    # --- passing on

    async def pass_on(self, request: web.Request, *, max_body_bytes: int) -> bool:
        """
        Pass the connection of `request` to the worker that owns its session.

        Returns:
            False if the session belongs to this worker or is unknown, its worker cannot be
            reached, or the request is incomplete. After true, no response to `request` is sent.

        Cancellation:
            Safe until the connection is detached; after that the client sees it closed
            and reconnects.

        """
        owner = self._slot.owner_of(request.query.get("sid", ""))
        if owner is None:
            return False
        try:
            body = await read_body(
                request, max_bytes=max_body_bytes, timeout_s=_TIMEOUT_S
            )
            peer = await _connect(self._slot.sibling(owner).handover_socket)
        except (BodyError, OSError, TimeoutError):
            return False
        with peer:
            transport = request.transport
            if transport is not None and transport.get_write_buffer_size():
                # A client that does not read its responses. They would be lost.
                return False
            transport, tail = detach_transport(request)
            if transport is not None:
                await _send(peer, transport, _render_request(request, body) + tail)
        return True

    # --- receiving

    async def run(self) -> None:
        """
        Receive connections from other workers, until cancelled.

        Raises:
            OSError: If the socket for them cannot be created.

        """
        path = self._slot.handover_socket
        loop = asyncio.get_running_loop()
        with suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - left behind by the previous worker
        with socket.socket(socket.AF_UNIX) as listening:
            listening.settimeout(0)
            listening.bind(path)
            listening.listen(_BACKLOG)
            async with asyncio.TaskGroup() as tasks:
                while True:
                    try:
                        peer, _ = await loop.sock_accept(listening)
                    except OSError as exc:  # usually, no file descriptor is left
                        log.warning("handover.accept_failed", problem=exc.strerror)
                        await asyncio.sleep(_ACCEPT_RETRY_S)
                        continue
                    tasks.create_task(self._receive(peer), name="handover")

    async def _receive(self, peer: socket.socket) -> None:
        with peer:
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    connection, received = await _receive_connection(peer)
            except (OSError, TimeoutError) as exc:
                log.warning("handover.failed", problem=type(exc).__name__)
                return
        if connection is None:
            log.warning("handover.failed", problem="no file descriptor was received")
            return
        if not self._listener.is_open:  # this worker is starting
            log.warning("handover.failed", problem="the listener is not open yet")
            connection.close()
            return
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: NewConnection(self._listener, received=received), connection
            )
        except OSError:  # the client has disconnected meanwhile
            connection.close()


def _render_request(request: web.Request, body: bytes) -> bytes:
    """Return a request as it was received, except that its body is decoded."""
    version = request.version
    lines = [
        f"{request.method} {request.raw_path} HTTP/{version.major}.{version.minor}".encode()
    ]
    lines += [
        name + b": " + value
        for name, value in request.raw_headers
        if name.lower() not in _BODY_HEADERS
    ]
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def _connect(path: str) -> socket.socket:
    """Connect to the worker that listens at `path`; raises OSError or TimeoutError."""
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.settimeout(0)
        async with asyncio.timeout(_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(peer, path)
    except BaseException:
        peer.close()
        raise
    return peer


async def _send(
    peer: socket.socket, transport: asyncio.Transport, received: bytes
) -> None:
    """Send a connection and the bytes received on it; it is always closed here."""
    try:
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
    except OSError as exc:
        log.warning("handover.failed", problem=type(exc).__name__)
        return
    finally:
        # Closing our descriptor sends nothing: the duplicate keeps the connection open.
        transport.set_protocol(asyncio.Protocol())
        transport.abort()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            # The socket is new and its buffer empty, so the first chunk does not block.
            sent = socket.send_fds(peer, [received[:_CHUNK_BYTES]], [descriptor])
            await asyncio.get_running_loop().sock_sendall(peer, received[sent:])
    except (OSError, TimeoutError) as exc:
        log.warning("handover.failed", problem=type(exc).__name__)
    finally:
        os.close(descriptor)


async def _receive_connection(
    peer: socket.socket,
) -> tuple[socket.socket | None, bytes]:
    """
    Receive a connection and all bytes that were read from it.

    Cancellation: the connection is closed.
    """
    peer.settimeout(0)
    loop = asyncio.get_running_loop()
    await _wait_until_readable(peer)
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


async def _wait_until_readable(peer: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    is_readable = asyncio.Event()
    loop.add_reader(peer, is_readable.set)
    try:
        await is_readable.wait()
    finally:
        loop.remove_reader(peer)
