"""Untrusted text on a terminal."""

import time

import pytest

from bridge.cli.tables import (
    count,
    local_time,
    plural,
    print_note,
    print_table,
    printable,
    short_time,
)


@pytest.mark.parametrize(
    ("text", "on_screen"),
    [
        ("plain ä \U0001f600", "plain ä \U0001f600"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
        ("\u202egnp", "\\u202egnp"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_unprintable_characters_are_shown_as_escapes(text: str, on_screen: str) -> None:
    """Escape sequences move the cursor, and some characters reverse the text."""
    assert printable(text) == on_screen
    assert printable(text).isprintable()


@pytest.mark.parametrize("at_s", [9e11, 1e20, -1e20])
def test_a_time_out_of_range_is_shown_as_a_number(at_s: float) -> None:
    """A producer's header may contain any expiry, for example in the year 30000."""
    assert local_time(at_s) == f"{at_s:.0f}"


def test_a_table_shows_markup_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """A user may be named `[red]`, or like an emoji code."""
    print_table(["user", "n"], [["[red]a[/red]", "1"], [":boom: [/]", "\x1b]0;x\x07"]])
    print_note("[bold]\x1b[1m[/bold] :boom:")

    out, err = capsys.readouterr()
    assert "[red]a[/red]" in out
    assert ":boom: [/]" in out
    assert "\\x1b]0;x\\x07" in out
    assert "\x1b" not in out + err
    assert err == "[bold]\\x1b[1m[/bold] :boom:\n"


def test_an_unknown_value_is_a_dash() -> None:
    """It is neither zero nor a time in 1970."""
    assert (local_time(None), count(None), count(0)) == ("-", "-", "0")
    assert local_time(1_000_000_000.25, decimals=3).endswith(":40.250")


def test_a_short_time_fits_into_a_narrow_column() -> None:
    """With the whole date, a message in the inbox needed three lines of 80 columns."""
    now_s = time.time()

    assert len(short_time(now_s)) in {8, 11}  # midnight may have passed
    assert len(short_time(now_s - 40 * 86400)) <= 11
    assert short_time(86400 * 365) == "1971-01-01"
    assert short_time(None) == "-"


def test_a_count_agrees_with_its_noun() -> None:
    """`Discard 1 dead letters` reads like a mistake."""
    assert [plural(n, "dead letter") for n in (0, 1, 1200)] == [
        "0 dead letters",
        "1 dead letter",
        "1,200 dead letters",
    ]
