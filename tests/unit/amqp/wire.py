"""AMQP frames built by hand, so that tests can send what no library would."""

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

HEARTBEAT: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"
METHOD, HEADER, BODY = 1, 2, 3

DELIVER, RETURN, GET_OK, ACK, PUBLISH = 60, 50, 71, 80, 40


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """One frame, AMQP 0-9-1 section 4.2.3."""
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def method(
    channel: int, method_id: int, arguments: bytes, *, class_id: int = 60
) -> bytes:
    return frame(METHOD, channel, struct.pack(">HH", class_id, method_id) + arguments)


def short(text: bytes) -> bytes:
    return bytes((len(text),)) + text


def long(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def content(
    channel: int, raw_properties: bytes, body: bytes, *, cuts: Sequence[int] = ()
) -> list[bytes]:
    """A header frame and body frames; the body is split at `cuts`."""
    head = struct.pack(">HHQ", 60, 0, len(body)) + raw_properties
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(body)}), len(body)]
    parts = [body[a:b] for a, b in pairwise(edges) if a < b]
    return [
        frame(HEADER, channel, head),
        *(frame(BODY, channel, part) for part in parts),
    ]


def deliver(
    channel: int,
    tag: int,
    *,
    exchange: bytes = b"bridge.messages",
    routing_key: bytes = b"ann",
    redelivered: bool = False,
    consumer_tag: bytes = b"ctag1.0",
) -> bytes:
    return method(
        channel,
        DELIVER,
        short(consumer_tag)
        + struct.pack(">QB", tag, redelivered)
        + short(exchange)
        + short(routing_key),
    )


def returned(channel: int, *, code: int = 312, text: bytes = b"NO_ROUTE") -> bytes:
    return method(
        channel,
        RETURN,
        struct.pack(">H", code) + short(text) + short(b"x") + short(b"k"),
    )


def publish(
    channel: int,
    exchange: bytes,
    routing_key: bytes,
    *,
    raw_properties: bytes,
    body: bytes,
    frame_bytes: int = 100_000,
) -> bytes:
    """All frames of a publish, as a client sends them."""
    arguments = b"\x00\x00" + short(exchange) + short(routing_key) + b"\x00"
    cuts = range(frame_bytes, len(body), frame_bytes)
    return method(channel, PUBLISH, arguments) + b"".join(
        content(channel, raw_properties, body, cuts=cuts)
    )
