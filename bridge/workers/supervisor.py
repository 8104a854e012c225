"""
The supervisor: reserves the public port, opens the operator door, keeps the crew running.

SIGTERM and SIGINT drain all workers, a second one insists, SIGHUP reloads them all.
"""

import asyncio
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

import structlog

from bridge.core.worker_slot import Workplace
from bridge.enums import ExitCode
from bridge.errors import BridgeError, ConfigError, WorkersFailedError, first_error
from bridge.http.listeners import Listening, address_error, serve
from bridge.logging import set_log_level
from bridge.settings.model import Settings
from bridge.workers.admin_proxy import Door
from bridge.workers.control_channel import Word
from bridge.workers.pool import Crew

log = structlog.get_logger(__name__)

# What fits into a socket's address, less the names in the folder (unix(7)).
_FOLDER_MAX_BYTES: Final = 108 - len("/operator-000") - 1


@dataclass(frozen=True, slots=True)
class Posting:
    """Where and how one worker is started: its place, the public port, its line."""

    place: Workplace
    port: int
    line: int


StartCommand = Callable[[Posting], Sequence[str]]


async def supervise(
    settings: Settings,
    *,
    load: Callable[[], Settings],
    command: StartCommand,
    on_listening: Callable[[Listening], None],
) -> None:
    """
    Run `settings.workers` workers until a signal.

    Args:
        settings: Checked.
        load: Reads the settings again.
        command: Makes the command line of a worker.
        on_listening: Called once, when windows can come to all of them.

    Raises:
        WorkersFailedError: If a worker cannot be kept running, or a second signal came.
        OSError: If a port or the folder of sockets cannot be had.

    Cancellation:
        Ends all workers at once.

    """
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="bridge-", ignore_cleanup_errors=True)
        )
        if len(folder.encode()) > _FOLDER_MAX_BYTES:
            message = f"TMPDIR: {folder} is too long a path for sockets in it"
            raise OSError(message)
        reserved = stack.enter_context(reserve_port(settings.host, settings.port))
        host, port = reserved.getsockname()[:2]
        crew = Crew(
            folder,
            count=settings.workers,
            command=lambda place, line: command(Posting(place, port, line)),
        )
        door = Door(settings, crew)
        operator_url = await serve(
            stack,
            door.app,
            settings.operator_host,
            settings.operator_port,
            "BRIDGE_OPERATOR_PORT",
        )
        shown = f"[{host}]" if ":" in host else host
        listening = Listening(f"http://{shown}:{port}", operator_url)
        await _run(crew, door, load=load, tell=lambda: on_listening(listening))


async def _run(
    crew: Crew, door: Door, *, load: Callable[[], Settings], tell: Callable[[], None]
) -> None:
    """Keep the crew running until a signal; errors as `supervise`, not in groups."""
    signals = _Signals(crew, door, load)
    try:
        async with asyncio.TaskGroup() as tasks:
            beside = [
                tasks.create_task(signals.reload_on_hangup(), name="reload"),
                tasks.create_task(signals.insist(), name="insist"),
                tasks.create_task(door.watch(), name="watch"),
            ]
            await crew.run(
                signals.stop,
                on_listening=tell,
                drain_s=lambda: door.settings.drain_timeout,
            )
            for task in beside:
                task.cancel()
    except* (BridgeError, OSError) as group:
        failure = first_error(group)
    else:
        if not signals.insisted.is_set():
            return
        text = "ended at once; what was not acked comes again"
        failure = WorkersFailedError(ExitCode.FAILED, text)
    raise failure


class _Signals:
    """What the supervisor was told by signals, which it hears from now on."""

    def __init__(self, crew: Crew, door: Door, load: Callable[[], Settings]) -> None:
        self.stop = asyncio.Event()
        self.insisted = asyncio.Event()
        self._hangup = asyncio.Event()
        self._crew = crew
        self._door = door
        self._load = load
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)

    def _leave(self) -> None:
        if self.stop.is_set():
            self.insisted.set()
        self.stop.set()

    async def insist(self) -> None:
        """End all workers at once when a second signal comes."""
        await self.insisted.wait()
        await self._crew.insist()

    async def reload_on_hangup(self) -> None:
        """Read the settings again at each SIGHUP, for ever; wrong ones reach no worker."""
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            try:
                new = self._load()
            except ConfigError as exc:
                log.error("settings.reload_refused", problems=exc.problems)  # noqa: TRY400 - no traceback
                continue
            self._door.apply(new)
            set_log_level(new.log_level)
            self._crew.tell(Word.RELOAD)


def reserve_port(host: str, port: int) -> socket.socket:
    """
    Take the public port for workers to share; nothing comes to the socket itself.

    Raises:
        OSError: If it cannot be had; its text names the setting.

    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # The kernel lets any process of ours share a shared port, another bridge too.
        with socket.socket(family, kind) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
        shared = socket.socket(family, kind)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind(address)
    except OSError as exc:
        raise address_error(exc, "BRIDGE_PORT", host, port) from exc
    return shared
