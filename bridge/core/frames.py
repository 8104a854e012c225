"""
Encoding of stored messages: packets and WebSocket frames, once for all windows of a user.

Frames from a server are not masked (RFC 6455 section 5.1), so the same bytes serve every
WebSocket, and messages that are sent together are joined into one write. The data of a
message is JSON that was validated when the message was parsed: it is copied into the
packet without being decoded.
"""

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final

import orjson

from bridge.core.clock_reading import ClockReading
from bridge.core.message import Message, Stored
from bridge.core.position import Position

# FIN and opcode, RFC 6455 section 5.2.
_TEXT_FRAME: Final = 0x81
_BINARY_FRAME: Final = 0x82
_HEAD_8: Final = Struct(">BB").pack
_HEAD_16: Final = Struct(">BBH").pack
_HEAD_64: Final = Struct(">BBQ").pack


def event_packet(event: str, data: bytes, position: str) -> bytes:
    """
    Return `42["event",data,"position"]`: Engine.IO message, Socket.IO event.

    Args:
        event: The event name.
        data: One JSON value in UTF-8, copied as it is.
        position: A string without characters that JSON would escape.

    """
    return b'42[%b,%b,"%b"]' % (_event_json(event), data, position.encode())


def text_frame(payload: bytes) -> bytes:
    """Return `payload` as one unmasked, uncompressed WebSocket text frame."""
    length = len(payload)
    if length < 126:
        return _HEAD_8(_TEXT_FRAME, length) + payload
    if length < 1 << 16:
        return _HEAD_16(_TEXT_FRAME, 126, length) + payload
    return _HEAD_64(_TEXT_FRAME, 127, length) + payload


def short_binary_frame(payload: bytes) -> bytes:
    """Return `payload`, 126 to 65535 bytes, as one WebSocket binary frame."""
    return _HEAD_16(_BINARY_FRAME, 126, len(payload)) + payload


class EncodedMessages:
    """
    Messages of one user that are sent together, encoded once for all windows.

    Attributes:
        packets: Offset and packet of each message, in order.
        frames: All packets as WebSocket frames, for one write.
        late: The offsets of older messages that are held back, in order.

    """

    __slots__ = ("frames", "late", "packets")

    def __init__(
        self,
        packets: Sequence[tuple[int, bytes]],
        frames: bytes,
        late: Sequence[int] = (),
    ) -> None:
        self.packets = packets
        self.frames = frames
        self.late = late

    def complete(self, offset: int) -> int:
        """Return up to where a window has everything that has received `offset`."""
        return min(offset, self.late[0] - 1) if self.late else offset

    def after(self, offset: int) -> "EncodedMessages":
        """Return the messages after `offset`."""
        packets = [each for each in self.packets if each[0] > offset]
        frames = b"".join([text_frame(packet) for _, packet in packets])
        return EncodedMessages(packets, frames, self.late)


def encode_messages(
    messages: Sequence[Stored],
    epoch: str,
    read_clock: Callable[[], ClockReading],
    late: Sequence[int] = (),
) -> EncodedMessages:
    """
    Encode the messages of one user, in order, without those that have expired.

    Args:
        messages: The messages.
        epoch: The epoch of their positions.
        read_clock: Called only for messages with a deadline.
        late: See `EncodedMessages`.

    """
    packets: list[tuple[int, bytes]] = []
    frames: list[bytes] = []
    epoch_bytes = epoch.encode()
    for stored in messages:
        message = stored.message
        # Inlined: this runs for every message, and each call would cost as much as the
        # formatting itself.
        deadline_s = message.deadline_s
        if deadline_s is not None and message.is_expired(read_clock()):
            continue
        offset = stored.offset
        event = _EVENT_JSON.get(message.event) or _event_json(message.event)
        if late:
            position = str(Position.with_late(epoch, offset, late))
            packet = event_packet(message.event, message.data, position)
        else:
            packet = b'42[%b,%b,"%b-%d"]' % (event, message.data, epoch_bytes, offset)
        packets.append((offset, packet))
        frames.append(text_frame(packet))
    joined = frames[0] if len(frames) == 1 else b"".join(frames)
    return EncodedMessages(packets, joined, late)


def encode_past(
    message: Message, *, epoch: str, at: int, late: Sequence[int]
) -> EncodedMessages:
    """
    Encode a message that is not newer than all that its windows have received.

    Args:
        message: The message.
        epoch: The epoch of the position.
        at: What the windows have received, except what is held back.
        late: See `EncodedMessages`, for the time after the message is written.

    """
    position = Position.with_late(epoch, at, late)
    packet = event_packet(message.event, message.data, str(position))
    return EncodedMessages([(at, packet)], text_frame(packet), late)


# A cache of event names as JSON: there are few of them. It is bounded because producers
# choose the names.
_EVENT_JSON: dict[str, bytes] = {}
_EVENT_JSON_MAX: Final = 1024


def _event_json(event: str) -> bytes:
    encoded = _EVENT_JSON.get(event)
    if encoded is None:
        encoded = orjson.dumps(event)
        if len(_EVENT_JSON) < _EVENT_JSON_MAX:
            _EVENT_JSON[event] = encoded
    return encoded
