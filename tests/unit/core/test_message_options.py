"""The headers by which a producer says how a message is delivered."""

import pytest

from bridge.core.message_options import (
    MessageOptions,
    parse_options,
    render_options,
)
from bridge.core.properties import render_table
from bridge.enums import OptionHeader

EPHEMERAL = OptionHeader.EPHEMERAL.value


def table(name: str, value: bytes) -> bytes:
    """Return a header table with one value, which starts with its type letter."""
    return bytes([len(name)]) + name.encode() + value


@pytest.mark.parametrize("value", [b"t\1", b"S\0\0\0\4true", b"x\0\0\0\4true"])
def test_a_flag_is_a_boolean_or_its_text(value: bytes) -> None:
    """Some AMQP clients send strings only."""
    found = parse_options(table(EPHEMERAL, value))

    assert found == MessageOptions(is_ephemeral=True)


@pytest.mark.parametrize("value", [b"t\0", b"S\0\0\0\5false"])
def test_false_is_the_same_as_no_header(value: bytes) -> None:
    """A producer may set the header of every message."""
    assert parse_options(table(EPHEMERAL, value)) is None


@pytest.mark.parametrize("value", [b"V", b"b\1", b"S\0\0\0\3yes", b"S\0\0\0\4True"])
def test_all_other_values_are_invalid(value: bytes) -> None:
    """The sentence names the header."""
    found = parse_options(table(EPHEMERAL, value))

    assert found == "x-bridge-ephemeral is not true or false"


def test_other_headers_are_no_options() -> None:
    """Also those that the bridge writes itself."""
    assert parse_options(render_table({"x-bridge-attempt": 2, "a": "b"})) is None


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"S\0\0\0\0", "is not a string of 1 to 128 bytes"),
        (b"t\1", "is not a string of 1 to 128 bytes"),
        (b"S\0\0\0\1\n", "contains a control character"),
        (b"S\0\0\0\1\xff", "is not UTF-8 at byte 0"),
        (b"S\0\0\0\x81" + b"k" * 129, "has 129 bytes, allowed are 128"),
    ],
)
def test_an_invalid_key_is_named(value: bytes, problem: str) -> None:
    """It would replace messages that it should not replace."""
    assert parse_options(table("x-bridge-key", value)) == f"x-bridge-key {problem}"


def test_rendered_options_are_parsed_again() -> None:
    """The HTTP API and the command publish with these headers."""
    options = MessageOptions(is_ephemeral=True, key="Größe 17")

    assert parse_options(render_options(options) or b"") == options
    assert render_options(MessageOptions()) is None
