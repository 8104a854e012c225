"""
The program `bridge`, with all its commands.

Exit status: 0 done, 1 failed, 2 wrong usage or settings, 3 a peer cannot be reached.
"""

import sys
from typing import Annotated

import typer
from rich.console import Console

from bridge import __version__
from bridge.cli import (
    check,
    config,
    demo,
    inbox,
    publish,
    queues,
    run,
    schemas,
    shards,
    tail,
    token,
    trace,
    users,
    worker,
)
from bridge.cli import dead_letters as dead
from bridge.enums import ExitCode
from bridge.errors import (
    BridgeError,
    BrokerUnavailableError,
    ConfigError,
    OperatorUnreachableError,
    WorkersFailedError,
)

app = typer.Typer(
    name="bridge",
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


app.command("run")(run.run)
app.command("worker", hidden=True)(worker.worker)
app.command("demo")(demo.demo)
app.command("check")(check.check)
app.command("config")(config.config)
app.command("token")(token.token)
app.command("publish")(publish.publish)
app.command("tail")(tail.tail)
app.command("queues")(queues.queues)
app.add_typer(dead.app, name="dead")
app.add_typer(shards.app, name="shards")
app.command("users")(users.users)
app.command("kick")(users.kick)
app.add_typer(inbox.app, name="inbox")
app.command("trace")(trace.trace)
app.command("schemas")(schemas.schemas)


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
    console = Console(stderr=True, highlight=False)
    for line in str(problem).splitlines():
        console.print(f"bridge: {line}", markup=False, soft_wrap=True)
