"""
Header values as JSON, for operators. Invalid bytes never raise.

core/properties.py reads the few headers that the bridge itself uses. Types: AMQP 0-9-1 section
4.2.5.5 with RabbitMQ's errata.
"""

import math
from collections.abc import Callable
from struct import Struct
from typing import Final

from bridge.core.properties import Properties, iter_array, iter_table

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_FLOAT: Final = Struct(">f").unpack
_DOUBLE: Final = Struct(">d").unpack
# A producer must not be able to exhaust the stack.
_DEPTH_MAX: Final = 10
_NUMBERS: Final = frozenset({"delivery_mode", "priority", "timestamp"})
_PROPERTY_NAMES: Final = (
    "content_type", "content_encoding", "delivery_mode", "priority", "correlation_id",
    "reply_to", "expiration", "message_id", "timestamp", "type", "user_id", "app_id",
    "cluster_id",
)  # fmt: skip


def readable_table(
    table: bytes | None, *, without: frozenset[bytes]
) -> dict[str, Json]:
    """Return a header table as JSON, without the entries named in `without`."""
    return {
        _text(name): _value(value, depth=0)
        for name, value, _ in iter_table(table or b"")
        if name not in without
    }


def readable_properties(properties: Properties) -> dict[str, Json]:
    """Return the properties that are set as JSON, except the headers."""
    found: dict[str, Json] = {}
    for name in _PROPERTY_NAMES:
        raw: bytes | None = getattr(properties, name)
        if raw is not None:
            found[name] = int.from_bytes(raw, "big") if name in _NUMBERS else _text(raw)
    return found


def _value(value: bytes, *, depth: int) -> Json:
    letter, raw = value[:1], value[1:]
    reader = _READERS.get(letter)
    if reader is not None:
        return reader(raw)
    if depth >= _DEPTH_MAX:
        return "…"
    if letter == b"F":
        return {
            _text(name): _value(inner, depth=depth + 1)
            for name, inner, _ in iter_table(raw[4:])
        }
    return [_value(inner, depth=depth + 1) for inner in iter_array(raw[4:])]


def _finite(number: float) -> Json:
    return number if math.isfinite(number) else str(number)


def _decimal(raw: bytes) -> Json:
    return f"{int.from_bytes(raw[1:], 'big', signed=True)}e-{raw[0]}"


def _signed(raw: bytes) -> Json:
    return int.from_bytes(raw, "big", signed=True)


def _unsigned(raw: bytes) -> Json:
    return int.from_bytes(raw, "big")


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


_READERS: Final[dict[bytes, Callable[[bytes], Json]]] = {
    b"S": lambda raw: _text(raw[4:]),
    b"x": lambda raw: _text(raw[4:]),
    b"t": lambda raw: raw != b"\x00",
    b"f": lambda raw: _finite(_FLOAT(raw)[0]),
    b"d": lambda raw: _finite(_DOUBLE(raw)[0]),
    b"D": _decimal,
    b"V": lambda _raw: None,
    **dict.fromkeys((b"b", b"s", b"I", b"l"), _signed),
    **dict.fromkeys((b"B", b"u", b"i", b"L", b"T"), _unsigned),
}
