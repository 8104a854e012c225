"""
WebSocket frames from clients, parsed strictly, and the control frames of the server.

RFC 6455 without extensions: client frames are masked, control frames are short and not
fragmented, lengths use their shortest form, and text is UTF-8. A message over the limit
is refused as soon as its length is known, before its payload is buffered.
"""

from enum import IntEnum
from typing import Final

_CONTROL_MAX_BYTES: Final = 125
_LENGTH_16: Final = 126
# Browsers send one frame per message, proxies and libraries one for some KiB. Frames inside
# a message are not counted against the rate limit, and empty ones have no limit of bytes.
FRAGMENTS_MAX: Final = 256
_SEARCHED_FRAMES: Final = 10_000


class Opcode(IntEnum):
    """Frame types (RFC 6455 section 5.2)."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(IntEnum):
    """Status codes of a close frame (RFC 6455 section 7.4.1)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    INVALID_TEXT = 1007
    TOO_BIG = 1009


class WebSocketError(ValueError):
    """The client broke the protocol; the connection is closed with `code`."""

    def __init__(self, code: CloseCode, problem: str) -> None:
        super().__init__(code, problem)
        self.code = code
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


Frame = tuple[int, bytes]


class WebSocketFrameReader:
    """
    Turns received bytes, in pieces of any size, into messages and control frames.

    Buffers at most one `feed` and one incomplete message of `max_bytes`, in at most
    `FRAGMENTS_MAX` frames.
    """

    __slots__ = (
        "_buffer",
        "_fragment_count",
        "_max_bytes",
        "_opcode",
        "_parts",
        "_start",
    )

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer: bytes | bytearray = b""
        self._start = 0  # of the next frame in the buffer
        self._opcode = 0  # of the fragmented message that `_parts` belongs to
        self._parts: bytearray | None = None
        self._fragment_count = 0  # in `_parts`

    def limit(self, max_bytes: int) -> None:
        """Refuse messages over `max_bytes` from now on."""
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> None:
        """Add received bytes; `next` returns the frames that are complete."""
        if self._start == len(self._buffer):
            self._buffer = data
        elif isinstance(self._buffer, bytearray):
            # Deleting the front of a bytearray does not copy the remaining bytes.
            del self._buffer[: self._start]
            self._buffer += data
        else:
            self._buffer = bytearray(memoryview(self._buffer)[self._start :])
            self._buffer += data
        self._start = 0

    def next(self) -> Frame | None:
        """
        Return opcode and payload of the next message or control frame.

        Returns:
            `None` if no frame is complete yet. Text payloads are valid UTF-8.

        Raises:
            WebSocketError: If the client broke the protocol. The reader cannot be used
                after that.

        """
        while (frame := self._next_frame()) is not None:
            is_last, opcode, payload = frame
            if opcode < Opcode.CLOSE and not (is_last and opcode):
                self._opcode = opcode or self._opcode
                if self._parts is None:
                    self._parts = bytearray()
                    self._fragment_count = 0
                self._parts += payload
                self._fragment_count += 1
                if self._fragment_count > FRAGMENTS_MAX:
                    problem = f"a message has more than {FRAGMENTS_MAX} frames"
                    raise WebSocketError(CloseCode.TOO_BIG, problem)
                if not is_last:
                    continue
                opcode, payload = self._opcode, bytes(self._parts)
                self._parts = None
            if opcode == Opcode.TEXT and not _is_utf8(payload):
                raise WebSocketError(CloseCode.INVALID_TEXT, "the text is not UTF-8")
            return opcode, payload
        return None

    def take_rest(self) -> bytes:
        """Return the bytes that belong to no returned frame, and forget them."""
        rest = bytes(self._buffer[self._start :])
        self._buffer, self._start, self._parts = b"", 0, None
        return rest

    def _next_frame(self) -> tuple[bool, int, bytes] | None:
        """Return FIN, opcode and unmasked payload; `None` if the frame is incomplete."""
        buffer, start = self._buffer, self._start
        available = len(buffer) - start
        if available < 2:
            return None
        first, second = buffer[start], buffer[start + 1]
        self._check_header(first, second)
        length = second & 0x7F
        mask_start = start + 2
        if length >= _LENGTH_16:
            size = 2 if length == _LENGTH_16 else 8
            if available < 2 + size:
                return None
            length = int.from_bytes(buffer[mask_start : mask_start + size], "big")
            mask_start += size
            if length < (_LENGTH_16 if size == 2 else 1 << 16) or length >> 63:
                raise _protocol_error("a length is not in its shortest form")
        kept = len(self._parts) if self._parts and not first & 8 else 0
        if length + kept > self._max_bytes and not first & 8:
            raise WebSocketError(
                CloseCode.TOO_BIG, f"a message is longer than {self._max_bytes} bytes"
            )
        payload_start = mask_start + 4
        end = payload_start + length
        if len(buffer) < end:
            return None
        payload = _unmask(buffer[payload_start:end], buffer[mask_start:payload_start])
        if end == len(buffer):
            self._buffer, self._start = b"", 0
        else:
            self._start = end
        return bool(first & 0x80), first & 0x0F, payload

    def _check_header(self, first: int, second: int) -> None:
        opcode = first & 0x0F
        if first & 0x70:
            raise _protocol_error("a frame uses an extension that was not negotiated")
        if not second & 0x80:
            raise _protocol_error("a frame is not masked")
        if opcode >= Opcode.CLOSE:
            if opcode > Opcode.PONG:
                raise _protocol_error(f"opcode {opcode} does not exist")
            if not first & 0x80 or second & 0x7F > _CONTROL_MAX_BYTES:
                raise _protocol_error("a control frame is too long or fragmented")
        elif opcode > Opcode.BINARY:
            raise _protocol_error(f"opcode {opcode} does not exist")
        elif opcode and self._parts is not None:
            raise _protocol_error("a message starts inside a fragmented message")
        elif not opcode and self._parts is None:
            raise _protocol_error("a continuation frame has no first frame")


class CloseFrameSearch:
    """
    Finds the close frame in what a client sends while its WebSocket is closing.

    Other frames are skipped and not checked: they are of no interest any more. The search
    gives up after `_SEARCHED_FRAMES`, which bounds what a flood costs.
    """

    __slots__ = ("_frames_left", "_header", "_skip_bytes")

    def __init__(self) -> None:
        self._header = b""  # the start of an incomplete header
        self._skip_bytes = 0  # of a payload
        self._frames_left = _SEARCHED_FRAMES

    def feed(self, data: bytes) -> bool:
        """Return whether a close frame starts in `data`, the next received bytes."""
        data = self._header + data
        start = self._skip_bytes
        while self._frames_left and start + 2 <= len(data):
            if data[start] & 0x0F == Opcode.CLOSE:
                return True
            length = data[start + 1] & 0x7F
            mask_start = start + 2
            if length >= _LENGTH_16:
                mask_start += 2 if length == _LENGTH_16 else 8
                if mask_start > len(data):
                    break
                length = int.from_bytes(data[start + 2 : mask_start], "big")
            start = mask_start + 4 + length
            self._frames_left -= 1
        self._header = data[start:] if self._frames_left else b""
        self._skip_bytes = max(0, start - len(data))
        return False


def close_frame(code: int | None = None) -> bytes:
    """Return a close frame; `None` = without a status code."""
    return b"\x88\x00" if code is None else b"\x88\x02" + code.to_bytes(2, "big")


def pong_frame(payload: bytes) -> bytes:
    """Return the reply to a ping; `payload` has at most 125 bytes."""
    return bytes((0x8A, len(payload))) + payload


def close_reply(payload: bytes) -> bytes:
    """
    Return the reply to a client's close frame with `payload`.

    Raises:
        WebSocketError: If the status code is reserved or the reason is not UTF-8.

    """
    if not payload:
        return close_frame()
    code = int.from_bytes(payload[:2], "big")
    # RFC 6455 section 7.4: 1004 to 1006 and 1015 are never sent.
    is_known = 1000 <= code <= 1014 and code not in {1004, 1005, 1006}
    if len(payload) < 2 or not (is_known or 3000 <= code <= 4999):
        raise _protocol_error("the close code is reserved")
    if not _is_utf8(payload[2:]):
        raise WebSocketError(CloseCode.INVALID_TEXT, "the reason is not UTF-8")
    return close_frame(code)


def _unmask(payload: bytes | bytearray, mask: bytes | bytearray) -> bytes:
    """XOR with the repeated mask, as one large integer: the loop runs in C."""
    length = len(payload)
    if not any(mask):
        return bytes(payload)
    pad = bytes(mask) * (length // 4 + 1)
    masked = int.from_bytes(payload, "little") ^ int.from_bytes(pad[:length], "little")
    return masked.to_bytes(length, "little")


def _is_utf8(payload: bytes) -> bool:
    if payload.isascii():
        return True
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _protocol_error(problem: str) -> WebSocketError:
    return WebSocketError(CloseCode.PROTOCOL_ERROR, problem)
