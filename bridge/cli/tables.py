"""
Tables on a terminal, of text that anybody may have written.

A message id can hold an escape sequence and a user can be called `[red]`: what cannot be
printed is shown by its number, and nothing is markup.
"""

import datetime as dt
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def shown(text: str) -> str:
    """Return `text` with everything visible in it, and nothing else."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape").decode()
        for character in text
    )


def moment(at_s: float | None, *, decimals: int = 0) -> str:
    """Return a Unix time as a clock here shows it; `-` if nobody knows."""
    if at_s is None:
        return "-"
    try:
        local = dt.datetime.fromtimestamp(at_s, tz=dt.UTC).astimezone()
    except (
        OverflowError,
        ValueError,
        OSError,
    ):  # a stranger's header, beyond year 9999
        return f"{at_s:.0f}"
    decimal = local.strftime(".%f")[: decimals + 1] if decimals else ""
    return local.strftime("%Y-%m-%d %H:%M:%S") + decimal


def number(value: int | None) -> str:
    """Return a count; `-` if nobody knows."""
    return "-" if value is None else str(value)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: frozenset[str] = frozenset(),
) -> None:
    """Print rows of any text under `columns`; those in `right` are numbers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(
            name, justify="right" if name in right else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(shown(cell) for cell in row))
    Console(highlight=False, markup=False, emoji=False).print(table)


def say(text: str) -> None:
    """Say something beside the result, on stderr."""
    talk = Console(stderr=True, highlight=False, markup=False, emoji=False)
    talk.print(shown(text), soft_wrap=True)
