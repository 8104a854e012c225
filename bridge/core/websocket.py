"""
What a page sends over a websocket, read strictly, and the bridge's control frames.

RFC 6455 without extensions: frames from a page are masked, control frames are short and
whole, lengths are written in their shortest form, text is UTF-8. What is longer than a
page may send is refused as soon as its length is known, before it is kept.
"""

from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Mapping
from enum import IntEnum
from hashlib import sha1
from typing import Final

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_CONTROL_MAX_BYTES: Final = 125
_LENGTH_16: Final = 126


class Opcode(IntEnum):
    """Kinds of frames (RFC 6455 section 5.2)."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(IntEnum):
    """Why a websocket is closed (RFC 6455 section 7.4.1)."""

    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    INVALID_TEXT = 1007
    TOO_BIG = 1009


class WebsocketError(ValueError):
    """What a page sent breaks the protocol; it is closed with `code`."""

    def __init__(self, code: CloseCode, problem: str) -> None:
        super().__init__(code, problem)
        self.code = code
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


Frame = tuple[int, bytes]


class FrameReader:
    """
    Takes bytes in pieces of any size; gives out messages and control frames.

    Holds at most what was fed, plus one message of `max_bytes` that is not whole yet.
    """

    __slots__ = ("_at", "_buffer", "_max_bytes", "_opcode", "_parts")

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer: bytes | bytearray = b""
        self._at = 0
        self._opcode = 0  # of a message whose first frames have come
        self._parts: bytearray | None = None

    def feed(self, data: bytes) -> None:
        """Add what has come; take out with `next` whatever is whole."""
        if self._at == len(self._buffer):
            self._buffer = data
        elif isinstance(self._buffer, bytearray):
            # The front of a bytearray is dropped without copying what is behind it.
            del self._buffer[: self._at]
            self._buffer += data
        else:
            self._buffer = bytearray(memoryview(self._buffer)[self._at :])
            self._buffer += data
        self._at = 0

    def next(self) -> Frame | None:
        """
        Return opcode and payload of the next message or control frame.

        Returns:
            `None` if none is whole yet. Text is valid UTF-8.

        Raises:
            WebsocketError: If what came is no websocket; nothing can be read after it.

        """
        while (frame := self._next_frame()) is not None:
            is_last, opcode, payload = frame
            if opcode < Opcode.CLOSE and not (is_last and opcode):
                self._opcode = opcode or self._opcode
                if self._parts is None:
                    self._parts = bytearray()
                self._parts += payload
                if not is_last:
                    continue
                opcode, payload = self._opcode, bytes(self._parts)
                self._parts = None
            if opcode == Opcode.TEXT and not _is_utf8(payload):
                raise WebsocketError(CloseCode.INVALID_TEXT, "the text is not UTF-8")
            return opcode, payload
        return None

    def _next_frame(self) -> tuple[bool, int, bytes] | None:
        """Take out one frame, unmasked; `None` if it is not whole yet."""
        buffer, at = self._buffer, self._at
        have = len(buffer) - at
        if have < 2:
            return None
        first, second = buffer[at], buffer[at + 1]
        self._check_head(first, second)
        length = second & 0x7F
        start = at + 2
        if length >= _LENGTH_16:
            size = 2 if length == _LENGTH_16 else 8
            if have < 2 + size:
                return None
            length = int.from_bytes(buffer[start : start + size], "big")
            start += size
            if length < (_LENGTH_16 if size == 2 else 1 << 16) or length >> 63:
                raise _protocol_error("a length is not in its shortest form")
        kept = len(self._parts) if self._parts and not first & 8 else 0
        if length + kept > self._max_bytes and not first & 8:
            raise WebsocketError(
                CloseCode.TOO_BIG, f"a message is longer than {self._max_bytes} bytes"
            )
        end = start + 4 + length
        if len(buffer) < end:
            return None
        payload = _unmask(buffer[start + 4 : end], buffer[start : start + 4])
        if end == len(buffer):
            self._buffer, self._at = b"", 0
        else:
            self._at = end
        return bool(first & 0x80), first & 0x0F, payload

    def _check_head(self, first: int, second: int) -> None:
        opcode = first & 0x0F
        if first & 0x70:
            raise _protocol_error("a frame uses an extension that was not agreed on")
        if not second & 0x80:
            raise _protocol_error("a frame is not masked")
        if opcode >= Opcode.CLOSE:
            if opcode > Opcode.PONG:
                raise _protocol_error(f"opcode {opcode} does not exist")
            if not first & 0x80 or second & 0x7F > _CONTROL_MAX_BYTES:
                raise _protocol_error("a control frame is long or in pieces")
        elif opcode > Opcode.BINARY:
            raise _protocol_error(f"opcode {opcode} does not exist")
        elif opcode and self._parts is not None:
            raise _protocol_error("a message begins inside another")
        elif not opcode and self._parts is None:
            raise _protocol_error("a message goes on that has not begun")


def close_frame(code: int | None = None) -> bytes:
    """Return the frame that ends a websocket."""
    return b"\x88\x00" if code is None else b"\x88\x02" + code.to_bytes(2, "big")


def pong_frame(payload: bytes) -> bytes:
    """Return the answer to a ping with `payload`, of 125 bytes at most."""
    return bytes((0x8A, len(payload))) + payload


def close_reply(payload: bytes) -> bytes:
    """
    Return the answer to a page's close frame with `payload`.

    Raises:
        WebsocketError: If it holds a code that may not be sent, or no UTF-8.

    """
    if not payload:
        return close_frame()
    code = int.from_bytes(payload[:2], "big")
    # RFC 6455 section 7.4: 1004 to 1006 and 1015 never stand on the wire.
    is_known = 1000 <= code <= 1014 and code not in {1004, 1005, 1006}
    if len(payload) < 2 or not (is_known or 3000 <= code <= 4999):
        raise _protocol_error("a close code that may not be sent")
    if not _is_utf8(payload[2:]):
        raise WebsocketError(CloseCode.INVALID_TEXT, "the reason is not UTF-8")
    return close_frame(code)


# --- the handshake ----------------------------------------------------------------------


def websocket_key(headers: Mapping[str, str]) -> str | None:
    """
    Return the key of a request that asks for a websocket; `None` if it is no such.

    Args:
        headers: Looked up in lower case.

    """
    if headers.get("upgrade", "").strip().lower() != "websocket":
        return None
    tokens = headers.get("connection", "").lower().split(",")
    if "upgrade" not in {token.strip() for token in tokens}:
        return None
    if headers.get("sec-websocket-version") != "13":
        return None
    key = headers.get("sec-websocket-key", "")
    try:
        is_good = len(a2b_base64(key, strict_mode=True)) == 16
    except (Base64Error, ValueError):
        return None
    return key if is_good else None


def switching_protocols(key: str) -> bytes:
    """Return the HTTP answer that begins a websocket; no extension is agreed on."""
    accept = b64encode(sha1(key.encode() + _GUID, usedforsecurity=False).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n"
        b"Server: bridge\r\n\r\n" % accept
    )


def _unmask(payload: bytes | bytearray, mask: bytes | bytearray) -> bytes:
    """XOR with the mask, repeated: as one large number, which is C's work."""
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


def _protocol_error(problem: str) -> WebsocketError:
    return WebsocketError(CloseCode.PROTOCOL_ERROR, problem)
