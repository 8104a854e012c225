"""A worker's own side: runs a bridge until the supervisor says otherwise, or is gone."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

import structlog

from bridge.app import Bridge
from bridge.core.worker_slot import Workplace
from bridge.errors import ConfigError
from bridge.http.listeners import Listening
from bridge.settings.model import Settings
from bridge.workers.control_channel import Word, hear

log = structlog.get_logger(__name__)


async def run_worker(
    bridge: Bridge, place: Workplace, *, line: int, load: Callable[[], Settings]
) -> None:
    """
    Run `bridge` until told to go.

    Signals drain as well, and never insist: a service manager sends them to every
    process of the bridge, and the supervisor's own word comes on top of that.

    Args:
        bridge: Built for `place`.
        place: Its sockets are removed at the end.
        line: File descriptor of the worker's end of the line.
        load: Reads the settings again.

    Raises:
        BridgeError, OSError: As `Bridge.run`.

    Cancellation:
        Ends at once, without draining; nothing that was acked is lost.

    """
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=line))
    orders = _Orders(bridge, load, insist=_cancel_of_this_task())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, orders.stop.set)
    loop.add_signal_handler(signal.SIGHUP, orders.hangup.set)

    def tell(_listening: Listening) -> None:
        writer.write(Word.LISTENING.value)

    try:
        await bridge.run(orders.stop, on_listening=tell, beside=orders.follow(reader))
    finally:
        writer.close()
        _tidy(place, is_orphan=orders.is_orphan)


def _cancel_of_this_task() -> Callable[[], object]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine always runs in one
    return task.cancel


class _Orders:
    """What the worker was told to do."""

    def __init__(
        self,
        bridge: Bridge,
        load: Callable[[], Settings],
        *,
        insist: Callable[[], object],
    ) -> None:
        self.stop = asyncio.Event()
        self.hangup = asyncio.Event()
        self.is_orphan = False
        self._bridge = bridge
        self._load = load
        self._insist = insist

    async def follow(self, reader: asyncio.StreamReader) -> None:
        """Do what the supervisor says, and what signals do; for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reload(), name="reload")
            while (word := await hear(reader)) is not None:
                match word:
                    case Word.RELOAD:
                        self.hangup.set()
                    case Word.INSIST:
                        self._insist()
                    case _:
                        self.stop.set()
            self.is_orphan = True
            if not self.stop.is_set():
                log.error("worker.supervisor_gone")
                self.stop.set()

    async def _reload(self) -> None:
        while True:
            await self.hangup.wait()
            self.hangup.clear()
            try:
                await self._bridge.reload(self._load())
            except ConfigError as exc:
                log.error("settings.reload_refused", problems=exc.problems)  # noqa: TRY400 - no traceback


def _tidy(place: Workplace, *, is_orphan: bool) -> None:
    for path in (place.operator_socket, place.handover_socket):
        with suppress(OSError):
            os.unlink(path)  # noqa: PTH108 - a path as text
    if is_orphan:
        # The last of its workers tidies up behind it.
        with suppress(OSError):
            os.rmdir(place.folder)  # noqa: PTH106 - a path as text
