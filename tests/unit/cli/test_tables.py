"""What a terminal gets to see of text that anybody may have written."""

import pytest

from bridge.cli.tables import moment, number, print_table, say, shown


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
def test_what_cannot_be_printed_is_shown_by_its_number(
    text: str, on_screen: str
) -> None:
    """Escape sequences move cursors and set titles; some characters turn text round."""
    assert shown(text) == on_screen
    assert shown(text).isprintable()


@pytest.mark.parametrize("at_s", [9e11, 1e20, -1e20])
def test_a_time_that_no_clock_shows_is_a_number(at_s: float) -> None:
    """A producer's header may say when its message expires, in the year 30000."""
    assert moment(at_s) == f"{at_s:.0f}"


def test_a_table_shows_markup_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """A user may be called `[red]`, or like an emoji's short name."""
    print_table(["user", "n"], [["[red]a[/red]", "1"], [":boom: [/]", "\x1b]0;x\x07"]])
    say("[bold]\x1b[1m[/bold] :boom:")

    out, err = capsys.readouterr()
    assert "[red]a[/red]" in out
    assert ":boom: [/]" in out
    assert "\\x1b]0;x\\x07" in out
    assert "\x1b" not in out + err
    assert err == "[bold]\\x1b[1m[/bold] :boom:\n"


def test_what_nobody_knows_is_a_dash() -> None:
    """Not a zero, and not 1970."""
    assert (moment(None), number(None), number(0)) == ("-", "-", "0")
    assert moment(1_000_000_000.25, decimals=3).endswith(":40.250")
