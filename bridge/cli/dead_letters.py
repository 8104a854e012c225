"""`bridge dead`: list, show, redrive and discard dead letters from a terminal."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
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
from bridge.cli.operator_client import OperatorOptions, ask_once, print_json, segment
from bridge.cli.options import Cursor, DryRun, OfUser, with_option_groups
from bridge.cli.tables import (
    local_time,
    print_note,
    printable,
    short_time,
    time_zone,
    zoned_time,
)
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
from bridge.core.durations import parse_duration_s
from bridge.enums import DeadLetterReason
from bridge.errors import ConfigError

SelectionT = TypeVar("SelectionT", bound=DeadLetterSelection)

app = typer.Typer(
    help="List dead letters, redrive them, discard them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

# Widths in characters: of a terminal that has room for more columns, and of ids.
_WIDE: Final = 100
_WIDER: Final = 130
_ID_WIDTH: Final = 24
_NAMES_MAX_WIDTH: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterOptions:
    """Options that are conditions for dead letters."""

    reason: Annotated[
        DeadLetterReason | None,
        typer.Option(
            metavar="REASON",  # rich would break the list of all reasons within words
            help=f"Only entries with this reason: {', '.join(DeadLetterReason)}.",
        ),
    ] = None
    user: OfUser = None
    event: Annotated[str | None, typer.Option(help="Only entries of this event.")] = (
        None
    )
    since: Annotated[
        str | None,
        typer.Option(
            help="Only entries dead-lettered since a time (2026-01-31T12:00) or a duration ago "
            "(2h)."
        ),
    ] = None
    until: Annotated[
        str | None,
        typer.Option(
            help="Only entries dead-lettered before this time, in the format of --since."
        ),
    ] = None

    def conditions(self) -> dict[str, str | float]:
        """Return the conditions that are set, as the API names them."""
        given = {
            "reason": self.reason and self.reason.value,
            "user": self.user,
            "event": self.event,
            "since": _time_s(self.since, "--since"),
            "until": _time_s(self.until, "--until"),
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionOptions(FilterOptions):
    """Options that select dead letters for a job."""

    ids: Annotated[
        list[str] | None, typer.Argument(help="Ids, as `bridge dead list` shows them.")
    ] = None
    everything: Annotated[
        bool, typer.Option("--all", help="All dead letters that are in the queue now.")
    ] = False
    dry_run: DryRun = False

    def request(self, model: type[SelectionT], **fields: object) -> SelectionT:
        """
        Return the body of a request, checked by the API's own model.

        Raises:
            ConfigError: If the selection is empty, ambiguous, or holds an invalid value.

        """
        fields |= {
            "ids": self.ids or None,
            "all": self.everything,
            "filter": self.conditions() or None,
            "dry_run": self.dry_run,
        }
        try:
            return model.model_validate(fields)
        except ValidationError as exc:
            errors = exc.errors(include_url=False, include_context=False)
            raise ConfigError([_problem(error) for error in errors]) from exc


@app.command("list")
@with_option_groups
def list_letters(
    filters: FilterOptions,
    limit: Annotated[
        int,
        typer.Option(min=1, max=PAGE_MAX, help="Maximum number of entries to show."),
    ] = PAGE_DEFAULT,
    cursor: Cursor = None,
    *,
    operator: OperatorOptions,
) -> None:
    """
    List dead letters, oldest first. This changes neither their order nor their number.

    Examples:

        bridge dead list

        bridge dead list --reason malformed_body --since 2h

        bridge dead list --user ann --json | jq -r '.items[].id'

    """
    page = ask_once(
        operator,
        "/api/dead",
        LetterPage,
        query={
            **filters.conditions(),
            "limit": limit,
            "cursor": cursor,
        },
    )
    if operator.json:
        print_json(page)
        return
    console = Console(highlight=False)
    console.print(_table(page.items, width=console.width))
    print_note(f"{len(page.items)} shown, {page.total:,} in the queue")
    if page.next:
        print_note(f"more with --cursor {page.next}")


@app.command("show")
@with_option_groups
def show_letter(
    letter_id: Annotated[
        str, typer.Argument(metavar="ID", help="The id of the dead letter.")
    ],
    body: Annotated[bool, typer.Option("--body", help="Show the body too.")] = False,
    *,
    operator: OperatorOptions,
) -> None:
    """
    Show one dead letter: its reason, origin, properties and headers.

    The body is shown only with --body, because it may hold private data.

    Examples:

        bridge dead show 0b7c2a1e3c5f0b7c2a1e3c5f

        bridge dead show 0b7c2a1e3c5f0b7c2a1e3c5f --body --json | jq -r .body_text

    """
    letter = ask_once(
        operator,
        f"/api/dead/{segment(letter_id)}",
        LetterDetail,
        query={"body": body},
    )
    if operator.json:
        print_json(letter)
        return
    table = Table(box=None, show_header=False)
    # A publisher chooses the names of headers; a long one must leave place for its value.
    table.add_column(style="bold", overflow="fold", max_width=_NAMES_MAX_WIDTH)
    table.add_column(overflow="fold")
    # The explanation includes the reason's sentence.
    left_out = {"properties", "headers", "reason_text"}
    facts = letter.model_dump(mode="json", exclude=left_out)
    facts["dead_s"] = zoned_time(letter.dead_s)
    for name, value in facts.items():
        if value is not None:
            label = "dead-lettered" if name == "dead_s" else name.replace("_", " ")
            table.add_row(label, Text(printable(str(value))))
    for kind, values in (("property", letter.properties), ("header", letter.headers)):
        for name, value in values.items():
            text = value if isinstance(value, str) else orjson.dumps(value).decode()
            table.add_row(Text(printable(f"{kind} {name}")), Text(printable(text)))
    Console(highlight=False).print(table)


@app.command("redrive")
@with_option_groups
def redrive(
    selection: SelectionOptions,
    rate: Annotated[
        float, typer.Option(min=1, help="Maximum number of dead letters per second.")
    ] = RATE_DEFAULT_PER_S,
    *,
    operator: OperatorOptions,
) -> None:
    """
    Send dead letters to the inbound queue again; each is removed after its confirm.

    Ctrl-C cancels the rest, which stays in order. Exit status: 0 all were sent, 1 some
    could not be sent or were not found, 3 the bridge or the broker cannot be reached.

    Examples:

        bridge dead redrive 0b7c2a1e3c5f0b7c2a1e3c5f

        bridge dead redrive --reason attempts_exhausted --dry-run

        bridge dead redrive --all --rate 500

    """
    redrive_letters(operator, selection.request(Redrive, rate_per_s=rate))


@app.command("discard")
@with_option_groups
def discard(
    selection: SelectionOptions,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask for confirmation.")
    ] = False,
    *,
    operator: OperatorOptions,
) -> None:
    """
    Delete dead letters permanently. Shows their number and asks for confirmation first.

    Exit status: 0 all were discarded, 1 some or all were not, 3 the bridge or the broker
    cannot be reached.

    Examples:

        bridge dead discard 0b7c2a1e3c5f0b7c2a1e3c5f

        bridge dead discard --reason malformed_body --until 30d --yes

    """
    discard_letters(operator, selection.request(Discard), is_confirmed=yes)


def _problem(error: ErrorDetails) -> str:
    location = error["loc"]
    if not location:
        return "give ids, a filter such as --reason, or --all (only one of these)"
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
    has_numbers, has_errors = width >= _WIDE, width >= _WIDER
    title = "dead-lettered" if has_numbers else "at"
    table.add_column(f"{title} ({time_zone()})", no_wrap=True)
    table.add_column("reason", no_wrap=True)
    for name in ("user", "event"):
        table.add_column(name, overflow="fold", min_width=5)
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
            (local_time if has_numbers else short_time)(letter.dead_s),
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
