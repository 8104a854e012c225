"""`bridge demo`: try everything on one page; Ctrl-C stops it."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Final

import typer
import uvloop
from rich.console import Console

from bridge.cli.tables import print_note
from bridge.core.durations import parse_duration_s
from bridge.demo.run import NAMESPACE_ELSEWHERE, DemoOptions, DemoStarted, run_demo
from bridge.errors import ConfigError

_TOKEN_LIFE_MIN_S: Final = 4.0

_out = Console(highlight=False)


def demo(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page; 0 = any free one.")
    ] = 8080,
    operator_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Operator port; 0 = any free one.")
    ] = 8081,
    no_node: Annotated[
        bool, typer.Option("--no-node", help="Start no RabbitMQ; use --amqp-url.")
    ] = False,
    amqp_url: Annotated[
        str | None,
        typer.Option(
            help="The RabbitMQ to use with --no-node; queues there begin with "
            f"{NAMESPACE_ELSEWHERE}, so that no other bridge is disturbed."
        ),
    ] = None,
    token_life: Annotated[
        str,
        typer.Option(
            help="Lifetime of the page's tokens; short, so that renewals can be seen."
        ),
    ] = "2m",  # noqa: S107 - a duration
    log_level: Annotated[str, typer.Option(help="Lowest level to log.")] = "error",
) -> None:
    """
    Show everything on one page: RabbitMQ, the bridge, two users side by side.

    Starts a private RabbitMQ node, which needs no root and touches no system service.
    Ctrl-C stops everything and removes what it created. BRIDGE_* settings are ignored.

    Examples:

        bridge demo

        bridge demo --port 0 --token-life 10s

        bridge demo --no-node --amqp-url amqp://guest:guest@localhost/

    """
    if no_node != (amqp_url is not None):
        raise ConfigError(["--no-node and --amqp-url go together: give both or none"])
    options = DemoOptions(
        port=port,
        operator_port=operator_port,
        amqp_url=amqp_url,
        token_life_s=_token_life_s(token_life),
        log_level=log_level,
        program=_this_program(),
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_demo(options, say=print_note, on_started=_show))
    except (asyncio.CancelledError, KeyboardInterrupt):
        pass  # Ctrl-C during the start, or twice: everything is cleaned up by now
    if amqp_url is None:
        print_note("stopped; everything that the demo created was removed")
    else:
        print_note(f"stopped; {NAMESPACE_ELSEWHERE}.* stays on the broker")


def _show(started: DemoStarted) -> None:
    _out.print(f"\nThe page: [bold]{started.page_url}[/bold]")
    _out.print(
        f"The console: {started.console_url}, sign in with {started.operator_token}\n",
        soft_wrap=True,
    )
    for command in started.commands:
        _out.print(f"[dim]{command.title}:[/dim]")
        # Without wrapping, color or indentation, so that it can be copied.
        _out.print(command.text, markup=False, soft_wrap=True, end="\n\n")
    _out.print(
        "[dim]to use any command of bridge with this demo, in another terminal:[/dim]"
    )
    _out.print(started.exports, markup=False, soft_wrap=True, end="\n\n")
    print_note("Ctrl-C stops everything")


def _token_life_s(text: str) -> float:
    try:
        life_s = parse_duration_s(text)
    except ValueError as exc:
        raise ConfigError([f"--token-life: {exc}"]) from exc
    if life_s < _TOKEN_LIFE_MIN_S:
        problem = f"--token-life: {text} is too short, expected {_TOKEN_LIFE_MIN_S:g}s or more"
        raise ConfigError([problem])
    return life_s


def _this_program() -> list[str]:
    """Return the words that start this program from any folder."""
    called = Path(sys.argv[0]).absolute()
    if called.name == "__main__.py":
        return [sys.executable, "-m", "bridge"]
    return [str(called)]
