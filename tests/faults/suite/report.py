"""The report of a run, for the terminal and for docs/faults.md."""

from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Final

from tests.faults.suite.run import Outcome

_BEGIN: Final = "<!-- made by {}: begin -->"
_SHOWN: Final = 20
_END: Final = "<!-- made by {}: end -->"


def report_lines(outcome: Outcome) -> Iterable[str]:
    """Yield the report as lines of Markdown."""
    verdict, plan = outcome.verdict, outcome.plan
    counts = verdict.counts
    yield (
        f"Seed {plan.seed}: {counts.get('faults', 0)} faults in {counts.get('rounds', 0)} "
        f"rounds, {counts.get('messages', 0):,} messages to {plan.scale.users} users,\n"
        f"{counts.get('receptions', 0):,} receptions by {counts.get('windows', 0)} windows, "
        f"{outcome.seconds / 60:.1f} minutes."
    )
    yield ""
    yield "| violation | count |"
    yield "|---|---|"
    for kind, number in verdict.violations.items():
        yield f"| {kind} | {number} |"
    yield f"| hangs | {0 if outcome.hang is None else 1} |"
    yield f"| unexpected exits of a bridge | {len(outcome.anomalies)} |"
    yield ""
    yield "| fault | count | recovered after (s): median | worst |"
    yield "|---|---|---|---|"
    for kind, record in sorted(outcome.records.items()):
        alive = record.alive_after_s or [0.0]
        yield f"| {kind} | {record.happened} | {median(alive):.1f} | {max(alive):.1f} |"
    yield ""
    yield "| counted | count |"
    yield "|---|---|"
    for kind, number in counts.items():
        yield f"| {kind} | {number:,} |"


def trouble_lines(outcome: Outcome) -> Iterable[str]:
    """Yield the details of everything that went wrong."""
    if outcome.hang is not None:
        yield f"hang: {outcome.hang}"
    yield from outcome.anomalies[:_SHOWN]
    yield from outcome.verdict.examples


def write_report(outcome: Outcome, path: Path) -> None:
    """Replace the report between its markers in the page at `path`."""
    page = path.read_text(encoding="utf-8")
    marks = [mark.format(outcome.plan.scenario.name) for mark in (_BEGIN, _END)]
    before, begin, rest = page.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        message = f"{path} has no markers for the report"
        raise ValueError(message)
    text = "\n".join(report_lines(outcome))
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
