"""`bridge run`: carry messages until told to go."""

import asyncio
import gc
import os
import sys

import structlog
import typer
import uvloop

from bridge import __version__
from bridge.app import Bridge
from bridge.cli.options import LoadSettings, with_settings
from bridge.enums import ExitCode
from bridge.http.listeners import Listening
from bridge.logging import configure_logs
from bridge.signals import run_until_signalled
from bridge.workers.supervisor import WorkerStart, supervise

log = structlog.get_logger(__name__)


@with_settings
def run(load: LoadSettings) -> None:
    """
    Carry messages from RabbitMQ to browsers until SIGTERM or Ctrl-C.

    The first signal drains: what the broker has given is settled and its queues are given
    away, windows are told to connect again. The second one insists. SIGHUP reads the
    settings again and applies what can change while running.

    With --workers N, N processes share the public port and the work; one more starts and
    watches them, and has the operator port. They need an inbox that they share.

    Examples:

        BRIDGE_JWT_SECRET=$(openssl rand -base64 48) bridge run

        bridge run --config /etc/bridge.toml --port 9000 --log-level debug

        BRIDGE_INBOX=redis://127.0.0.1:6379/ bridge run --workers 4

    """
    settings = load()
    configure_logs(
        level=settings.log_level, log_format=settings.log_format, in_background=True
    )
    if settings.workers > 1:
        tell = _Telling(f" ({settings.workers} workers)")
        uvloop.run(
            supervise(settings, load=load, command=_worker_command, on_listening=tell)
        )
        return
    bridge = Bridge(settings)
    collect_rarely()
    try:
        uvloop.run(run_until_signalled(bridge, load=load, on_listening=_Telling()))
    except asyncio.CancelledError:  # the second signal
        typer.echo("bridge: ended at once; what was not acked comes again", err=True)
        raise typer.Exit(ExitCode.FAILED) from None


def collect_rarely() -> None:
    """
    Look for garbage in cycles less often: a message makes none.

    Python looks each 700 objects, by default, and the messages of one batch are more; that
    was a third of what the pump costs. What is here by now stays, and is never looked at.
    """
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def _worker_command(start: WorkerStart) -> list[str]:
    """Return the command line of a worker: this process's own, with another command."""
    # The interpreter's options and the script or module that it runs.
    before = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    return [
        sys.executable,
        *before,
        "worker",
        f"--of={start.slot.folder}",
        f"--index={start.slot.index}",
        f"--at={start.port}",
        f"--line={start.control_fd}",
        *sys.argv[2:],
    ]


class _Telling:
    """Says on stdout, in one line, where the bridge listens."""

    def __init__(self, more: str = "") -> None:
        self._more = more

    def __call__(self, listening: Listening) -> None:
        line = (
            f"bridge {__version__} listens: public {listening.public_url}, "
            f"operator {listening.operator_url}{self._more}"
        )
        try:
            typer.echo(line)
        except OSError as exc:
            # A full disk or a closed pipe is no reason to stop. What is left in the
            # buffer of the stream is flushed to /dev/null when the process exits.
            log.warning("stdout.not_written", problem=str(exc), line=line)
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device
                os.dup2(nowhere.fileno(), 1)
