"""Properties that RabbitMQ accepts and that pamqp cannot decode, or decodes wrongly."""

import struct

from tests.unit.amqp.wire import long, short

CONTENT_TYPE, HEADERS, EXPIRATION, MESSAGE_ID, TIMESTAMP = (
    1 << 15, 1 << 13, 1 << 8, 1 << 7, 1 << 6,
)  # fmt: skip


def properties(flags: int, values: bytes) -> bytes:
    return struct.pack(">H", flags) + values


def headers(table: bytes) -> bytes:
    return properties(HEADERS, long(table))


def header(letter: bytes, value: bytes, *, name: bytes = b"h") -> bytes:
    return headers(short(name) + letter + value)


POISON = {
    "timestamp in microseconds": properties(TIMESTAMP, struct.pack(">Q", 1_700_000_000_000_000)),
    "timestamp after year 9999": properties(TIMESTAMP, struct.pack(">Q", 253_402_300_800_000)),
    "timestamp below zero": properties(TIMESTAMP, struct.pack(">q", -1)),
    "timestamp in a header": header(b"T", struct.pack(">Q", 1_700_000_000_000_000)),
    "content type without UTF-8": properties(CONTENT_TYPE, short(b"\xff\xfe")),
    "message id without UTF-8": properties(MESSAGE_ID, short(b"\xc3\x28")),
    "header name without UTF-8": header(b"t", b"\x01", name=b"\xff"),
    "header name twice": headers((short(b"a") + b"t\x01") * 2),
    "header name empty": header(b"t", b"\x01", name=b""),
    "string without UTF-8": header(b"S", long(b"\xff\xfe")),
    "table of everything": header(b"F", long(short(b"\xff") + b"T" + b"\xff" * 8)),
    "array of everything": header(b"A", long(b"T" + b"\xff" * 8 + b"S" + long(b"\xff"))),
    "table in an array in a table": header(b"F", long(short(b"a") + b"A" + long(b"F" + long(b"")))),
    **{
        f"header of type {letter}": header(letter.encode(), b"\x01" * width)
        for letter, width in {
            "t": 1, "b": 1, "B": 1, "s": 2, "u": 2, "I": 4, "i": 4, "l": 8, "L": 8,
            "f": 4, "d": 8, "D": 5, "T": 8, "V": 0,
        }.items()
    },
    "header of type x": header(b"x", long(b"\xff\x00")),
    "all at once": properties(
        CONTENT_TYPE | HEADERS | MESSAGE_ID | TIMESTAMP,
        short(b"\xff")
        + long(short(b"\xff") + b"T" + b"\xff" * 8)
        + short(b"\xff" * 255)
        + b"\xff" * 8,
    ),
}  # fmt: skip
