"""
The program `bridge`, with all its commands.

Exit status: 0 done, 1 failed, 2 wrong usage or settings, 3 a peer cannot be reached.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from bridge import __version__
from bridge.enums import ExitCode
from bridge.errors import (
    BridgeError,
    BrokerUnavailableError,
    ConfigError,
    OperatorUnreachableError,
    WorkersFailedError,
)

# Command, its place in `bridge.cli`, and the first line of its help.
_COMMANDS: Final = (
    (
        "run",
        "run:run",
        "Deliver messages from RabbitMQ to browsers until SIGTERM or Ctrl-C.",
    ),
    (
        "demo",
        "demo:demo",
        "Show everything on one page: RabbitMQ, the bridge, two users side by side.",
    ),
    (
        "check",
        "check:check",
        "Check everything that `bridge run` needs, and change nothing.",
    ),
    (
        "config",
        "config:config",
        "Show every setting with its effective value, secrets masked.",
    ),
    (
        "token",
        "token:token",
        "Print a token for USER, signed with the first BRIDGE_JWT_SECRET.",
    ),
    (
        "publish",
        "publish:publish",
        "Publish to users through RabbitMQ, each message confirmed by the broker.",
    ),
    (
        "tail",
        "tail:tail",
        "Connect like a browser of USER and print its messages, until Ctrl-C.",
    ),
    (
        "queues",
        "queues:queues",
        "Show the queues of a running bridge: depth, unacked, consumers, age, rates.",
    ),
    (
        "dead",
        "dead_letters:app",
        "List dead letters, redrive them, discard them.",
    ),
    (
        "shards",
        "shards:app",
        "Show the number of shards, and the queues that remain from an earlier number.",
    ),
    (
        "users",
        "users:users",
        "Show users with their windows, inboxes and last connects.",
    ),
    ("kick", "users:kick", "Close all windows of a user, on every bridge."),
    (
        "revoke",
        "revocations:revoke",
        "Refuse tokens of a user on every bridge, and close the windows that use them.",
    ),
    (
        "revocations",
        "revocations:revocations",
        "Show the revocations that are in force.",
    ),
    (
        "inbox",
        "inbox:app",
        "Show the inbox of a user, or migrate all inboxes to another store.",
    ),
    (
        "trace",
        "trace:trace",
        "Show what happened to a message: consumed, stored, written, delivered, or why not.",
    ),
    (
        "schemas",
        "schemas:schemas",
        "Generate the JSON Schemas and the OpenAPI document from the models.",
    ),
)
_HIDDEN: Final = ("worker", "worker:worker")  # only `bridge run --workers` starts it
_WITH_SETTINGS: Final = {"run", "check", "worker"}
_PLACES: Final = dict([*((name, place) for name, place, _ in _COMMANDS), _HIDDEN])


class _LazyGroup(TyperGroup):
    """Imports a command when it is called: all of them would take a second."""

    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401 - typer's
        super().__init__(**attributes)
        self.commands = {
            name: TyperCommand(name, help=summary) for name, _, summary in _COMMANDS
        }
        self.commands[_HIDDEN[0]] = TyperCommand(_HIDDEN[0], hidden=True)

    # The type of `ctx` depends on the version of typer, which may vendor click.
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - see above
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and load_command(str(name)), rest


def import_command(words: Sequence[str]) -> None:
    """Import the module of the command that the arguments `words` name, if they do."""
    if words and words[0] in _PLACES:
        import_module(f"bridge.cli.{_PLACES[words[0]].partition(':')[0]}")


def load_command(name: str) -> TyperCommand | TyperGroup:
    """Import and return the command `name`; `KeyError` if there is none."""
    module_name, _, attribute = _PLACES[name].partition(":")
    found = getattr(import_module(f"bridge.cli.{module_name}"), attribute)
    if isinstance(found, typer.Typer):
        return get_group(found)
    # In a table of 80 columns, rich would cut the long names of settings.
    single = typer.Typer(
        add_completion=False,
        rich_markup_mode=None if name in _WITH_SETTINGS else "markdown",
    )
    single.command(name)(found)
    command = get_command(single)
    assert isinstance(command, TyperCommand)  # noqa: S101 - for mypy: it always is
    return command


app = typer.Typer(
    name="bridge",
    cls=_LazyGroup,
    help="Delivers messages from RabbitMQ to every window of a user, without loss.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"bridge {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Parse the options that stand before any command."""


def main() -> None:
    """Run the command of `sys.argv` and exit with its status."""
    try:
        app()
    except (BridgeError, OSError) as exc:
        _print_error(exc)
        sys.exit(exit_code_of(exc))


def exit_code_of(exc: BridgeError | OSError) -> int:
    """Return the exit status of a command that failed with `exc`."""
    match exc:
        case ConfigError():
            return ExitCode.USAGE
        case BrokerUnavailableError() | OperatorUnreachableError():
            return ExitCode.UNREACHABLE
        case WorkersFailedError():
            return exc.code
        case _:
            return ExitCode.FAILED


def _print_error(problem: Exception) -> None:
    for line in str(problem).splitlines():
        typer.echo(f"bridge: {line}", err=True)
