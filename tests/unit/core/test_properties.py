"""Property bytes: any bytes of a producer are parsed or copied, and never raise."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.properties import (
    NO_PROPERTIES,
    Properties,
    header_bytes,
    header_int,
    iter_table,
    parse_properties,
    render_properties,
    render_table,
)

SHORT_STRINGS = st.none() | st.binary(max_size=255)
ALL_PROPERTIES = st.builds(
    Properties,
    content_type=SHORT_STRINGS,
    content_encoding=SHORT_STRINGS,
    headers=st.none() | st.binary(max_size=100),
    delivery_mode=st.none() | st.binary(min_size=1, max_size=1),
    priority=st.none() | st.binary(min_size=1, max_size=1),
    correlation_id=SHORT_STRINGS,
    reply_to=SHORT_STRINGS,
    expiration=SHORT_STRINGS,
    message_id=SHORT_STRINGS,
    timestamp=st.none() | st.binary(min_size=8, max_size=8),
    type=SHORT_STRINGS,
    user_id=SHORT_STRINGS,
    app_id=SHORT_STRINGS,
    cluster_id=SHORT_STRINGS,
)


def entry(name: bytes, letter: bytes, value: bytes) -> bytes:
    """Return one entry of a table, with any type letter."""
    return bytes((len(name),)) + name + letter + value


def long_value(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


# --- properties -------------------------------------------------------------------------


@given(ALL_PROPERTIES)
def test_parsing_reverses_rendering(properties: Properties) -> None:
    """A copy for a retry queue keeps every other property byte for byte."""
    assert parse_properties(render_properties(properties)) == properties


@given(st.binary(max_size=300))
def test_parsing_never_raises(raw: bytes) -> None:
    """A library that raises here loses its connection with each redelivery."""
    parse_properties(raw)


@given(ALL_PROPERTIES, st.data())
def test_truncated_bytes_give_the_properties_before_the_cut(
    properties: Properties, data: st.DataObject
) -> None:
    """A value is complete or missing: half an id would be another id."""
    raw = render_properties(properties)
    cut = data.draw(st.integers(0, len(raw)))

    found = parse_properties(raw[:cut])

    for name in Properties.__dataclass_fields__:
        assert getattr(found, name) in (None, getattr(properties, name))


def test_the_layout_follows_the_specification() -> None:
    """The bytes are written by hand, so parser and renderer cannot share an error."""
    raw = (
        b"\xb8\x60"  # content_type, headers, delivery_mode, priority; timestamp, type
        b"\x04json"
        b"\x00\x00\x00\x03\x01tV"
        b"\x02"
        b"\x09"
        b"\x00\x00\x00\x00\x65\x00\x00\x00"
        b"\x05alert"
    )
    properties = Properties(
        content_type=b"json",
        headers=b"\x01tV",
        delivery_mode=b"\x02",
        priority=b"\x09",
        timestamp=b"\x00\x00\x00\x00\x65\x00\x00\x00",
        type=b"alert",
    )

    assert parse_properties(raw) == properties
    assert render_properties(properties) == raw


@pytest.mark.parametrize(
    "poison",
    [
        Properties(message_id=b"\xff\xfe"),
        Properties(content_type=b"\x80"),
        Properties(timestamp=b"\xff" * 8),
        Properties(timestamp=struct.pack(">Q", 1_700_000_000_000_000)),
        Properties(headers=entry(b"\xff", b"T", b"\xff" * 8)),
    ],
    ids=["message_id", "content_type", "timestamp", "microseconds", "header"],
)
def test_bytes_that_crash_other_clients_are_kept(poison: Properties) -> None:
    """RabbitMQ accepts each of these, and client libraries raise on it."""
    assert parse_properties(render_properties(poison)) == poison


def test_flags_without_a_property_are_skipped() -> None:
    """The last bit announces another word of flags (section 4.2.6.1)."""
    raw = b"\x00\x21" + b"\x00\x01" + b"\x00\x00" + b"\x02hi"

    assert parse_properties(raw) == Properties(type=b"hi")
    assert parse_properties(b"\x00\x21") == NO_PROPERTIES
    assert parse_properties(b"\x00\x21\x00\x01") == NO_PROPERTIES


def test_an_oversized_short_string_is_refused() -> None:
    """A truncated id would be another id."""
    with pytest.raises(ValueError, match="property message_id has 256 bytes"):
        render_properties(Properties(message_id=b"x" * 256))


# --- tables -----------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_iterating_over_a_table_never_raises(table: bytes) -> None:
    """No entry appears twice or reaches beyond the end."""
    whole = b"".join(part for _, _, part in iter_table(table))

    assert table.startswith(whole)
    header_int(table, "x")
    header_bytes(table, "x")


@given(
    st.dictionaries(
        st.text(max_size=20),
        st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary(),
        max_size=8,
    )
)
def test_headers_are_read_from_a_rendered_table(
    entries: dict[str, int | str | bytes],
) -> None:
    """The bridge reads the headers of its own dead letters."""
    table = render_table(entries)

    assert len(list(iter_table(table))) == len(entries)
    for name, value in entries.items():
        if isinstance(value, int):
            assert header_int(table, name) == value
            assert header_bytes(table, name) is None
        else:
            raw = value.encode() if isinstance(value, str) else value
            assert header_bytes(table, name) == raw
            assert header_int(table, name) is None


@pytest.mark.parametrize(
    ("letter", "value"),
    [
        (b"t", b"\x01"),
        (b"b", b"\x01"),
        (b"B", b"\x01"),
        (b"s", b"\x00\x01"),
        (b"u", b"\x00\x01"),
        (b"I", b"\x00" * 4),
        (b"i", b"\x00" * 4),
        (b"l", b"\x00" * 8),
        (b"L", b"\x00" * 8),
        (b"f", b"\x00" * 4),
        (b"d", b"\x00" * 8),
        (b"D", b"\x00" * 5),
        (b"T", b"\x00" * 8),
        (b"V", b""),
        (b"S", long_value(b"text")),
        (b"x", long_value(b"\xff\x00")),
        (b"A", long_value(b"V")),
        (b"F", long_value(entry(b"in", b"V", b""))),
    ],
    ids=lambda part: part.decode("latin-1")[:1],
)
def test_values_of_every_rabbitmq_type_are_skipped(letter: bytes, value: bytes) -> None:
    """A type of unknown width would hide all later entries."""
    table = entry(b"first", letter, value) + entry(
        b"second", b"l", b"\x00" * 7 + b"\x05"
    )

    assert header_int(table, "second") == 5


@pytest.mark.parametrize(
    ("letter", "value", "number"),
    [
        (b"b", b"\xff", -1),
        (b"B", b"\xff", 255),
        (b"s", b"\xff\xfe", -2),
        (b"u", b"\xff\xfe", 65534),
        (b"I", b"\xff" * 4, -1),
        (b"i", b"\xff" * 4, 2**32 - 1),
        (b"l", b"\xff" * 8, -1),
        (b"L", b"\xff" * 8, 2**64 - 1),
    ],
)
def test_integers_of_every_width_are_read(
    letter: bytes, value: bytes, number: int
) -> None:
    """Clients choose the width by the value."""
    assert header_int(entry(b"n", letter, value), "n") == number


def test_a_header_of_another_type_is_ignored() -> None:
    """Any producer can set the bridge's headers, with any type."""
    table = entry(b"n", b"d", b"\x00" * 8)

    assert header_int(table, "n") is None
    assert header_bytes(table, "n") is None
    assert header_int(None, "n") is None
    assert header_bytes(b"", "n") is None


def test_iteration_stops_at_the_first_invalid_entry() -> None:
    """Missing headers are better than an exception."""
    good = entry(b"a", b"V", b"")

    assert [name for name, _, _ in iter_table(good + entry(b"b", b"?", b""))] == [b"a"]
    assert [name for name, _, _ in iter_table(good + b"\x05ab")] == [b"a"]
    assert [name for name, _, _ in iter_table(good + b"\x01bl\x00")] == [b"a"]


def test_added_headers_replace_all_that_start_with_the_dropped_prefix() -> None:
    """A producer must not be able to forge a reason or an attempt."""
    table = (
        entry(b"x-bridge-attempt", b"l", b"\x00" * 7 + b"\x63")
        + entry(b"trace", b"S", long_value(b"\xff"))
        + entry(b"x-bridge-made-up", b"V", b"")
    )

    copied = Properties(headers=table).with_headers(
        {"x-bridge-attempt": 2}, dropped_prefix="x-bridge-"
    )

    assert [name for name, _, _ in iter_table(copied.headers or b"")] == [
        b"trace",
        b"x-bridge-attempt",
    ]
    assert header_int(copied.headers, "x-bridge-attempt") == 2
    assert header_bytes(copied.headers, "trace") == b"\xff"


def test_headers_can_be_added_to_a_message_without_any() -> None:
    """Most messages have no header table."""
    copied = NO_PROPERTIES.with_headers({"a": "é"}, dropped_prefix="x-")

    assert header_bytes(copied.headers, "a") == "é".encode()


def test_a_lone_surrogate_in_an_error_text_is_escaped() -> None:
    """Error texts may quote file names of other encodings; the dead letter must be written."""
    table = render_table({"error": "no such file: \udcff"})

    assert header_bytes(table, "error") == b"no such file: \\udcff"
