"""
A WebSocket after its handshake, as an asyncio protocol.

There is no task, stream or queue: frames are written straight to the TCP transport, and
received frames are passed to the handler as they arrive, unless it holds them back.
"""

import asyncio
import fcntl
import termios
from array import array
from contextlib import suppress
from typing import Final, Protocol

from bridge.core.websocket import (
    CloseCode,
    CloseFrameSearch,
    Opcode,
    WebSocketError,
    WebSocketFrameReader,
    close_frame,
    close_reply,
    pong_frame,
)

# How long a client may take to read the last bytes of a closing connection and reply.
CLOSE_TIMEOUT_S: Final = 2.0
# How a page ends its connection: without a code, closed, or going away. Other codes mean
# that the client refuses what it has received, or fails.
_PAGE_CLOSES: Final = frozenset(
    {
        close_frame(),
        close_frame(CloseCode.NORMAL),
        close_frame(CloseCode.GOING_AWAY),
    }
)
# The high-water mark of asyncio transports by default.
_HIGH_WATER_BYTES: Final = 64 * 1024


class WebSocketHandler(Protocol):
    """Receives what a client sends over a WebSocket: a session, or an upgrade to one."""

    def text_received(self, text: str) -> None:
        """Process a text message."""

    def admit_frame(self) -> bool:
        """Count a frame against the rate limit; false if the WebSocket was closed."""

    def frame_ignored(self) -> None:
        """Count a frame without meaning, such as a pong."""

    def binary_received(self) -> None:
        """Process a binary message, whose content is dropped."""

    def close_received(self) -> None:
        """Process a close frame of a page that is alive; `connection_closed` follows."""

    def connection_closed(self) -> None:
        """Process the end of the connection, or a protocol error."""


def unacknowledged_bytes(transport: asyncio.Transport) -> int:
    """
    Return how many written bytes the other end of the TCP connection has not received.

    That end is the client or a proxy before it, and its kernel, not its program. Systems
    other than Linux report only the bytes that are still in this process.
    """
    waiting_bytes = transport.get_write_buffer_size()
    if waiting_bytes:
        return waiting_bytes
    count = array("i", [0])
    with suppress(OSError, ValueError):  # the connection is closed
        fd = transport.get_extra_info("socket").fileno()
        fcntl.ioctl(fd, termios.TIOCOUTQ, count)
    return count[0]


class WebSocketTransport(asyncio.Protocol):
    """
    One WebSocket. Constructing it replaces the protocol of `transport`.

    Attributes:
        transport: The TCP transport, to which frames are written directly.
        is_congested: Whether so much is buffered that replays should pause.

    """

    __slots__ = (
        "_close_search",
        "_frames",
        "_handler",
        "_is_holding",
        "_is_reading_paused",
        "_unanswered_ping",
        "_writable",
        "is_congested",
        "transport",
    )

    def __init__(
        self, transport: asyncio.Transport, handler: WebSocketHandler, *, max_bytes: int
    ) -> None:
        self.transport = transport
        self.is_congested = False
        self._handler: WebSocketHandler | None = handler  # `None` = closed
        self._frames = WebSocketFrameReader(max_bytes=max_bytes)
        self._close_search: CloseFrameSearch | None = None  # set while closing
        self._writable: asyncio.Future[None] | None = None
        self._is_holding = False
        self._is_reading_paused = False
        self._unanswered_ping: bytes | None = None  # its payload
        transport.set_protocol(self)

    def hand_over(self, handler: WebSocketHandler) -> None:
        """Pass received frames to another handler from now on."""
        self._handler = handler

    def limit_messages(self, max_bytes: int) -> None:
        """Refuse received messages over `max_bytes` from now on."""
        self._frames.limit(max_bytes)

    def limit_buffer(self, outbound_bytes: int) -> None:
        """Become congested at a quarter of `outbound_bytes` if that is the lower limit."""
        if outbound_bytes // 4 < _HIGH_WATER_BYTES:
            self.transport.set_write_buffer_limits(high=outbound_bytes // 4)

    # --- receiving

    def data_received(self, data: bytes) -> None:
        """Process received bytes, or buffer them while messages are held back."""
        if self._close_search is not None:
            if self._close_search.feed(data):
                self.transport.close()
            return
        self._frames.feed(data)
        if self._is_holding:
            # From now on at most one more read arrives, so the buffer is bounded.
            self._is_reading_paused = True
            self.transport.pause_reading()
        else:
            self._process_frames()

    def hold_messages(self) -> None:
        """Process no more frames until `release_messages`."""
        self._is_holding = True

    def release_messages(self) -> None:
        """Process the frames that were held back."""
        self._is_holding = False
        self._process_frames()
        # Reading resumes only now. A client that sends one request after another would
        # otherwise get a read for each of them, and its bytes would pile up here.
        if self._is_reading_paused and not self._is_holding and self._handler:
            self._is_reading_paused = False
            self.transport.resume_reading()

    def _process_frames(self) -> None:
        try:
            while self._handler is not None and not self._is_holding:
                frame = self._frames.next()
                if frame is None:
                    return
                self._process_frame(self._handler, *frame)
        except WebSocketError as exc:
            handler = self._handler
            self.close(close_frame(exc.code))
            if handler is not None:
                handler.connection_closed()

    def _process_frame(
        self, handler: WebSocketHandler, opcode: int, payload: bytes
    ) -> None:
        if opcode == Opcode.TEXT:
            handler.text_received(payload.decode())
        elif opcode == Opcode.CLOSE:
            reply = close_reply(payload)
            if reply in _PAGE_CLOSES:
                handler.close_received()
            # The handshake ends here: a client sends nothing after its close frame.
            if self._finish(reply):
                self.transport.close()
            handler.connection_closed()
        elif handler.admit_frame():
            if opcode == Opcode.PING:
                self._answer_ping(payload)
            elif opcode == Opcode.BINARY:
                handler.binary_received()
            else:
                handler.frame_ignored()

    def _answer_ping(self, payload: bytes) -> None:
        if self.is_congested:
            # Pongs must not pile up. RFC 6455, section 5.5.3: the latest ping is enough.
            self._unanswered_ping = payload
        else:
            self.transport.write(pong_frame(payload))

    # --- flow control

    async def wait_until_writable(self) -> None:
        """Wait until the client has read most of the buffered bytes, or is gone."""
        if self.is_congested and self._handler is not None:
            if self._writable is None or self._writable.done():
                self._writable = asyncio.get_running_loop().create_future()
            await self._writable

    def pause_writing(self) -> None:
        """Note that the client reads more slowly than the bridge writes."""
        self.is_congested = True

    def resume_writing(self) -> None:
        """Note that the client has read most of the buffered bytes."""
        self.is_congested = False
        payload, self._unanswered_ping = self._unanswered_ping, None
        if payload is not None and self._handler is not None:
            self.transport.write(pong_frame(payload))
        self._wake_writers()

    def _wake_writers(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # --- closing

    def close(self, last_frame: bytes) -> None:
        """
        Write `last_frame` and start the closing handshake (RFC 6455 section 7).

        What the client still sends is read and discarded: a socket that is closed with
        unread input is reset, and the reset overtakes the last frames. The connection is
        closed when the client replies, and aborted if it does not do so in time.
        """
        if self._finish(last_frame):
            self._close_search = CloseFrameSearch()
            self.data_received(self._frames.take_rest())
            if self._is_reading_paused:
                self.transport.resume_reading()

    def _finish(self, last_frame: bytes) -> bool:
        """Write `last_frame` and nothing after it; false if the connection is closing."""
        self._release_handler()
        transport = self.transport
        if transport.is_closing() or self._close_search is not None:
            return False
        transport.write(last_frame)
        # A client that does not read would keep the closing connection open forever.
        asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, transport.abort)
        return True

    def abort(self) -> None:
        """Close the connection at once; buffered bytes are discarded."""
        self._release_handler()
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """Report the end to the handler."""
        handler = self._release_handler()
        if handler is not None:
            handler.connection_closed()

    def _release_handler(self) -> WebSocketHandler | None:
        handler, self._handler = self._handler, None
        self._wake_writers()
        return handler
