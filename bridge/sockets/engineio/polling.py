"""
Long polling: the queue of packets for a client, and the bodies that it posts.

A body is read completely, within a size limit and a deadline: aiohttp has no deadline for
bodies, and python-engineio reads only the first chunk of one.
"""

import asyncio
from collections import deque
from collections.abc import MutableMapping
from contextlib import suppress
from http import HTTPStatus
from typing import ClassVar, Final
from weakref import WeakValueDictionary

from aiohttp import web

from bridge.core.reason_phrase import reason_phrase
from bridge.sockets.engineio.websocket import CLOSE_TIMEOUT_S

# Engine.IO joins the packets of one body with this character.
SEPARATOR: Final = "\x1e"
# The Python client rejects a response with more (its Payload.max_decode_packets).
_PACKETS_PER_POLL: Final = 16
# A packet without meaning, for a poll that must end.
NOOP: Final = "6"


class PollQueue:
    """
    Packets for a polling client, in order and counted in bytes, with their offsets.

    The packets of the last response are kept until the next poll: browsers and HTTP
    libraries repeat a GET without notice if its connection is reset, and get the same
    response again. They come from the queue, so they at most double its memory.
    """

    # The queue whose response was written last to a connection: a proxy reuses its
    # connections for the requests of any client. Entries live no longer than their queue.
    _last_responses: ClassVar[MutableMapping[asyncio.Transport, "PollQueue"]] = (
        WeakValueDictionary()
    )

    def __init__(self) -> None:
        self._packets: deque[tuple[str, int]] = deque()
        self._packets_bytes = 0
        self._filled = asyncio.Event()  # a packet was added, or the queue closed
        self._drained = asyncio.Event()  # packets were taken or read, or it closed
        self._response: list[tuple[str, int]] = []  # the last one, until the next poll
        self._timestamp: str | None = None  # of the last poll
        self._connection: asyncio.Transport | None = None  # of the last response
        self._is_kept_alive = False  # whether that connection should outlive it
        self._pending: object | None = None  # the poll that waits for packets
        self._is_closed = False

    @property
    def is_polled(self) -> bool:
        """Whether a poll is pending."""
        return self._pending is not None

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the client has not read, in the queue and in the last response."""
        return self._packets_bytes + self._unread_bytes

    @property
    def _unread_bytes(self) -> int:
        # A later response to another client on this connection means that this client
        # had read its own: responses on a connection are in order.
        if self._connection is None or not self._is_last_on_connection:
            return 0
        return self._connection.get_write_buffer_size()

    @property
    def _is_last_on_connection(self) -> bool:
        return (
            self._connection is not None
            and self._last_responses.get(self._connection) is self
        )

    @classmethod
    def request_received(cls, connection: asyncio.Transport | None) -> None:
        """
        Note a request on `connection`: the last response on it was read.

        A proxy reuses its connections for the requests of any client and ends them at any
        time, so the end of `connection` no longer means that the response was lost.
        """
        if connection is not None and not connection.get_write_buffer_size():
            cls._last_responses.pop(connection, None)

    def put(self, packet: str, offset: int) -> None:
        """Add a packet; a closed queue drops it."""
        if not self._is_closed:
            self._packets.append((packet, offset))
            self._packets_bytes += len(packet)
            self._filled.set()

    async def wait_until_drained(self) -> None:
        """Wait until the client has taken or read packets, or the queue is closed."""
        self._drained.clear()
        await self._drained.wait()

    def take_all(self) -> list[tuple[str, int]]:
        """Remove and return all packets."""
        packets = list(self._packets)
        self._packets.clear()
        self._packets_bytes = 0
        self._drained.set()
        return packets

    def is_repeat(self, request: web.BaseRequest) -> bool:
        """
        Return whether `request` repeats the last poll, because its connection was lost.

        The stock clients send a `t` that differs for each poll. Without it, a response
        is repeated once if its connection ended although it should be kept alive.
        """
        timestamp = request.query.get("t")
        if timestamp is not None:
            return timestamp == self._timestamp and (
                self.is_polled or bool(self._response)
            )
        return (
            self._is_kept_alive
            and self._is_last_on_connection
            and self._connection is not None
            and self._connection.is_closing()
        )

    def take_received(self) -> int:
        """
        Drop the last response, which the client has received.

        Returns:
            The newest offset in it; 0 if there is none, or the client has not read it.

        """
        if self._unread_bytes:
            return 0
        response, self._response = self._response, []
        return max([offset for _, offset in response], default=0)

    async def poll(
        self, request: web.BaseRequest, *, timeout_s: float
    ) -> list[tuple[str, int]] | None:
        """
        Return the packets for the response to a new poll, as soon as there are some.

        Returns:
            Nothing if the queue is closed, the client has disconnected, or `timeout_s`
            is over. ``None`` if another poll is pending, which would split the messages
            between the two, or if the client has not read its last response: unread
            responses are memory.

        """
        if self.is_polled or self._unread_bytes:
            return None
        self._timestamp = request.query.get("t")
        return await self._respond(request, timeout_s)

    async def repeat(
        self, request: web.BaseRequest, *, timeout_s: float
    ) -> list[tuple[str, int]]:
        """Return the last response again, or replace the pending poll."""
        if not self._response:
            return await self._respond(request, timeout_s)
        if self._connection is not None and self._unread_bytes:
            # Each repeat would hold the response in the buffer of another connection.
            self._connection.abort()
        if request.transport is not None:
            self._respond_on(request.transport, is_kept_alive=False)
        return self._response

    async def _respond(
        self, request: web.BaseRequest, timeout_s: float
    ) -> list[tuple[str, int]]:
        self._drained.set()  # the client has read its last response
        self._filled.set()  # ends the wait of a poll that this one replaces
        ticket = self._pending = object()
        try:
            if not self._packets and not self._is_closed:
                self._filled.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        await self._filled.wait()
            if self._pending is not ticket:
                return [(NOOP, 0)]
        finally:
            if self._pending is ticket:
                self._pending = None
        # Packets in a response to a client that has disconnected would be lost.
        if request.transport is None:
            return []
        # The response without a session id opens the session: clients that know the id
        # have received it, although HAProxy may end its connection.
        is_repeatable = request.keep_alive and "sid" in request.query
        self._respond_on(request.transport, is_kept_alive=is_repeatable)
        if self._is_closed:
            # All remaining packets: there will be no other poll.
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self.abort_unread)
            self._response = self.take_all()
            return self._response
        count = min(_PACKETS_PER_POLL, len(self._packets))
        self._response = [self._packets.popleft() for _ in range(count)]
        self._packets_bytes -= sum(len(packet) for packet, _ in self._response)
        self._drained.set()
        return self._response

    def _respond_on(
        self, connection: asyncio.Transport, *, is_kept_alive: bool
    ) -> None:
        previous = self._connection
        if previous is not None and self._last_responses.get(previous) is self:
            del self._last_responses[previous]
        self._connection = connection
        self._is_kept_alive = is_kept_alive
        self._last_responses[connection] = self

    def close(self, last_packet: str | None) -> None:
        """
        Accept no more packets and end every wait.

        A pending poll gets `last_packet` if nothing else waits: the stock client drops the
        messages that come with a close packet. A later poll gets what waits.
        """
        is_idle = self.is_polled and not self._packets and not self._is_closed
        if is_idle and last_packet is not None:
            self._packets.append((last_packet, 0))
        self._is_closed = True
        self._filled.set()
        self._drained.set()
        if self._unread_bytes:
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self.abort_unread)

    def abort_unread(self) -> None:
        """Abort the connection of a response that the client does not read."""
        if self._connection is not None and self._unread_bytes:
            self._connection.abort()


class BodyError(ValueError):
    """A body cannot be read. `status` is the response."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(reason_phrase(status))
        self.status = status


async def read_packets(
    request: web.BaseRequest, *, max_bytes: int, timeout_s: float
) -> list[str]:
    """
    Return the packets in the body.

    Raises:
        BodyError: As `read_body`, or if the body is not UTF-8.

    """
    body = await read_body(request, max_bytes=max_bytes, timeout_s=timeout_s)
    try:
        return body.decode().split(SEPARATOR)
    except UnicodeDecodeError as exc:
        raise BodyError(HTTPStatus.BAD_REQUEST) from exc


async def read_body(
    request: web.BaseRequest, *, max_bytes: int, timeout_s: float
) -> bytes:
    """
    Return the body.

    Raises:
        BodyError: If it is too large, too slow, truncated or corrupt.

    """
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            # The chunks are decompressed: the limit applies to the decompressed size.
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > max_bytes:
                    raise BodyError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    except (TimeoutError, ConnectionError, web.RequestPayloadError) as exc:
        raise BodyError(HTTPStatus.BAD_REQUEST) from exc
    return bytes(body)
