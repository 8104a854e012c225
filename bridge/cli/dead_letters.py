"""`bridge dead`: list, show, redrive and discard dead letters from a terminal."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final, TypeVar

import orjson
import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails
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
from bridge.cli.tables import local_time, printable
from bridge.core.contracts.operator.dead_letters import (
    RATE_DEFAULT_PER_S,
    DeadLetterSelection,
    Discard,
    LetterDetail,
    LetterFacts,
    LetterPage,
    Redrive,
)
from bridge.core.contracts.operator.operation import PAGE_DEFAULT, PAGE_MAX
from bridge.enums import DeadLetterCause
from bridge.errors import ConfigError
from bridge.settings.values import parse_duration_s

SelectionT = TypeVar("SelectionT", bound=DeadLetterSelection)

app = typer.Typer(
    help="List dead letters, redrive them, discard them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

# Widths in characters: of a terminal that has room for more columns, and of columns that
# are never shortened.
_WIDE: Final = 100
_WIDER: Final = 130
_ID_WIDTH: Final = 24
_WHEN_WIDTH: Final = 19
_REASON_WIDTH: Final = max(len(reason) for reason in DeadLetterCause)

Reason = Annotated[
    DeadLetterCause | None,
    typer.Option(
        metavar="REASON",  # rich would break the list of all reasons within words
        help=f"Only those with this reason: {', '.join(DeadLetterCause)}.",
    ),
]
Event = Annotated[str | None, typer.Option(help="Only those of this event.")]
Since = Annotated[
    str | None,
    typer.Option(
        help="Only those set aside since a time (2026-01-31T12:00) or a duration ago (2h)."
    ),
]
Until = Annotated[
    str | None, typer.Option(help="Only those set aside before; a time as for --since.")
]
Ids = Annotated[
    list[str] | None, typer.Argument(help="Ids, as `bridge dead list` shows them.")
]
All = Annotated[
    bool, typer.Option("--all", help="All dead letters that are in the queue now.")
]


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
    List dead letters, oldest first. This changes neither their order nor their number.

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
    hints = Console(stderr=True, highlight=False)
    hints.print(f"{len(page.items)} shown, {page.total:,} in the queue")
    if page.next:
        hints.print(f"more with --cursor {page.next}", soft_wrap=True, markup=False)


@app.command("show")
def show_letter(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="Its id.")],
    body: Annotated[bool, typer.Option("--body", help="Show the body too.")] = False,
    json: AsJson = False,
    url: OperatorUrl = None,
    token: OperatorToken = None,
    config_file: ConfigFile = None,
) -> None:
    """
    Show one dead letter: its reason, origin, properties and headers.

    The body is shown only with --body, because it may hold private data.

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
    # The explanation includes the reason's sentence.
    left_out = {"properties", "headers", "reason_text"}
    facts = letter.model_dump(mode="json", exclude=left_out)
    facts["dead_s"] = local_time(letter.dead_s)
    for name, value in facts.items():
        if value is not None:
            label = "set aside" if name == "dead_s" else name.replace("_", " ")
            table.add_row(label, Text(printable(str(value))))
    for kind, values in (("property", letter.properties), ("header", letter.headers)):
        for name, value in values.items():
            text = value if isinstance(value, str) else orjson.dumps(value).decode()
            table.add_row(Text(printable(f"{kind} {name}")), Text(printable(text)))
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
        float, typer.Option(min=1, help="Dead letters per second at most.")
    ] = RATE_DEFAULT_PER_S,
    json: AsJson = False,
    url: OperatorUrl = None,
    token: OperatorToken = None,
    config_file: ConfigFile = None,
) -> None:
    """
    Send dead letters back to the inbound queue, each confirmed before it leaves this one.

    Ctrl-C cancels the rest, which stays in order. Exit status: 0 all were sent, 1 some
    could not be sent or were not found, 3 the bridge or the broker cannot be reached.

    Examples:

        bridge dead redrive 0b7c2a1e3c5f0b7c2a1e3c5f

        bridge dead redrive --reason attempts_exhausted --dry-run

        bridge dead redrive --all --rate 500

    """
    request = _request(
        Redrive,
        {"ids": ids or None, "all": everything, "dry_run": dry_run, "rate_per_s": rate},
        _conditions(reason, user, event, since, until),
    )
    redrive_letters(operator_address(url, token, config_file), request, as_json=json)


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
    Delete dead letters permanently. Shows their number and asks for confirmation first.

    Exit status: 0 all were discarded, 1 some or all were not, 3 the bridge or the broker
    cannot be reached.

    Examples:

        bridge dead discard 0b7c2a1e3c5f0b7c2a1e3c5f

        bridge dead discard --reason malformed_body --until 30d --yes

    """
    request = _request(
        Discard,
        {"ids": ids or None, "all": everything, "dry_run": dry_run},
        _conditions(reason, user, event, since, until),
    )
    discard_letters(
        operator_address(url, token, config_file),
        request,
        is_confirmed=yes,
        as_json=json,
    )


def _conditions(
    reason: DeadLetterCause | None,
    user: str | None,
    event: str | None,
    since: str | None,
    until: str | None,
) -> dict[str, object]:
    given = {
        "reason": None if reason is None else reason.value,
        "user": user,
        "event": event,
        "since": _time_s(since, "--since"),
        "until": _time_s(until, "--until"),
    }
    return {name: value for name, value in given.items() if value is not None}


def _request(
    model: type[SelectionT], fields: dict[str, object], conditions: dict[str, object]
) -> SelectionT:
    """
    Return the body of the request, checked by the API's own model.

    Raises:
        ConfigError: If the selection is empty, ambiguous, or holds an invalid value.

    """
    try:
        return model.model_validate({**fields, "filter": conditions or None})
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_context=False)
        raise ConfigError([_problem(error) for error in errors]) from exc


def _problem(error: ErrorDetails) -> str:
    location = error["loc"]
    if not location:
        return "give ids, or a filter such as --reason, or --all; one of the three"
    if location[0] == "ids" and len(location) > 1:
        return f"{error['input']!r} is not an id; bridge dead list shows them"
    return f"{location[-1]}: {error['msg']}"


def _time_s(text: str | None, flag: str) -> float | None:
    """Return the Unix time of `text`: an instant, or a duration before now."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        pass  # not an instant; a duration is tried next
    try:
        return max(0.0, time.time() - parse_duration_s(text))
    except ValueError as exc:
        message = f"{flag}: {text!r} is neither a time like 2026-01-31T12:00 nor a duration like 2h"
        raise ConfigError([message]) from exc


def _table(letters: Sequence[LetterFacts], *, width: int) -> Table:
    """Return a table with whole ids; numbers and errors appear if `width` has room."""
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
        # Anyone may have published this text: it must reach the terminal neither as
        # markup nor with its control characters.
        cells: list[str | Text] = [
            letter.id,
            local_time(letter.dead_s),
            letter.reason,
            Text(printable(letter.user)),
            Text(printable(letter.event)),
        ]
        if has_numbers:
            cells += [str(letter.redrives or ""), f"{letter.bytes:,}"]
        if has_errors:
            cells.append(Text(printable(letter.error)))
        table.add_row(*cells)
    return table
