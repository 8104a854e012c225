"""`bridge run`: carry messages until told to go."""

import asyncio
import gc

import typer
import uvloop

from bridge import __version__
from bridge.app import Bridge, Listening
from bridge.cli.options import LoadSettings, with_settings
from bridge.logs import configure_logs
from bridge.names import ExitCode
from bridge.signals import run_until_signalled


@with_settings
def run(load: LoadSettings) -> None:
    """
    Carry messages from RabbitMQ to browsers until SIGTERM or Ctrl-C.

    The first signal drains: nothing more is taken from the broker, what is in flight is
    settled, windows are told to connect again. The second one insists. SIGHUP reads the
    settings again and applies what can change while running.

    Examples:
        BRIDGE_JWT_SECRET=$(openssl rand -base64 48) bridge run

        bridge run --config /etc/bridge.toml --port 9000 --log-level debug

    """
    settings = load()
    configure_logs(level=settings.log_level, log_format=settings.log_format)
    bridge = Bridge(settings)
    _collect_rarely()
    try:
        uvloop.run(run_until_signalled(bridge, load=load, on_listening=_tell))
    except asyncio.CancelledError:  # the second signal
        typer.echo("bridge: ended at once; what was not acked comes again", err=True)
        raise typer.Exit(ExitCode.FAILED) from None


def _collect_rarely() -> None:
    """
    Look for garbage in cycles less often: a message makes none.

    Python looks each 700 objects, by default, and the messages of one batch are more; that
    was a third of what the pump costs. What is here by now stays, and is never looked at.
    """
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def _tell(listening: Listening) -> None:
    typer.echo(
        f"bridge {__version__} listens: public {listening.public_url}, "
        f"operator {listening.operator_url}"
    )
