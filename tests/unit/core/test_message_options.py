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


def texts(**headers: str) -> bytes:
    """Return a header table with options as strings."""
    return render_table({f"x-bridge-{name}": text for name, text in headers.items()})


@pytest.mark.parametrize(
    ("text", "throttle_s"), [("250ms", 0.25), ("1ms", 0.001), ("1h", 3600), ("2", 2)]
)
def test_a_throttle_is_a_duration(text: str, throttle_s: float) -> None:
    """It is written as in settings."""
    found = parse_options(texts(key="k", throttle=text))

    assert found == MessageOptions(key="k", throttle_s=throttle_s)


@pytest.mark.parametrize("text", ["", "0s", "61m", "fast", "-1s", "9" * 400])
def test_an_invalid_throttle_is_named(text: str) -> None:
    """A typing error must not send 200 messages a second to a page."""
    found = parse_options(texts(key="k", throttle=text))

    assert found == "x-bridge-throttle is not a duration from 1ms to 1h, such as 250ms"


def test_a_throttle_must_be_a_string() -> None:
    """A number would have no unit that all producers agree on."""
    headers = texts(key="k") + table("x-bridge-throttle", b"I\0\0\0\xfa")

    assert str(parse_options(headers)).startswith("x-bridge-throttle is not a duration")


def test_a_throttle_needs_a_key_and_a_stored_message() -> None:
    """Without a key bridge cannot know which message replaces which."""
    flag = {"ephemeral": "true"}

    without_key = parse_options(texts(throttle="1s"))
    assert without_key == "x-bridge-throttle needs x-bridge-key"
    ephemeral = parse_options(texts(key="k", throttle="1s", **flag))
    assert ephemeral == "x-bridge-throttle and x-bridge-ephemeral exclude each other"


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({"x-bridge-retain": "true"}, "x-bridge-retain needs x-bridge-key"),
        ({"x-bridge-clear": "true"}, "x-bridge-clear needs x-bridge-key"),
        (
            {
                "x-bridge-key": "k",
                "x-bridge-retain": "true",
                "x-bridge-clear": "true",
            },
            "x-bridge-retain and x-bridge-clear exclude each other",
        ),
        (
            {
                "x-bridge-key": "k",
                "x-bridge-retain": "true",
                "x-bridge-ephemeral": "true",
            },
            "x-bridge-retain and x-bridge-ephemeral exclude each other",
        ),
        (
            {
                "x-bridge-key": "k",
                "x-bridge-clear": "true",
                "x-bridge-ephemeral": "true",
            },
            "x-bridge-clear and x-bridge-ephemeral exclude each other",
        ),
        ({"x-bridge-retain": "1"}, "x-bridge-retain is not true or false"),
    ],
)
def test_options_that_contradict_each_other_are_invalid(
    headers: dict[str, str], problem: str
) -> None:
    """The sentence names both headers."""
    assert parse_options(render_table(headers)) == problem


def test_a_flag_that_is_false_needs_no_key() -> None:
    """A producer may set all headers of all messages."""
    headers = {"x-bridge-retain": "false", "x-bridge-clear": "false"}

    assert parse_options(render_table(headers)) is None


@pytest.mark.parametrize("retain", [True, False])
def test_a_key_is_retained_or_cleared(retain: bool) -> None:
    """By the header, which is rendered again for a retry."""
    options = MessageOptions(key="k", is_retained=retain, is_cleared=not retain)

    assert parse_options(render_options(options) or b"") == options


def test_rendered_options_are_parsed_again() -> None:
    """The HTTP API and the command publish with these headers."""
    for options in (
        MessageOptions(is_ephemeral=True, key="Größe 17"),
        MessageOptions(key="Größe 17", throttle_s=0.25),
    ):
        assert parse_options(render_options(options) or b"") == options
    assert render_options(MessageOptions()) is None
