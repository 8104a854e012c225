"""The worker process: runs a bridge until the supervisor stops it or disappears."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

import structlog

from bridge.app import Bridge
from bridge.core.worker_slot import WorkerSlot
from bridge.http.listeners import Listening
from bridge.settings.model import Settings
from bridge.workers.control_channel import ControlMessage, receive

log = structlog.get_logger(__name__)


async def run_worker(
    bridge: Bridge, slot: WorkerSlot, *, control_fd: int, load: Callable[[], Settings]
) -> None:
    """
    Run `bridge` until it is stopped.

    SIGTERM and SIGINT drain, and a repeated one has no effect: a service manager sends
    signals to every process of the bridge, in addition to the supervisor's message.

    Args:
        bridge: Built for `slot`.
        slot: Its sockets are removed at the end.
        control_fd: File descriptor of the worker's end of the control channel.
        load: Reads the settings again.

    Raises:
        BridgeError, OSError: As `Bridge.run`.

    Cancellation:
        Stops without draining; no acked message is lost.

    """
    own_end = socket.socket(fileno=control_fd)
    reader, writer = await asyncio.open_connection(sock=own_end)
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine always runs in a task
    control = _Control(bridge, load, stop_now=task.cancel)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, control.stop.set)
    loop.add_signal_handler(signal.SIGHUP, control.hangup.set)

    def on_listening(_listening: Listening) -> None:
        writer.write(ControlMessage.LISTENING.value)

    try:
        await bridge.run(
            control.stop, on_listening=on_listening, beside=control.follow(reader)
        )
    finally:
        writer.close()
        _remove_sockets(slot, is_orphan=control.is_orphan)


class _Control:
    """Carries out the messages of the supervisor, and SIGHUP."""

    def __init__(
        self,
        bridge: Bridge,
        load: Callable[[], Settings],
        *,
        stop_now: Callable[[], object],
    ) -> None:
        self.stop = asyncio.Event()
        self.hangup = asyncio.Event()
        self.is_orphan = False
        self._bridge = bridge
        self._load = load
        self._stop_now = stop_now

    async def follow(self, reader: asyncio.StreamReader) -> None:
        """Carry out messages until canceled."""
        async with asyncio.TaskGroup() as tasks:
            reload = self._bridge.reload_on(self.hangup, self._load)
            tasks.create_task(reload, name="reload")
            while (message := await receive(reader)) is not None:
                match message:
                    case ControlMessage.RELOAD:
                        self.hangup.set()
                    case ControlMessage.STOP_NOW:
                        self._stop_now()
                    case _:
                        self.stop.set()
            self.is_orphan = True
            if not self.stop.is_set():
                log.error("worker.supervisor_gone")
                self.stop.set()


def _remove_sockets(slot: WorkerSlot, *, is_orphan: bool) -> None:
    for path in (slot.operator_socket, slot.handover_socket):
        with suppress(OSError):
            os.unlink(path)  # noqa: PTH108 - the path is a str
    if is_orphan:
        # The supervisor cannot remove the folder any more; the last orphan does.
        with suppress(OSError):
            os.rmdir(slot.folder)  # noqa: PTH106 - the path is a str
