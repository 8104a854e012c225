"""
A websocket after its handshake: the transport, and what comes over it.

A protocol of asyncio's and nothing else: no task, no stream, no queue. What is written
goes to the transport as it is; what comes in is read by `WebSocketFrameReader` and handed on at
once, unless the one who gets it has asked to wait.
"""

import asyncio
from typing import Final, Protocol

from bridge.core.websocket import (
    Opcode,
    WebSocketError,
    WebSocketFrameReader,
    close_frame,
    close_reply,
    pong_frame,
)

# How long a connection that was told to go may take to read its last bytes.
LAST_WORDS_S: Final = 2.0
# How much may wait before `is_full`; the transport's own default is the upper end.
_FULL_BYTES: Final = 64 * 1024


class Listener(Protocol):
    """Who gets what comes over a wire."""

    def hear(self, text: str) -> None:
        """Take a text message."""

    def may_send(self) -> bool:
        """Count one thing from the page; false if it is closed, or is closed for this."""

    def ignore(self) -> None:
        """Count a thing that means nothing."""

    def hung_up(self) -> None:
        """Learn that the connection is over, or cannot be understood any more."""


class Wire(asyncio.Protocol):
    """
    One websocket.

    Attributes:
        transport: Where frames are written.
        listener: Who gets what comes in; `None` when the connection is over.
        is_full: Whether so much waits to be read that patient writers should wait.

    """

    __slots__ = (
        "_frames",
        "_has_room",
        "_is_held",
        "_is_paused",
        "is_full",
        "listener",
        "transport",
    )

    def __init__(
        self, transport: asyncio.Transport, listener: Listener, *, max_bytes: int
    ) -> None:
        self.transport = transport
        self.listener: Listener | None = listener
        self.is_full = False
        self._frames = WebSocketFrameReader(max_bytes=max_bytes)
        self._has_room: asyncio.Future[None] | None = None
        self._is_held = False
        self._is_paused = False

    def limit(self, outbound_bytes: int) -> None:
        """Let `is_full` become true at a quarter of what may wait for this page."""
        if outbound_bytes // 4 < _FULL_BYTES:
            self.transport.set_write_buffer_limits(high=outbound_bytes // 4)

    # --- in

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        self._frames.feed(data)
        if self._is_held:
            self._is_paused = True
            self.transport.pause_reading()  # so at most one piece more waits here
        else:
            self._read()

    def hold(self) -> None:
        """Keep what comes until `release`."""
        self._is_held = True

    def release(self) -> None:
        """Go on with what has come meanwhile."""
        self._is_held = False
        self._read()
        # Not before: a page that asks for one thing after another would have a whole
        # piece read for each, and what it sends would pile up here.
        if self._is_paused and not self._is_held and self.listener is not None:
            self._is_paused = False
            self.transport.resume_reading()

    def _read(self) -> None:
        try:
            while self.listener is not None and not self._is_held:
                frame = self._frames.next()
                if frame is None:
                    return
                self._take(self.listener, *frame)
        except WebSocketError as exc:
            self._end(close_frame(exc.code))

    def _take(self, listener: Listener, opcode: int, payload: bytes) -> None:
        if opcode == Opcode.TEXT:
            listener.hear(payload.decode())
        elif opcode == Opcode.CLOSE:
            self._end(close_reply(payload))
        elif listener.may_send():
            if opcode == Opcode.PING:
                self.transport.write(pong_frame(payload))
            else:
                listener.ignore()

    def _end(self, last: bytes) -> None:
        listener = self.listener
        self.close(last)
        if listener is not None:
            listener.hung_up()

    # --- out

    async def room(self) -> None:
        """Wait until it is not full any more, or over."""
        if self.is_full and self.listener is not None:
            if self._has_room is None or self._has_room.done():
                self._has_room = asyncio.get_running_loop().create_future()
            await self._has_room

    def pause_writing(self) -> None:
        """Note that the page does not read as fast as is written."""
        self.is_full = True

    def resume_writing(self) -> None:
        """Note that it has read most of it."""
        self.is_full = False
        self._wake()

    def _wake(self) -> None:
        if self._has_room is not None and not self._has_room.done():
            self._has_room.set_result(None)
        self._has_room = None

    # --- the end

    def close(self, last: bytes) -> None:
        """Write `last`, and cut the connection if that is not read within a moment."""
        self._forget()
        transport = self.transport
        if not transport.is_closing():
            transport.write(last)
            transport.close()
            asyncio.get_running_loop().call_later(LAST_WORDS_S, transport.abort)

    def abort(self) -> None:
        """Cut the connection; what waits in it is dropped."""
        self._forget()
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """Tell the listener."""
        listener = self.listener
        self._forget()
        if listener is not None:
            listener.hung_up()

    def _forget(self) -> None:
        self.listener = None
        self._wake()
