"""The frame readers, against pamqp and a decoder that reads frame by frame."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from pamqp import commands
from pamqp.frame import unmarshal

from bridge.amqp.frame_reader import DeliveryReader, FrameReader, ReturnReader
from bridge.core.message import Delivery
from tests.fuzz.harness import pieces, run
from tests.unit.amqp.wire import (
    ACK,
    HEARTBEAT,
    content,
    deliver,
    method,
    returned,
    short,
)

MODULES: Final = ("bridge.amqp.frame_reader",)
_ONE: Final = deliver(1, 1) + b"".join(content(1, b"\x10\x00\x02", b"{}"))
_LONG: Final = deliver(2, 9) + b"".join(content(2, b"\x00\x00", b"abcdef", cuts=(2, 4)))
_RETURN: Final = returned(1) + b"".join(content(1, b"\x00\x00", b"{}"))
SEEDS: Final = (
    b"\xff" + _ONE + HEARTBEAT + _LONG,
    b"\x03" + _LONG + _ONE * 2,
    b"\x07" + _RETURN + method(1, ACK, b"\x00" * 9) + _ONE,
    b"\x14" + method(1, 40, b"\x00" * 9, class_id=20) + _ONE,
    b"\x05" + method(0, 60, b"\x03low", class_id=10) + method(0, 61, b"", class_id=10),
    b"\x01AMQP\x00\x00\x09\x01",
    b"\xff" + _ONE[:-1],
    # found: a heartbeat on the channel of a delivery
    b"\xff" + deliver(1, 1) + b"\x08\x00\x01\x00\x00\x00\x00\xce" + _LONG,
    # found: methods and headers that are too short for what their type needs
    b"\xff" + method(1, 60, b"\xff" + b"\x00" * 20),
    b"\x01" + method(1, 60, b"\xff" + b"\x00" * 20),
    b"\xff" + deliver(1, 1) + b"\x02\x00\x01\x00\x00\x00\x00\xce",
)
_CHANNELS: Final = (1, 2)


def fuzz_one(data: bytes) -> None:
    """Any split gives the same; valid streams are read as pamqp reads them."""
    if len(data) < 2:
        return
    size, stream = data[0] or 256, data[1:]
    run(_compare(stream, size))


async def _compare(stream: bytes, size: int) -> None:
    whole = await _read(stream, len(stream))
    split = await _read(stream, size)
    expected = _decode(stream)
    if expected is not None:
        assert whole == split == expected
    for found, passed in (whole, split):
        # Nothing is invented, and nothing is kept twice.
        assert len(passed) + sum(len(each.body) for each in found) <= len(stream)
    plain = FrameReader(now=lambda: 0.0)
    assert await _passed_on(plain, stream, size) == stream
    returns: list[tuple[int, int, str]] = []
    reader = ReturnReader(now=lambda: 0.0)
    reader.subscribe(lambda *facts: returns.append(facts))
    first = await _passed_on(reader, stream, size), list(returns), reader.blocked_for
    returns.clear()
    reader = ReturnReader(now=lambda: 0.0)
    reader.subscribe(lambda *facts: returns.append(facts))
    assert first == (
        await _passed_on(reader, stream, len(stream)),
        returns,
        reader.blocked_for,
    )


async def _passed_on(reader: FrameReader, stream: bytes, size: int) -> bytes:
    for piece in pieces(stream, size):
        reader.feed_data(piece)
        assert len(reader._incomplete) <= len(stream)
    reader.feed_eof()
    return await reader.read()


Result = tuple[list[Delivery], bytes]


async def _read(stream: bytes, size: int) -> Result:
    reader = DeliveryReader(now=lambda: 0.0)
    found: list[Delivery] = []
    for channel in _CHANNELS:
        reader.subscribe(channel, f"q{channel}", found.extend)
    return found, await _passed_on(reader, stream, size)


@dataclass
class _Open:
    delivery: Delivery
    missing: int = -1  # before the header
    parts: list[bytes] = field(default_factory=list)

    def take(self, kind: int, payload: bytes) -> bool:
        """Add a header or body; false if it is out of order."""
        if kind == 2:
            if len(payload) < 12 or self.missing >= 0:
                return False
            self.missing = int.from_bytes(payload[4:12], "big")
            self.delivery.raw_properties = payload[12:]
            return True
        self.missing -= len(payload)
        self.parts.append(payload)
        self.delivery.body = b"".join(self.parts)
        return self.missing >= 0


def _frames(stream: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, channel and bytes of each frame; 0 for what is not a whole frame."""
    at = 0
    while len(stream) - at >= 7:
        kind, channel, size = struct.unpack_from(">BHI", stream, at)
        stop = at + size + 8
        if kind not in {1, 2, 3, 8} or stop > len(stream):
            break
        yield kind, channel, stream[at:stop]
        at = stop
    yield 0, 0, stream[at:]


def _decode(stream: bytes) -> Result | None:
    """Decode frame by frame; ``None`` if a frame is invalid or out of order."""
    found: list[Delivery] = []
    passed: list[bytes] = []
    contents: dict[int, _Open] = {}
    for kind, channel, frame in _frames(stream):
        if kind and frame[-1] != 0xCE:
            return None
        partial = contents.get(channel)
        if kind == 1 and frame[7:-1][:4] == b"\x00\x3c\x00\x3c":
            delivery = _deliver(frame, channel)
            if delivery is None or partial is not None:
                return None
            contents[channel] = _Open(delivery)
        elif partial is None or kind not in {2, 3}:
            passed.append(frame)
        elif not partial.take(kind, frame[7:-1]):
            return None
        elif partial.missing == 0:
            found.append(contents.pop(channel).delivery)
    return [each for each in found if each.queue], b"".join(passed)


def _deliver(frame: bytes, channel: int) -> Delivery | None:
    try:
        _, _, method_frame = unmarshal(frame)
    except Exception:  # noqa: BLE001 - pamqp raises many types for invalid frames
        return None
    if not isinstance(method_frame, commands.Basic.Deliver):
        return None
    exchange, key = method_frame.exchange or "", method_frame.routing_key or ""
    size = frame[11] + len(exchange.encode()) + len(key.encode())
    if size != len(frame) - 24 or not frame.endswith(short(key.encode()) + b"\xce"):
        return None  # pamqp takes the bytes that are there
    return Delivery(
        tag=(method_frame.delivery_tag or 0) % (1 << 64),  # pamqp reads it signed
        redelivered=bool(frame[7 + 4 + 1 + frame[11] + 8]),
        exchange=exchange.encode(),
        routing_key=key.encode(),
        raw_properties=b"",
        body=b"",
        queue=f"q{channel}" if channel in _CHANNELS else "",
    )
