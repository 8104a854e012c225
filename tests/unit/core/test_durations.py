"""Parsing and rendering of durations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.durations import parse_duration_s, render_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("5m", 300),
        ("2h", 7200),
        ("7d", 604800),
        ("1.5s", 1.5),
        ("45", 45),
        (" 10s ", 10),
        (10, 10),
        (0.25, 0.25),
        ("0s", 0),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: object, seconds: float) -> None:
    """A number without a unit means seconds, in TOML, too."""
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", "s", "5 minutes", "-1s", "1e3s", "5M", "1,5s", "inf", "nan", "9" * 400),
        *(True, None, [], -1, float("inf"), float("nan"), 10**400),
    ],
    ids=lambda value: str(value)[:10],
)
def test_an_invalid_duration_is_refused_with_an_example(text: object) -> None:
    """An infinite timeout would never end, and NaN compares with nothing."""
    with pytest.raises(ValueError, match="expected for example 500ms, 30s, 5m or 7d"):
        parse_duration_s(text)


@given(st.integers(min_value=0, max_value=10**9))
def test_a_rendered_duration_parses_to_the_same_value(milliseconds: int) -> None:
    """Operators copy the output of `bridge config` into an environment."""
    duration_s = milliseconds / 1000

    shown = render_duration(duration_s)

    assert parse_duration_s(shown) == pytest.approx(duration_s)


def test_a_duration_has_few_digits() -> None:
    """Producers write some: float() would take 20 ms for a header full of zeros."""
    assert parse_duration_s("0." + "0" * 19 + "1s") == 1e-20
    for text in ("0." + "0" * 100_000 + "1s", "0" * 21 + "1s"):
        with pytest.raises(ValueError, match="is not a duration"):
            parse_duration_s(text)
