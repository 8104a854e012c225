"""Parsing and rendering of sizes and lists, and parsing of durations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.durations import parse_duration_s
from bridge.settings.model import Settings
from bridge.settings.values import (
    parse_size_bytes,
    render_size,
    render_value,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("65536", 65536),
        (65536, 65536),
        ("64KiB", 65536),
        ("1 MiB", 1048576),
        ("1GiB", 1 << 30),
        ("64kb", 64000),
        ("1MB", 10**6),
        ("2gb", 2 * 10**9),
        ("12B", 12),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: object, count: int) -> None:
    """KiB is 1024 bytes and kB is 1000 bytes."""
    assert parse_size_bytes(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1.5MiB", "1TiB", "1k", None, True])
def test_an_invalid_size_is_refused_with_an_example(text: object) -> None:
    """A guess could be wrong by a factor of a thousand."""
    with pytest.raises(ValueError, match="expected for example 65536, 64KiB or 1MiB"):
        parse_size_bytes(text)


@given(st.text(max_size=20) | st.integers() | st.floats() | st.none() | st.booleans())
def test_any_value_is_parsed_or_refused_with_value_error(value: object) -> None:
    """Any other exception would show the operator a traceback."""
    for parse in (parse_duration_s, parse_size_bytes):
        try:
            assert parse(value) >= 0
        except ValueError:
            continue


@given(st.integers(min_value=0, max_value=1 << 50))
def test_a_rendered_size_parses_to_the_same_value(size_bytes: int) -> None:
    """Operators copy the output of `bridge config` into an environment."""
    assert parse_size_bytes(render_size(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("retry_delays", (0.5, 1.5, 60.0), "500ms,1.5s,1m"),
        ("inbox_max_age", 604800.0, "7d"),
        ("ping_interval", 25, "25s"),
        ("max_message_bytes", 1 << 18, "256KiB"),
        ("prefetch", 3600, "3600"),
        ("legacy_push", False, "false"),
        ("schemas", None, ""),
        ("undelivered_after", {}, ""),
        ("undelivered_after", {"a": 45.0, "b.c": 0.5}, "a=45s,b.c=500ms"),
        ("jwt_algorithms", ("HS256", "ES256"), "HS256,ES256"),
    ],
)
def test_a_value_is_rendered_in_the_form_that_settings_accept(
    name: str, value: object, shown: str
) -> None:
    """Python would render a duration as 604800.0 and a list with brackets."""
    assert render_value(value, Settings.model_fields[name].metadata) == shown
