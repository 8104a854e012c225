"""`bridge run`: deliver messages until a signal stops it."""

import asyncio
import gc
import os
import socket
import sys
from functools import partial

import structlog
import typer
import uvloop

from bridge import __version__
from bridge.app import Bridge
from bridge.cli.options import LoadSettings, with_settings
from bridge.core.worker_slot import WorkerSlot
from bridge.enums import ExitCode
from bridge.http.listeners import Listening
from bridge.logging import configure_logs
from bridge.signals import run_until_signalled
from bridge.workers.supervisor import supervise

log = structlog.get_logger(__name__)


@with_settings
def run(load: LoadSettings) -> None:
    """
    Deliver messages from RabbitMQ to browsers until SIGTERM or Ctrl-C.

    The first signal drains: messages in flight are settled, queues are released, and
    windows are asked to reconnect elsewhere. The second signal exits at once. SIGHUP
    reloads the settings that can change at runtime.

    With --workers N, N processes share the public port and the work. A supervisor starts
    and restarts them, and has the operator port. They need a shared inbox (redis:).

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
        suffix = f" ({settings.workers} workers)"
        uvloop.run(
            supervise(
                settings,
                load=load,
                command=_worker_command,
                on_listening=partial(_report_start, suffix=suffix),
            )
        )
        return
    bridge = Bridge(settings)
    tune_garbage_collector()
    try:
        uvloop.run(run_until_signalled(bridge, load=load, on_listening=_report_start))
    except asyncio.CancelledError:  # the second signal
        typer.echo(
            "bridge: exited at once; unacked messages will be redelivered", err=True
        )
        raise typer.Exit(ExitCode.FAILED) from None


def tune_garbage_collector() -> None:
    """
    Run the cyclic garbage collector less often, and on fewer objects at once.

    By default it runs after 700 new objects, which is less than one batch of messages. That
    was a third of the CPU time per message, and messages contain no cycles. Objects that
    exist now live until the end, so they are excluded from all collections.

    Every second collection moves what it has visited to the oldest generation. The middle one
    would otherwise grow to ten times as many objects: with 100,000 messages in memory, its
    collection blocked the process for 0.2 s. The oldest is collected after 2.4 million new
    objects, if it has grown by a quarter.

    The thresholds count created minus deleted objects. So they do not bound a collection once
    inboxes in memory are full, where each new message deletes an old one.
    """
    gc.freeze()
    gc.set_threshold(10_000, 0, 120)


def _worker_command(slot: WorkerSlot, port: int, control_fd: int) -> list[str]:
    """Return the command line of a worker: this process's own, with another command."""
    # The interpreter's options and the script or module that it runs.
    before = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    return [
        sys.executable,
        *before,
        "worker",
        f"--of={slot.folder}",
        f"--index={slot.index}",
        f"--at={port}",
        f"--line={control_fd}",
        *sys.argv[2:],
    ]


def _report_start(listening: Listening, suffix: str = "") -> None:
    _print_addresses(listening, suffix)
    _notify_service_manager()


def _notify_service_manager() -> None:
    """Tell systemd that the start is complete, if it waits for that (`Type=notify`)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket, see sd_notify(3)
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.sendto(b"READY=1", address)
    except OSError as exc:
        log.warning("service_manager.not_notified", problem=str(exc))


def _print_addresses(listening: Listening, suffix: str) -> None:
    line = (
        f"bridge {__version__} listens: public {listening.public_url}, "
        f"operator {listening.operator_url}{suffix}"
    )
    try:
        typer.echo(line)
    except OSError as exc:
        # A full disk or a closed pipe is no reason to stop. The rest of the stream's
        # buffer is flushed to /dev/null when the process exits.
        log.warning("stdout.not_written", problem=str(exc), line=line)
        with open(os.devnull, "wb") as null:  # noqa: PTH123 - a device
            os.dup2(null.fileno(), 1)
