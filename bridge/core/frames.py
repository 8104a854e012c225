"""
From a stored message to the bytes on the wire, once for all windows of a user.

A frame from server to client is not masked (RFC 6455 section 5.1), so the same bytes
serve every websocket, and what is written at one time is joined into one piece. The message's data is JSON already and was checked when it came
in: it is spliced into the packet, never decoded and encoded again.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Final

import orjson

from bridge.core.message import Stored

_TEXT_FRAME: Final = 0x81  # FIN and opcode 1, RFC 6455 section 5.2
_HEAD_8: Final = Struct(">BB").pack
_HEAD_16: Final = Struct(">BBH").pack
_HEAD_64: Final = Struct(">BBQ").pack


def event_packet(event: str, data: bytes, position: str) -> bytes:
    """
    Return `42["event",data,"position"]`: engine.io message, socket.io event.

    Args:
        event: The event name.
        data: One JSON value in UTF-8, taken as it is.
        position: An opaque string without characters that JSON would escape.

    """
    return b'42[%b,%b,"%b"]' % (_event_json(event), data, position.encode())


def text_frame(payload: bytes) -> bytes:
    """Return `payload` as one unmasked, uncompressed websocket text frame."""
    length = len(payload)
    if length < 126:
        return _HEAD_8(_TEXT_FRAME, length) + payload
    if length < 1 << 16:
        return _HEAD_16(_TEXT_FRAME, 126, length) + payload
    return _HEAD_64(_TEXT_FRAME, 127, length) + payload


class Burst:
    """
    Messages of one user that are sent together, encoded once for all windows.

    Attributes:
        packets: Offset and packet of each, in order.
        frames: All of them as websocket frames, to be written in one piece.

    """

    __slots__ = ("frames", "packets")

    def __init__(self, packets: Sequence[tuple[int, bytes]], frames: bytes) -> None:
        self.packets = packets
        self.frames = frames

    def after(self, offset: int) -> "Burst":
        """Return what of it lies behind `offset`."""
        packets = [each for each in self.packets if each[0] > offset]
        return Burst(packets, b"".join([text_frame(packet) for _, packet in packets]))


def burst(messages: Sequence[Stored], *, epoch: str, now_s: float) -> Burst:
    """Encode those of `messages`, one user's and in order, that have not expired."""
    packets: list[tuple[int, bytes]] = []
    frames: list[bytes] = []
    position = epoch.encode()
    for stored in messages:
        message = stored.message
        # Once for each message: calls would cost as much as all the rest of it.
        deadline_s = message.deadline_s
        if deadline_s is not None and deadline_s <= now_s:
            continue
        offset = stored.offset
        event = _EVENT_JSON.get(message.event) or _event_json(message.event)
        packet = b'42[%b,%b,"%b-%d"]' % (event, message.data, position, offset)
        packets.append((offset, packet))
        frames.append(text_frame(packet))
    return Burst(packets, frames[0] if len(frames) == 1 else b"".join(frames))


# Event names are few and long-lived; their JSON is made once. Bounded, because a
# producer chooses them.
_EVENT_JSON: dict[str, bytes] = {}
_EVENT_JSON_MAX: Final = 1024


def _event_json(event: str) -> bytes:
    encoded = _EVENT_JSON.get(event)
    if encoded is None:
        encoded = orjson.dumps(event)
        if len(_EVENT_JSON) < _EVENT_JSON_MAX:
            _EVENT_JSON[event] = encoded
    return encoded
