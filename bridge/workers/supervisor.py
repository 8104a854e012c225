"""
The supervisor: reserves the public port, serves the operator port, keeps the workers running.

SIGTERM and SIGINT drain all workers, a second signal stops them at once, SIGHUP reloads them.
"""

import asyncio
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final

import structlog

from bridge.child_reaper import reap_adopted_children
from bridge.core.worker_slot import WorkerSlot
from bridge.enums import ExitCode
from bridge.errors import BridgeError, ConfigError, WorkersFailedError, first_error
from bridge.http.listeners import Listening, serve, socket_url
from bridge.http.listening_sockets import bind_sockets
from bridge.logging import set_log_level
from bridge.settings.model import Settings
from bridge.workers.admin_proxy import AdminProxy
from bridge.workers.control_channel import ControlMessage
from bridge.workers.pool import WorkerPool

log = structlog.get_logger(__name__)

# In memory; containers have it even if their file system is read-only.
_MEMORY_FOLDER: Final = "/dev/shm"  # noqa: S108 - `tempfile` creates a private folder in it
# The longest address of a Unix socket, without the names in the folder (unix(7)).
_FOLDER_MAX_BYTES: Final = 108 - len("/operator-000") - 1


async def supervise(
    settings: Settings,
    *,
    load: Callable[[], Settings],
    command: Callable[[WorkerSlot, int, int], Sequence[str]],
    on_listening: Callable[[Listening], None],
) -> None:
    """
    Run `settings.workers` workers until a signal.

    Args:
        settings: Checked settings.
        load: Reads the settings again.
        command: Makes the command line of a worker from its slot, the public port, and the
            file descriptor of its end of the control channel.
        on_listening: Called once, when all workers listen.

    Raises:
        WorkersFailedError: If a worker cannot be kept running, or a second signal came.
        OSError: If a port or the folder of sockets cannot be used.

    Cancellation:
        Kills all workers.

    """
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(socket_folder())
        if len(folder.encode()) > _FOLDER_MAX_BYTES:
            message = f"TMPDIR: the path {folder} is too long for sockets in it"
            raise OSError(message)
        reserved = await asyncio.to_thread(reserve_port, settings.host, settings.port)
        for one in reserved:
            stack.callback(one.close)
        port = reserved[0].getsockname()[1]
        pool = WorkerPool(
            folder,
            count=settings.workers,
            command=lambda slot, fd: command(slot, port, fd),
        )
        proxy = AdminProxy(settings, pool)
        operator_url = await serve(
            stack,
            proxy.app,
            settings.operator_host,
            settings.operator_port,
            "BRIDGE_OPERATOR_PORT",
            site=proxy.listener.site,
        )
        listening = Listening(socket_url(reserved[0]), operator_url)
        await _Supervision(pool, proxy, load).run(lambda: on_listening(listening))


class _Supervision:
    """Runs the pool, and reacts to signals from its creation on."""

    def __init__(
        self, pool: WorkerPool, proxy: AdminProxy, load: Callable[[], Settings]
    ) -> None:
        self._pool = pool
        self._proxy = proxy
        self._load = load
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._hangup = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)

    def _on_stop_signal(self) -> None:
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    async def run(self, on_listening: Callable[[], None]) -> None:
        """Keep the workers running until a signal; raises errors instead of groups."""
        try:
            async with asyncio.TaskGroup() as tasks:
                beside = [
                    tasks.create_task(self._reload_on_hangup(), name="reload"),
                    tasks.create_task(self._stop_on_second_signal(), name="stop now"),
                    tasks.create_task(self._proxy.scrape_periodically(), name="scrape"),
                    tasks.create_task(
                        reap_adopted_children(self._pool.own_pids), name="reap"
                    ),
                ]
                await self._pool.run(
                    self._stop,
                    on_listening=on_listening,
                    drain_s=lambda: self._proxy.settings.drain_timeout,
                )
                for task in beside:
                    task.cancel()
        except* (BridgeError, OSError) as group:
            failure = first_error(group)
        else:
            if not self._stop_now.is_set():
                return
            text = "stopped without draining; unacked messages will be redelivered"
            failure = WorkersFailedError(ExitCode.FAILED, text)
        raise failure

    async def _stop_on_second_signal(self) -> None:
        await self._stop_now.wait()
        await self._pool.stop_now()

    async def _reload_on_hangup(self) -> None:
        """Read the settings again at each SIGHUP; invalid ones reach no worker."""
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            try:
                new = self._load()
                self._proxy.apply(new)
            except ConfigError as exc:
                log.error("settings.reload_refused", problems=exc.problems)  # noqa: TRY400 - no traceback
            except Exception:  # a bug must cost the reload, not all windows
                log.exception("settings.reload_failed")
            else:
                set_log_level(new.log_level)
                self._pool.send(ControlMessage.RELOAD)


def socket_folder(
    fallback: str = _MEMORY_FOLDER,
) -> tempfile.TemporaryDirectory[str]:
    """
    Create the folder of the workers' sockets; it is removed when its context ends.

    It is a temporary folder, or one in `fallback` if there is no writable place for those: a
    container with a read-only root file system has no other.

    Raises:
        OSError: If neither can be written.

    """
    problem: OSError | None = None
    for parent in (None, fallback):
        try:
            return tempfile.TemporaryDirectory(
                prefix="bridge-", dir=parent, ignore_cleanup_errors=True
            )
        except OSError as exc:
            problem = problem or exc
    message = (
        "TMPDIR: the sockets of the workers need a folder that the user of bridge can write "
        f"to; set TMPDIR to one ({problem}; {fallback} is not writable either)"
    )
    raise OSError(message) from problem


def reserve_port(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """
    Reserve the public port for the workers, which share it with SO_REUSEPORT.

    The returned sockets do not listen, so they receive no connections.

    Raises:
        OSError: If the port cannot be used; the text names the setting.

    """
    # With SO_REUSEPORT the kernel lets any process of the same user bind the port, also
    # another bridge. Binding without it first detects one.
    for one in bind_sockets(hosts, port, "BRIDGE_PORT"):
        one.close()
    return bind_sockets(hosts, port, "BRIDGE_PORT", is_shared=True)
