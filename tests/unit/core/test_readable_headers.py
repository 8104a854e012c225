"""Header values as JSON: every type, and malicious bytes."""

import struct

import orjson
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.properties import Properties, iter_array
from bridge.core.readable_headers import readable_properties, readable_table


def entry(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + value


def long(letter: bytes, inside: bytes) -> bytes:
    return letter + len(inside).to_bytes(4, "big") + inside


VALUES = {
    b"text": (long(b"S", "grün".encode()), "grün"),
    b"bytes": (long(b"x", b"\xff"), "\\xff"),
    b"yes": (b"t\x01", True),
    b"no": (b"t\x00", False),
    b"small": (b"b\xff", -1),
    b"octet": (b"B\xff", 255),
    b"int": (b"I\xff\xff\xff\xfe", -2),
    b"long": (b"l" + (2**62).to_bytes(8, "big"), 2**62),
    b"time": (b"T" + (1_700_000_000).to_bytes(8, "big"), 1_700_000_000),
    b"double": (b"d" + struct.pack(">d", 1.5), 1.5),
    b"float": (b"f" + struct.pack(">f", 0.5), 0.5),
    b"nan": (b"d" + struct.pack(">d", float("nan")), "nan"),
    b"decimal": (b"D\x02\x00\x00\x00\x05", "5e-2"),
    b"void": (b"V", None),
    b"table": (long(b"F", entry(b"a", b"t\x01")), {"a": True}),
    b"array": (long(b"A", b"t\x01" + long(b"S", b"x")), [True, "x"]),
}


def test_each_type_has_a_json_value() -> None:
    """An operator sees the value that the producer set."""
    table = b"".join(entry(name, raw) for name, (raw, _) in VALUES.items())

    shown = readable_table(table, without=frozenset({b"void"}))

    expected = {name.decode(): value for name, (_, value) in VALUES.items()}
    del expected["void"]
    assert shown == expected
    assert readable_table(entry(b"void", b"V"), without=frozenset()) == {"void": None}
    assert readable_table(None, without=frozenset()) == {}


def test_deep_nesting_is_cut() -> None:
    """A producer must not be able to exhaust the stack."""
    value = b"V"
    for _ in range(50):
        value = long(b"A", value)

    shown = readable_table(entry(b"deep", value), without=frozenset())

    assert "…" in orjson.dumps(shown).decode()


def test_properties_are_shown_as_text_and_numbers() -> None:
    """The headers are shown separately."""
    properties = Properties(
        content_type=b"text/plain", delivery_mode=b"\x02", headers=b"",
        timestamp=(5).to_bytes(8, "big"), message_id=b"\xff",
    )  # fmt: skip

    assert readable_properties(properties) == {
        "content_type": "text/plain",
        "delivery_mode": 2,
        "message_id": "\\xff",
        "timestamp": 5,
    }


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_raise(raw: bytes) -> None:
    """RabbitMQ accepted them, so an operator must be able to read them."""
    orjson.dumps(readable_table(raw, without=frozenset()))
    orjson.dumps(readable_table(entry(b"a", long(b"A", raw)), without=frozenset()))


def test_iteration_over_an_array_stops_at_the_first_invalid_value() -> None:
    """A table behaves in the same way."""
    assert list(iter_array(b"t\x01" + b"?")) == [b"t\x01"]
    assert list(iter_array(b"t\x01" + b"S\x00\x00\x00\x09x")) == [b"t\x01"]
