"""`bridge trace`: the story of one message."""

from typing import Annotated

import typer

from bridge.cli.operator_client import (
    ask_once,
    operator_address,
    print_json,
    segment,
)
from bridge.cli.options import (
    AsJson,
    ConfigFile,
    OperatorToken,
    OperatorUrl,
)
from bridge.cli.tables import local_time, print_note, print_table, printable
from bridge.core.contracts.operator.trace import Trace
from bridge.enums import ExitCode, Fate


def trace(
    message_id: Annotated[
        str, typer.Argument(help="The id that the message was published with.")
    ],
    user: Annotated[
        str | None,
        typer.Option("--user", help="Whose; without it all messages are looked at."),
    ] = None,
    json: AsJson = False,
    url: OperatorUrl = None,
    token: OperatorToken = None,
    config_file: ConfigFile = None,
) -> None:
    """
    Tell what became of a message: taken, stored, written, delivered, or why not.

    All bridges that share the inboxes are asked what they remember. What nobody can know is
    said on stderr. Exit status: 0 told, 1 no trace of it, 3 the
    bridge cannot be reached.

    Examples:

        bridge trace 7f0c9e1e-order-4711

        bridge trace order-4711 --user ann --json

    """
    told = ask_once(
        operator_address(url, token, config_file),
        f"/api/trace/{segment(message_id)}",
        Trace,
        query={"user": user},
    )
    if json:
        print_json(told)
    else:
        _print_story(told)
    if told.fate is Fate.UNKNOWN:
        raise typer.Exit(ExitCode.FAILED)


def _print_story(told: Trace) -> None:
    if told.user is not None:
        print_note(f"{told.message_id} of {told.user}")
    if told.story:
        several = len({step.bridge for step in told.story if step.bridge}) > 1
        print_table(
            ("when", "stage", "bridge", "what")
            if several
            else ("when", "stage", "what"),
            [
                (
                    local_time(step.at_s, decimals=3),
                    step.stage,
                    *([step.bridge] if several else []),
                    step.text,
                )
                for step in told.story
            ],
        )
    typer.echo(printable(told.verdict))
    for sentence in told.silent:
        print_note(f"not known: {sentence}")
    print_note(f"the journal begins at {local_time(told.journal_since_s)}")
    if told.others:
        names = ", ".join(told.others[:10])
        print_note(f"with messages of the same id, see --user: {names}")
