"""
Print untrusted text in tables on a terminal.

A message id can contain an escape sequence, and a user can be named `[red]`. Unprintable
characters are shown as escapes, and nothing is interpreted as markup.
"""

import datetime as dt
import time
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def printable(text: str) -> str:
    """Return `text` with its unprintable characters escaped."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape").decode()
        for character in text
    )


def local_time(at_s: float | None, *, decimals: int = 0) -> str:
    """Return a Unix time in the local time zone, for a column; `-` if it is `None`."""
    if at_s is None:
        return "-"
    try:
        local = dt.datetime.fromtimestamp(at_s, tz=dt.UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        # Any publisher can write this header, with a time beyond the year 9999.
        return f"{at_s:.0f}"
    decimal = local.strftime(".%f")[: decimals + 1] if decimals else ""
    return local.strftime("%Y-%m-%d %H:%M:%S") + decimal


def short_time(at_s: float | None) -> str:
    """Return a Unix time for a narrow column: the time of today, or an earlier day's date."""
    full, today = local_time(at_s), local_time(time.time())
    if full[:10] == today[:10]:
        return full[11:]
    return full[5:16] if full[:4] == today[:4] else full[:10]


def time_zone() -> str:
    """Return the name of the local time zone, for the header of a column of times."""
    return dt.datetime.now(tz=dt.UTC).astimezone().tzname() or "local"


def zoned_time(at_s: float | None) -> str:
    """Return a Unix time with the name of its zone, for a sentence; `-` if it is `None`."""
    return "-" if at_s is None else f"{local_time(at_s)} {time_zone()}"


def plural(number: int, noun: str) -> str:
    """Return a count with its noun; the plural ends in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def count(value: int | None) -> str:
    """Return a count as text; `-` if it is `None`."""
    return "-" if value is None else str(value)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: frozenset[str] = frozenset(),
    folded: frozenset[str] | None = None,
    empty: str = "",
) -> None:
    """
    Print rows of untrusted text; without rows, print `empty` to stderr.

    Args:
        columns: The headers.
        rows: The cells.
        right: The columns that are aligned to the right.
        folded: The columns that are folded if the terminal is too narrow; ``None`` = all.
        empty: What it means that there are no rows.

    """
    cells = list(rows)
    if empty and not cells:
        print_note(empty)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(
            name,
            justify="right" if name in right else "left",
            overflow="fold",
            no_wrap=folded is not None and name not in folded,
        )
    for row in cells:
        table.add_row(*map(printable, row))
    Console(highlight=False, markup=False, emoji=False).print(table)


def print_note(text: str) -> None:
    """Print a line to stderr, beside the result on stdout."""
    err = Console(stderr=True, highlight=False, markup=False, emoji=False)
    err.print(printable(text), soft_wrap=True)
