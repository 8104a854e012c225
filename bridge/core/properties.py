"""
The properties of an AMQP message, parsed leniently from their bytes.

RabbitMQ accepts property bytes that client libraries refuse to decode (a timestamp in
microseconds, a message id that is not UTF-8). A library that raises while reading closes the
connection, and RabbitMQ redelivers the same message to the next one. So the bridge reads only
the values that it needs, as bytes, and copies the others unchanged.

Layout: AMQP 0-9-1 section 4.2.6.1, a 16 bit word of flags, then the values of the flags that
are set, in order. Tables: section 4.2.5.5, with RabbitMQ's list of types.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

# One bit per property, from the highest down, in the order of their values.
_CONTENT_TYPE: Final = 1 << 15
_CONTENT_ENCODING: Final = 1 << 14
_HEADERS: Final = 1 << 13
_DELIVERY_MODE: Final = 1 << 12
_PRIORITY: Final = 1 << 11
_CORRELATION_ID: Final = 1 << 10
_EXPIRATION: Final = 1 << 8
_MESSAGE_ID: Final = 1 << 7
_TIMESTAMP: Final = 1 << 6
_TYPE: Final = 1 << 5
_LAYOUT: Final = (
    ("content_type", _CONTENT_TYPE),
    ("content_encoding", _CONTENT_ENCODING),
    ("headers", _HEADERS),
    ("delivery_mode", _DELIVERY_MODE),
    ("priority", _PRIORITY),
    ("correlation_id", _CORRELATION_ID),
    ("reply_to", 1 << 9),
    ("expiration", _EXPIRATION),
    ("message_id", _MESSAGE_ID),
    ("timestamp", _TIMESTAMP),
    ("type", _TYPE),
    ("user_id", 1 << 4),
    ("app_id", 1 << 3),
    ("cluster_id", 1 << 2),
)
# Properties that usually differ between two messages of a producer.
_PER_MESSAGE: Final = (
    _HEADERS | _CORRELATION_ID | _EXPIRATION | _MESSAGE_ID | _TIMESTAMP
)
# Width in bytes of the values that are neither short strings nor the header table.
_FIXED_WIDTH: Final = {_DELIVERY_MODE: 1, _PRIORITY: 1, _TIMESTAMP: 8}
_TABLE: Final = -1

PERSISTENT: Final = b"\x02"


@dataclass(slots=True)
class Properties:
    """
    The properties of one message: the bytes of each value, ``None`` if not set.

    Treat it as frozen. It is not, because a frozen dataclass takes longer to create and
    thousands are created per second. Short strings are without their length byte,
    ``headers`` is the content of the table without its length, ``timestamp`` has 8 bytes,
    ``delivery_mode`` and ``priority`` have one.
    """

    content_type: bytes | None = None
    content_encoding: bytes | None = None
    headers: bytes | None = None
    delivery_mode: bytes | None = None
    priority: bytes | None = None
    correlation_id: bytes | None = None
    reply_to: bytes | None = None
    expiration: bytes | None = None
    message_id: bytes | None = None
    timestamp: bytes | None = None
    type: bytes | None = None
    user_id: bytes | None = None
    app_id: bytes | None = None
    cluster_id: bytes | None = None

    @property
    def has_per_message_values(self) -> bool:
        """Whether a property is set that usually differs between two messages."""
        return (
            self.message_id is not None
            or self.headers is not None
            or self.timestamp is not None
            or self.expiration is not None
        )

    def with_headers(
        self,
        added: Mapping[str, str | int | bytes],
        *,
        dropped_prefix: str,
        carried: frozenset[bytes] = frozenset(),
    ) -> "Properties":
        """
        Return a copy whose header table ends with `added`.

        Entries whose name starts with `dropped_prefix` are left out, because a producer may
        have forged them; those in `carried` and all others are copied byte by byte.
        """
        prefix = dropped_prefix.encode()
        kept = b"".join(
            entry
            for name, _, entry in iter_table(self.headers or b"")
            if name in carried or not name.startswith(prefix)
        )
        return replace(self, headers=kept + render_table(added))


NO_PROPERTIES: Final = Properties()


def parse_properties(raw: bytes) -> Properties:
    """
    Read the property list of a content header.

    Args:
        raw: The content header, from its flags on.

    Returns:
        The properties up to the first invalid byte. Invalid bytes never raise.

    """
    found = _KNOWN.get(raw)
    if found is None:
        if len(raw) < 2:
            return NO_PROPERTIES
        flags = raw[0] << 8 | raw[1]
        found = _read(raw, flags)
        if not flags & _PER_MESSAGE:
            if len(_KNOWN) >= _KNOWN_MAX:
                _KNOWN.clear()
            _KNOWN[raw] = found
    return found


# A producer that sets no property per message sends the same bytes with each of them. The
# cache is bounded because producers choose the bytes; a short string has 255 bytes at most.
_KNOWN: dict[bytes, Properties] = {}
_KNOWN_MAX: Final = 256


def _read(raw: bytes, flags: int) -> Properties:
    at = 2
    word = flags
    while (
        word & 1
    ):  # the continuation bit: another word of flags, which no property uses
        if len(raw) < at + 2:
            return NO_PROPERTIES
        word = raw[at] << 8 | raw[at + 1]
        at += 2
    found = Properties()
    end = len(raw)
    for name, width in _fields_of(flags):
        if width == _TABLE:
            start = at + 4
            stop = start + int.from_bytes(raw[at:start], "big")
        elif width:
            start = at
            stop = start + width
        else:
            start = at + 1
            stop = start + (raw[at] if at < end else 0)
        if stop > end or start > end:
            break
        setattr(found, name, raw[start:stop])
        at = stop
    return found


# Producers use few combinations of properties. The cache is bounded because they choose them.
_FIELDS: dict[int, tuple[tuple[str, int], ...]] = {}
_FIELDS_MAX: Final = 1024


def _fields_of(flags: int) -> tuple[tuple[str, int], ...]:
    """Return names and widths of the properties whose flags are set, in their order."""
    fields = _FIELDS.get(flags)
    if fields is None:
        fields = tuple(
            (name, _TABLE if bit == _HEADERS else _FIXED_WIDTH.get(bit, 0))
            for name, bit in _LAYOUT
            if flags & bit
        )
        if len(_FIELDS) < _FIELDS_MAX:
            _FIELDS[flags] = fields
    return fields


def render_properties(properties: Properties) -> bytes:
    """
    Return the bytes of `properties` in a content header, flags first.

    Raises:
        ValueError: If a short string has more than 255 bytes.

    """
    flags = 0
    parts: list[bytes] = []
    for name, bit in _LAYOUT:
        value: bytes | None = getattr(properties, name)
        if value is None:
            continue
        flags |= bit
        if bit == _HEADERS:
            parts.append(len(value).to_bytes(4, "big"))
        elif bit not in _FIXED_WIDTH:
            if len(value) > 255:
                message = f"property {name} has {len(value)} bytes, at most 255 fit"
                raise ValueError(message)
            parts.append(bytes((len(value),)))
        parts.append(value)
    return flags.to_bytes(2, "big") + b"".join(parts)


# --- header tables -------------------------------------------------------------------

# Bytes of a value by its type letter, as RabbitMQ reads section 4.2.5.5 (its errata: s is a
# 16 bit integer, l a 64 bit one, x a byte array).
_VALUE_WIDTH: Final = {
    b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"u": 2, b"I": 4, b"i": 4, b"l": 8, b"L": 8,
    b"f": 4, b"d": 8, b"D": 5, b"T": 8, b"V": 0,
}  # fmt: skip
_PREFIXED_BY_LENGTH: Final = frozenset({b"S", b"A", b"F", b"x"})
_SIGNED: Final = frozenset({b"b", b"s", b"I", b"l"})
_UNSIGNED: Final = frozenset({b"B", b"u", b"i", b"L"})


def iter_table(table: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """
    Yield ``(name, value with its type letter, whole entry)`` for each entry.

    Stops at the first invalid entry.
    """
    at = 0
    end = len(table)
    while at < end:
        start = at
        name_end = at + 1 + table[at]
        name = table[at + 1 : name_end]
        letter = table[name_end : name_end + 1]
        value_at = name_end + 1
        if letter in _PREFIXED_BY_LENGTH:
            length = int.from_bytes(table[value_at : value_at + 4], "big")
            at = value_at + 4 + length
        elif letter in _VALUE_WIDTH:
            at = value_at + _VALUE_WIDTH[letter]
        else:
            return
        if at > end:
            return
        yield name, table[name_end:at], table[start:at]


def iter_array(array: bytes) -> Iterator[bytes]:
    """Yield each value of an array's content, starting with its type letter; as `iter_table`."""
    at = 0
    end = len(array)
    while at < end:
        start = at
        letter = array[at : at + 1]
        if letter in _PREFIXED_BY_LENGTH:
            at += 5 + int.from_bytes(array[at + 1 : at + 5], "big")
        elif letter in _VALUE_WIDTH:
            at += 1 + _VALUE_WIDTH[letter]
        else:
            return
        if at > end:
            return
        yield array[start:at]


def header_int(table: bytes | None, name: str) -> int | None:
    """Return the integer in the header `name`; ``None`` if absent or of another type."""
    for value in _values(table, name):
        letter = value[:1]
        if letter in _SIGNED or letter in _UNSIGNED:
            return int.from_bytes(value[1:], "big", signed=letter in _SIGNED)
    return None


def header_bytes(table: bytes | None, name: str) -> bytes | None:
    """Return the bytes of the string in the header `name`; ``None`` as `header_int`."""
    for value in _values(table, name):
        if value[:1] in (b"S", b"x"):
            return value[5:]
    return None


def _values(table: bytes | None, name: str) -> Sequence[bytes]:
    wanted = name.encode()
    # Most tables lack the header: a fast search avoids parsing them.
    if not table or wanted not in table:
        return ()
    return [value for key, value, _ in iter_table(table) if key == wanted]


def render_table(entries: Mapping[str, str | int | bytes]) -> bytes:
    """
    Return the content of a header table: strings as type S, integers as type l.

    A lone surrogate in a string, which an error text may quote, is written as an escape.
    """
    parts: list[bytes] = []
    for name, value in entries.items():
        key = name.encode()
        parts.append(bytes((len(key),)) + key)
        if isinstance(value, int):
            parts.append(b"l" + value.to_bytes(8, "big", signed=True))
        else:
            text = (
                value
                if isinstance(value, bytes)
                else value.encode(errors="backslashreplace")
            )
            parts.append(b"S" + len(text).to_bytes(4, "big") + text)
    return b"".join(parts)
