"""`bridge worker`: a worker process, which only `bridge run --workers N` starts."""

import asyncio
from typing import Annotated

import typer
import uvloop

from bridge.app import Bridge
from bridge.cli.options import LoadSettings, with_settings
from bridge.cli.run import tune_garbage_collector
from bridge.core.worker_slot import WorkerSlot
from bridge.enums import ExitCode
from bridge.logging import configure_logs
from bridge.settings.model import Settings
from bridge.workers.worker import run_worker


@with_settings
def worker(
    load: LoadSettings,
    folder: Annotated[
        str, typer.Option("--of", help="The folder of the workers' sockets.")
    ],
    index: Annotated[
        int, typer.Option("--index", help="The number of the worker, from 0.")
    ],
    shared_port: Annotated[int, typer.Option("--at", help="The shared public port.")],
    control_fd: Annotated[
        int, typer.Option("--line", help="File descriptor of the control channel.")
    ],
) -> None:
    """Run one worker; only `bridge run --workers N` starts this command."""

    def load_worker() -> Settings:
        return load().model_copy(update={"port": shared_port})

    settings = load_worker()
    configure_logs(
        level=settings.log_level,
        log_format=settings.log_format,
        worker=index,
        in_background=True,
    )
    slot = WorkerSlot(folder, index)
    bridge = Bridge(settings, slot=slot)
    tune_garbage_collector()
    try:
        uvloop.run(run_worker(bridge, slot, control_fd=control_fd, load=load_worker))
    except asyncio.CancelledError:  # the supervisor sent STOP_NOW
        raise typer.Exit(ExitCode.FAILED) from None
