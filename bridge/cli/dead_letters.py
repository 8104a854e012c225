"""`bridge dead`: dead letters, from a terminal."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.cli.dead_letter_jobs import discard_letters, redrive_letters
from bridge.cli.operator_client import (
    ask_once,
    operator_address,
    print_json,
    segment,
)
from bridge.cli.options import (
    AsJson,
    ConfigFile,
    Cursor,
    DryRun,
    OfUser,
    OperatorToken,
    OperatorUrl,
)
from bridge.cli.tables import moment, shown
from bridge.core.contracts.operator.dead_letters import (
    RATE_DEFAULT_PER_S,
    Filter,
    LetterDetail,
    LetterFacts,
    LetterPage,
)
from bridge.core.contracts.operator.operation import PAGE_DEFAULT, PAGE_MAX
from bridge.enums import DeadLetterCause
from bridge.errors import ConfigError
from bridge.settings.values import parse_duration_s

app = typer.Typer(
    help="Look at dead letters, redrive them, discard them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

# Characters on a terminal: from how many on there is room for more, and what stays whole.
_WIDE: Final = 100
_WIDER: Final = 130
_ID_WIDTH: Final = 24
_WHEN_WIDTH: Final = 19
_REASON_WIDTH: Final = max(len(reason) for reason in DeadLetterCause)

Reason = Annotated[
    DeadLetterCause | None,
    typer.Option(
        metavar="REASON",  # the list of them would be broken in the middle of words
        help=f"Only those of this reason: {', '.join(DeadLetterCause)}.",
    ),
]
Event = Annotated[str | None, typer.Option(help="Only those of this event.")]
Since = Annotated[
    str | None,
    typer.Option(
        help="Only those set aside since: a time (2026-01-31T12:00) or how long ago (2h)."
    ),
]
Until = Annotated[
    str | None, typer.Option(help="Only those set aside before: as --since.")
]
Ids = Annotated[list[str] | None, typer.Argument(help="Ids, as a list shows them.")]
All = Annotated[bool, typer.Option("--all", help="All that are there now.")]


@app.command("list")
def list_letters(
    reason: Reason = None,
    user: OfUser = None,
    event: Event = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[
        int, typer.Option(min=1, max=PAGE_MAX, help="How many at most.")
    ] = PAGE_DEFAULT,
    cursor: Cursor = None,
    json: AsJson = False,
    url: OperatorUrl = None,
    token: OperatorToken = None,
    config_file: ConfigFile = None,
) -> None:
    """
    List dead letters, oldest first. Looking changes neither their order nor their number.

    Examples:

        bridge dead list

        bridge dead list --reason malformed_body --since 2h

        bridge dead list --user ann --json | jq -r '.items[].id'

    """
    page = ask_once(
        operator_address(url, token, config_file),
        "/api/dead",
        LetterPage,
        query={
            "reason": reason,
            "user": user,
            "event": event,
            "since": _time_s(since, "--since"),
            "until": _time_s(until, "--until"),
            "limit": limit,
            "cursor": cursor,
        },
    )
    if json:
        print_json(page)
        return
    console = Console(highlight=False)
    console.print(_table(page.items, width=console.width))
    talk = Console(stderr=True, highlight=False)
    talk.print(f"{len(page.items)} shown, {page.total:,} in the queue")
    if page.next:
        talk.print(f"more with --cursor {page.next}", soft_wrap=True, markup=False)


@app.command("show")
def show_letter(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="As a list shows it.")],
    body: Annotated[bool, typer.Option("--body", help="Show the body too.")] = False,
    json: AsJson = False,
    url: OperatorUrl = None,
    token: OperatorToken = None,
    config_file: ConfigFile = None,
) -> None:
    """
    Show one dead letter: why it is there, where from, its properties and headers.

    The body is shown only if asked for: it may hold what is nobody's business.

    Examples:

        bridge dead show 0b7c2a1e3c5f0b7c2a1e3c5f

        bridge dead show 0b7c2a1e3c5f0b7c2a1e3c5f --body --json | jq -r .body_text

    """
    letter = ask_once(
        operator_address(url, token, config_file),
        f"/api/dead/{segment(letter_id)}",
        LetterDetail,
        query={"body": body},
    )
    if json:
        print_json(letter)
        return
    table = Table(box=None, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    # The explanation has the reason's sentence, too.
    left_out = {"properties", "headers", "reason_text"}
    facts = letter.model_dump(mode="json", exclude=left_out)
    facts["dead_s"] = moment(letter.dead_s)
    for name, value in facts.items():
        if value is not None:
            label = "set aside" if name == "dead_s" else name.replace("_", " ")
            table.add_row(label, Text(shown(str(value))))
    for kind, values in (("property", letter.properties), ("header", letter.headers)):
        for name, value in values.items():
            text = value if isinstance(value, str) else orjson.dumps(value).decode()
            table.add_row(Text(shown(f"{kind} {name}")), Text(shown(text)))
    Console(highlight=False).print(table)


@app.command("redrive")
def redrive(
    ids: Ids = None,
    reason: Reason = None,
    user: OfUser = None,
    event: Event = None,
    since: Since = None,
    until: Until = None,
    everything: All = False,
    dry_run: DryRun = False,
    rate: Annotated[
        float, typer.Option(min=1, help="Letters a second at most.")
    ] = RATE_DEFAULT_PER_S,
    json: AsJson = False,
    url: OperatorUrl = None,
    token: OperatorToken = None,
    config_file: ConfigFile = None,
) -> None:
    """
    Send dead letters back to the inbound queue, each confirmed before it leaves this one.

    Ctrl-C ends it: what was sent is gone, the rest stays in its order. Exit status: 0 all
    were sent, 1 some could not be or were not there, 3 the bridge or the broker cannot be
    reached.

    Examples:

        bridge dead redrive 0b7c2a1e3c5f0b7c2a1e3c5f

        bridge dead redrive --reason attempts_exhausted --dry-run

        bridge dead redrive --all --rate 500

    """
    wanted = _filter(reason, user, event, since, until)
    _check_selection(ids, wanted, everything=everything)
    redrive_letters(
        operator_address(url, token, config_file),
        ids=ids,
        wanted=wanted,
        rate_per_s=rate,
        dry_run=dry_run,
        as_json=json,
    )


@app.command("discard")
def discard(
    ids: Ids = None,
    reason: Reason = None,
    user: OfUser = None,
    event: Event = None,
    since: Since = None,
    until: Until = None,
    everything: All = False,
    dry_run: DryRun = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask for confirmation.")
    ] = False,
    json: AsJson = False,
    url: OperatorUrl = None,
    token: OperatorToken = None,
    config_file: ConfigFile = None,
) -> None:
    """
    Drop dead letters for good. Says how many they are and asks, unless --yes.

    Exit status: 0 done, 1 not done or not all, 3 the bridge or the broker cannot be reached.

    Examples:

        bridge dead discard 0b7c2a1e3c5f0b7c2a1e3c5f

        bridge dead discard --reason malformed_body --until 30d --yes

    """
    wanted = _filter(reason, user, event, since, until)
    _check_selection(ids, wanted, everything=everything)
    discard_letters(
        operator_address(url, token, config_file),
        ids=ids,
        wanted=wanted,
        dry_run=dry_run,
        is_confirmed=yes,
        as_json=json,
    )


def _filter(
    reason: DeadLetterCause | None,
    user: str | None,
    event: str | None,
    since: str | None,
    until: str | None,
) -> Filter | None:
    given = {
        "reason": None if reason is None else reason.value,
        "user": user,
        "event": event,
        "since": _time_s(since, "--since"),
        "until": _time_s(until, "--until"),
    }
    wanted = {name: value for name, value in given.items() if value is not None}
    return Filter.model_validate(wanted) if wanted else None


def _check_selection(
    ids: list[str] | None, wanted: Filter | None, *, everything: bool
) -> None:
    if sum([bool(ids), wanted is not None, everything]) != 1:
        raise ConfigError(
            ["give ids, or a filter such as --reason, or --all; one of the three"]
        )


def _time_s(text: str | None, flag: str) -> float | None:
    """Return the Unix time that is meant: an instant, or a duration before now."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        pass  # then it is a duration, or nothing
    try:
        return max(0.0, time.time() - parse_duration_s(text))
    except ValueError as exc:
        message = f"{flag}: {text!r} is neither a time like 2026-01-31T12:00 nor a duration like 2h"
        raise ConfigError([message]) from exc


def _table(letters: Sequence[LetterFacts], *, width: int) -> Table:
    """Return the list: ids whole, numbers and the error where there is room for them."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("id", no_wrap=True, min_width=_ID_WIDTH)
    table.add_column("set aside", no_wrap=True, min_width=_WHEN_WIDTH)
    table.add_column("reason", no_wrap=True, min_width=_REASON_WIDTH)
    for name in ("user", "event"):
        table.add_column(name, no_wrap=True, overflow="ellipsis", min_width=5)
    has_numbers, has_errors = width >= _WIDE, width >= _WIDER
    if has_numbers:
        table.add_column("redrives", justify="right", no_wrap=True)
        table.add_column("bytes", justify="right", no_wrap=True)
    if has_errors:
        table.add_column("error", overflow="fold")
    for letter in letters:
        # Strangers' text is never read as markup, nor sent to the terminal as it is.
        cells: list[str | Text] = [
            letter.id,
            moment(letter.dead_s),
            letter.reason,
            Text(shown(letter.user)),
            Text(shown(letter.event)),
        ]
        if has_numbers:
            cells += [str(letter.redrives or ""), f"{letter.bytes:,}"]
        if has_errors:
            cells.append(Text(shown(letter.error)))
        table.add_row(*cells)
    return table
