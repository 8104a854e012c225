"""`bridge worker`: one of the processes of `bridge run --workers N`, started by it alone."""

import asyncio
from typing import Annotated

import typer
import uvloop

from bridge.app import Bridge
from bridge.cli.options import LoadSettings, with_settings
from bridge.cli.run import collect_rarely
from bridge.core.worker_slot import Workplace
from bridge.enums import ExitCode
from bridge.logging import configure_logs
from bridge.settings.model import Settings
from bridge.workers.worker import run_worker


@with_settings
def worker(
    load: LoadSettings,
    folder: Annotated[str, typer.Option("--of", help="The folder of sockets.")],
    index: Annotated[int, typer.Option("--index", help="Which worker, from 0.")],
    shared_port: Annotated[int, typer.Option("--at", help="The real public port.")],
    line: Annotated[int, typer.Option("--line", help="To the supervisor.")],
) -> None:
    """Work for `bridge run --workers N`, which starts it."""

    def load_ours() -> Settings:
        return load().model_copy(update={"port": shared_port})

    settings = load_ours()
    configure_logs(
        level=settings.log_level, log_format=settings.log_format, worker=index
    )
    place = Workplace(folder, index)
    bridge = Bridge(settings, place=place)
    collect_rarely()
    try:
        uvloop.run(run_worker(bridge, place, line=line, load=load_ours))
    except asyncio.CancelledError:  # the supervisor insists
        raise typer.Exit(ExitCode.FAILED) from None
