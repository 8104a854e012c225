"""The report of a run, for the terminal and docs/benchmarks.md."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.bench.results import Results, Spread
from tests.bench.servers import SERVER_KINDS

_TITLES: Final = {name: kind.title for name, kind in SERVER_KINDS.items()} | {
    "floor": "the floor"
}
# Workload, figure, title, digits.
_ROWS: Final = (
    ("saturated", "us", "200 windows, saturated: µs a delivery", 1),
    ("saturated", "per_s", "— deliveries a second", 0),
    ("receipts", "us", "— with a receipt for each message: µs a delivery", 1),
    ("flooded", "us", "200 windows, one worker's full speed: µs a delivery", 1),
    ("flooded", "per_s", "— deliveries a second", 0),
    ("steady", "us", "200 windows, 3,000 messages/s: µs a delivery", 1),
    ("steady", "p50_ms", "— latency p50, ms", 2),
    ("steady", "p99_ms", "— latency p99, ms", 2),
    ("fanout", "us", "one message → 1,000 windows: µs a delivery", 2),
    ("crowd", "connect_us", "connect + auth, µs a window", 0),
    ("crowd", "reconnect_us", "reconnect with the same token, µs a window", 0),
    ("crowd", "window_kib", "memory of an idle window, KiB", 1),
    ("crowd", "us", "10,000 windows, 2,000 messages/s: µs a delivery", 1),
    ("crowd", "p50_ms", "— latency p50, ms", 2),
    ("crowd", "p99_ms", "— latency p99, ms", 2),
    ("crowd", "saturated_us", "10,000 windows, saturated: µs a delivery", 1),
    ("requests", "us", "request of a page to a worker and back: µs a round trip", 1),
    ("requests", "p50_ms", "— latency p50, ms", 2),
    ("requests", "p99_ms", "— latency p99, ms", 2),
    ("few", "us", "100 windows, 2,000 messages/s: µs a delivery", 1),
    ("few", "saturated_us", "100 windows, saturated: µs a delivery", 1),
)


def print_progress(line: str) -> None:
    """Print a line to stderr; stdout is for tables."""
    print(line, file=sys.stderr, flush=True)


def report_lines(results: Results) -> Iterable[str]:
    """Yield the report as lines of Markdown."""
    yield "| | |"
    yield "|---|---|"
    for name, value in results.machine.items():
        yield f"| {name} | {value} |"
    yield ""
    yield from ratio_lines(results)
    yield ""
    yield from figure_lines(results)


def ratio_lines(results: Results) -> Iterable[str]:
    """Yield the table of ratios against their targets."""
    yield "| work | server | against | target | median | least to most | reached |"
    yield "|---|---|---|---|---|---|---|"
    for ratio in results.ratios():
        target, reached = ratio.target, ratio.reached
        against = "itself" if target.base else _TITLES.get(target.against or "", "")
        yield (
            f"| {target.text} | {_TITLES[target.server]} | {against} "
            f"| ≤ {target.at_most:g} | {reached.median:.2f} "
            f"| {reached.least:.2f}-{reached.most:.2f} "
            f"| {'yes' if ratio.is_reached else '**no**'} |"
        )


def figure_lines(results: Results) -> Iterable[str]:
    """Yield the table of all figures, with medians and ranges."""
    rounds = len(results.rounds)
    yield f"Medians of {rounds} round{'s' if rounds > 1 else ''}; least to most in brackets."
    yield ""
    measured = {
        name for works in results.rounds for each in works.values() for name in each
    }
    names = [name for name in _TITLES if name in measured]
    yield "| |" + "".join(f" {_TITLES[name]} |" for name in names)
    yield "|---|" + "---|" * len(names)
    for work, figure, text, digits in _ROWS:
        spreads = [results.spread(work, name, figure) for name in names]
        if any(spreads):
            cells = "".join(f" {_cell(spread, digits)} |" for spread in spreads)
            yield f"| {text} |{cells}"


def _cell(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return ""
    shown = f"{spread.median:,.{digits}f}"
    return f"{shown} ({spread.least:,.{digits}f}-{spread.most:,.{digits}f})"


def write_part(path: Path, part: str, lines: Iterable[str]) -> None:
    """
    Replace the text between the markers of `part` in the page at `path`.

    Raises:
        ValueError: If the page has no such markers.

    """
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    page = path.read_text(encoding="utf-8")
    before, has_begin, rest = page.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        message = f"{path} has no markers for {part}"
        raise ValueError(message)
    text = "\n".join(lines)
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
