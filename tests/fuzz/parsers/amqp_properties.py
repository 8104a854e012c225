"""Properties and headers of messages, against pamqp; and what is made of them."""

from typing import Final

import orjson
from pamqp.header import ContentHeader

from bridge.core.dead_letter import DeadLetterReader, original_expiration, redriven_id
from bridge.core.json_text import parse_json
from bridge.core.message import Delivery, Message, MessageLimits, parse_delivery
from bridge.core.properties import (
    Properties,
    iter_array,
    iter_table,
    parse_properties,
    render_properties,
    render_table,
)
from bridge.core.readable_headers import readable_properties, readable_table
from tests.fuzz.harness import Choices
from tests.unit.amqp.wire import long, short

MODULES: Final = (
    "bridge.core.properties",
    "bridge.core.message",
    "bridge.core.readable_headers",
    "bridge.core.dead_letter",
    "bridge.core.provenance",
)
_KEYS: Final = (b"ann", b"", b"q", b"\xff", b"\x00", "é".encode(), b"k" * 255)
_BODIES: Final = (
    b"{}",
    b"",
    b"[1e999]",
    b'"\\ud800"',
    b"\xff",
    b"[" * 2000,
    b"\x00" * 40,
)
_STRINGS: Final = (
    "content_type", "content_encoding", "correlation_id", "reply_to", "expiration",
    "message_id", "app_id", "user_id", "cluster_id",
)  # fmt: skip


def _seed(table: bytes, flags: int, rest: bytes = b"") -> bytes:
    return b"\x00\x00\x00" + flags.to_bytes(2, "big") + long(table) + rest


_DEATH: Final = (
    short(b"reason") + b"S" + long(b"expired")
    + short(b"time") + b"T" + bytes(8)
    + short(b"queue") + b"S" + long(b"q.unrouted")
)  # fmt: skip
_TABLE: Final = render_table(
    {
        "x-bridge-attempt": 3,
        "x-bridge-reason": "expired",
        "x-bridge-deadline": 10,
        "x-bridge-id": "a1",
        "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    }
)
SEEDS: Final = (
    b"\x00\x00\x00\x00\x00",
    _seed(_TABLE, 1 << 13),
    _seed(short(b"x-death") + b"A" + long(b"F" + long(_DEATH)), 1 << 13),
    _seed(short(b"CC") + b"A" + long(b"S" + long(b"bob")), 1 << 13),
    _seed(
        short(b"a") + b"F" + long(short(b"b") + b"D\x02\x00\x00\x00\x09")
        + short(b"c") + b"f\x7f\x80\x00\x00" + short(b"d") + b"V"
        + short(b"e") + b"t\x01" + short(b"g") + b"d" + bytes(8) + short(b"h") + b"x" + long(b"\xff"),
        1 << 13,
    ),
    _seed(b"", (1 << 13) | (1 << 8) | (1 << 7) | (1 << 6) | (1 << 5),
          short(b"60000") + short(b"id") + bytes(8) + short(b"order.changed")),
    b"\x00\x00\x00\xfc\x00" + short(b"text/plain") + short(b"gzip") + long(b"") + b"\x02\x05" + short(b"c"),
    b"\x01\x02\x03\x80\x00" + short(b"text/plain"),
    b"\x00\x01\x00\x80\x01\x00\x00" + short(b"x"),
)  # fmt: skip


def fuzz_one(data: bytes) -> None:
    """Nothing raises; what pamqp can read is read the same; copies keep every byte."""
    choices = Choices(data)
    exchange = choices.one_of((b"bridge.messages", b"", b"\xff"))
    routing_key, body = choices.one_of(_KEYS), choices.one_of(_BODIES)
    raw = choices.rest()
    properties = parse_properties(raw)
    assert parse_properties(raw) == properties
    _compare(raw, properties)
    _check_copies(properties)
    orjson.dumps(readable_properties(properties))
    orjson.dumps(readable_table(properties.headers, without=frozenset()))
    delivery = Delivery(
        tag=1,
        redelivered=True,
        exchange=exchange,
        routing_key=routing_key,
        raw_properties=raw,
        body=body,
        queue="q",
    )
    message = parse_delivery(
        delivery, limits=MessageLimits(body_bytes=200), now_s=1_800_000_000.0
    )
    if isinstance(message, Message):
        assert len(message.data) <= 200
        orjson.dumps([message.user, message.event, message.id, message.deadline_s])
        orjson.dumps(message.published_s)
        parse_json(message.data)
    else:
        message.text.encode()
    letter = DeadLetterReader().read(delivery)
    orjson.dumps(letter)
    for text in (redriven_id(delivery, letter.id), original_expiration(properties)):
        assert text is None or len(text) <= 200


def _compare(raw: bytes, properties: Properties) -> None:
    header = ContentHeader()
    try:
        header.unmarshal(b"\x00\x3c\x00\x00" + bytes(8) + raw)
    except Exception:  # noqa: BLE001 - pamqp raises many types for invalid values
        return
    if not _is_complete(properties, raw):
        return  # pamqp takes the bytes that are there
    for name in _STRINGS:
        theirs = getattr(header.properties, name)
        ours: bytes | None = getattr(properties, name)
        if theirs and isinstance(theirs, str):
            assert ours == theirs.encode(), name
    table = properties.headers or b""
    entries = list(iter_table(table))
    if sum(len(entry) for _, _, entry in entries) == len(table):
        theirs = getattr(header.properties, "headers", None) or {}
        assert {name.decode() for name, _, _ in entries} == set(theirs)


def _is_complete(properties: Properties, raw: bytes) -> bool:
    """Return whether all properties that are announced are there, in one word of flags."""
    return len(raw) >= 2 and render_properties(properties)[:2] == raw[:2]


def _check_copies(properties: Properties) -> None:
    assert parse_properties(render_properties(properties)) == properties
    table = properties.headers or b""
    entries = list(iter_table(table))
    assert (
        b"".join(entry for _, _, entry in entries)
        == table[: sum(map(len, (e for _, _, e in entries)))]
    )
    assert len(entries) <= len(table)
    for _, value, _ in entries:
        if value[:1] == b"A":
            assert sum(map(len, iter_array(value[5:]))) <= len(value)
    copy = properties.with_headers({"x-bridge-attempt": 1}, dropped_prefix="x-bridge-")
    own = [
        name
        for name, _, _ in iter_table(copy.headers or b"")
        if name[:9] == b"x-bridge-"
    ]
    assert own == [b"x-bridge-attempt"]
