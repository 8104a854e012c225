"""
The frames of a publish, for channels that write many of them.

The library's way costs several times as much as everything else on the path of a message
that is built here and written at once with `BrokerConnection.write`.
"""

from struct import Struct
from typing import Final

from bridge.amqp.connection import BrokerConnection
from bridge.amqp.frame_reader import RequestReader

_FRAME_MAX_BYTES: Final = 128 << 10
_METHOD: Final = 1
_HEADER: Final = 2
_BODY: Final = 3
_END: Final = b"\xce"
_FRAME: Final = Struct(">BHI").pack
_HEADER_FRAME: Final = Struct(">BHIHHQ").pack
_FRAME_OVERHEAD_BYTES: Final = 8
_HEADER_HEAD_BYTES: Final = 12  # class, weight and body size
_BASIC: Final = 60
_BASIC_PUBLISH: Final = b"\x00\x3c\x00\x28\x00\x00"  # with the reserved field


class PublishFrames:
    """Renders the frames of publishes on the channel with this number."""

    def __init__(
        self, connection: BrokerConnection[RequestReader], channel: int
    ) -> None:
        self._channel = channel
        frame_max = connection.wire.connection_tune.frame_max or _FRAME_MAX_BYTES
        self._max_part_bytes = frame_max - _FRAME_OVERHEAD_BYTES

    def method(self, exchange: bytes, routing_key: bytes, *, mandatory: bool) -> bytes:
        """Return the first frame; neither name has more than 255 bytes."""
        arguments = b"".join(
            (
                _BASIC_PUBLISH,
                _short(exchange),
                _short(routing_key),
                b"\x01" if mandatory else b"\x00",
            )
        )
        return _FRAME(_METHOD, self._channel, len(arguments)) + arguments + _END

    def content(self, properties: bytes, body: bytes) -> bytes:
        """Return the frames that follow the first one; `properties` are rendered."""
        number = self._channel
        size = _HEADER_HEAD_BYTES + len(properties)
        header = _HEADER_FRAME(_HEADER, number, size, _BASIC, 0, len(body))
        frames = [header, properties, _END]
        for start in range(0, len(body), self._max_part_bytes):
            part = body[start : start + self._max_part_bytes]
            frames += (_FRAME(_BODY, number, len(part)), part, _END)
        return b"".join(frames)


def _short(raw: bytes) -> bytes:
    return bytes((len(raw),)) + raw
