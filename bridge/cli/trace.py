"""`bridge trace`: what happened to one message."""

from typing import Annotated

import typer

from bridge.cli.operator_client import OperatorOptions, ask_once, print_json, segment
from bridge.cli.options import with_option_groups
from bridge.cli.tables import (
    local_time,
    print_note,
    print_table,
    printable,
    time_zone,
    zoned_time,
)
from bridge.core.contracts.operator.trace import Trace
from bridge.enums import ExitCode, Fate


@with_option_groups
def trace(
    message_id: Annotated[
        str, typer.Argument(help="The id with which the message was published.")
    ],
    user: Annotated[
        str | None,
        typer.Option("--user", help="The user; without it all messages are searched."),
    ] = None,
    *,
    operator: OperatorOptions,
) -> None:
    """
    Show what happened to a message: consumed, stored, written, delivered, or why not.

    All bridges that share the inboxes are asked for their journals. Unknown facts are listed
    on stderr. Exit status: 0 shown, 1 no trace of the message, 3 the bridge cannot be
    reached.

    Examples:

        bridge trace 7f0c9e1e-order-4711

        bridge trace order-4711 --user ann --json

    """
    found = ask_once(
        operator,
        f"/api/trace/{segment(message_id)}",
        Trace,
        query={"user": user},
    )
    if operator.json:
        print_json(found)
    else:
        _print_story(found)
    if found.fate is Fate.UNKNOWN:
        raise typer.Exit(ExitCode.FAILED)


def _print_story(found: Trace) -> None:
    if found.user is not None:
        print_note(f"{found.message_id} of {found.user}")
    if found.story:
        several = len({step.bridge for step in found.story if step.bridge}) > 1
        when = f"when ({time_zone()})"
        print_table(
            (when, "stage", "bridge", "what") if several else (when, "stage", "what"),
            [
                (
                    local_time(step.at_s, decimals=3),
                    step.stage,
                    *([step.bridge] if several else []),
                    step.text,
                )
                for step in found.story
                if step.text != found.verdict  # printed below
            ],
            folded=frozenset({"bridge", "what"}),
        )
    typer.echo(printable(found.verdict))
    for sentence in found.silent:
        print_note(f"unknown: {sentence}")
    print_note(f"the journal began at {zoned_time(found.journal_since_s)}")
    if found.others:
        names = ", ".join(found.others[:10])
        print_note(
            f"other users with a message of this id: {names} (select with --user)"
        )
