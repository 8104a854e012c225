"""Signals of a running bridge: SIGTERM and SIGINT drain, a second one cancels, SIGHUP reloads."""

import asyncio
import signal
from collections.abc import Callable

from bridge.app import Bridge
from bridge.child_reaper import reap_adopted_children
from bridge.http.listeners import Listening
from bridge.settings.model import Settings


async def run_until_signalled(
    bridge: Bridge,
    *,
    load: Callable[[], Settings],
    on_listening: Callable[[Listening], None],
) -> None:
    """
    Run `bridge` until SIGTERM or SIGINT: the first one drains, the second one cancels.

    SIGHUP calls `load` and reloads the bridge. The errors are those of `Bridge.run`.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    hangup = asyncio.Event()
    main = asyncio.current_task()

    def drain_or_cancel() -> None:
        if stop.is_set() and main is not None:
            main.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, drain_or_cancel)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)

    async def reload_and_reap() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(bridge.reload_on(hangup, load), name="reload")
            tasks.create_task(reap_adopted_children(), name="reap")

    await bridge.run(stop, on_listening=on_listening, beside=reload_and_reap())
