"""
Ends the suite when a phase takes longer than its limit, whatever hangs.

It is a thread, because the event loop itself may hang. It exits by `os._exit`, because an
orderly exit waits for threads and tasks, which may be what hangs.
"""

import asyncio
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Final

from tests.processes import family_of

EXIT_CODE: Final = 2
_POLL_S: Final = 0.2


class Watchdog:
    """
    A deadline that each phase of a run replaces.

    Args:
        report: Receives the lines about what hangs.
        end_process: Ends the process and its children; tests pass their own.

    """

    def __init__(
        self,
        report: Callable[[str], None],
        *,
        end_process: Callable[[int], object] | None = None,
    ) -> None:
        self._report = report
        self._end_process = end_process or end_with_children
        self._loop: asyncio.AbstractEventLoop | None = None
        self._phase: tuple[str, float, float] | None = None  # name, limit, deadline
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch the phases of a run in `loop`, until `stop`."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()

    def phase(self, name: str, *, within_s: float) -> None:
        """Begin the phase `name`, which ends the one before it."""
        self._phase = (name, within_s, monotonic() + within_s)

    def _watch(self) -> None:
        while not self._stopped.wait(_POLL_S):
            phase = self._phase
            if phase is not None and monotonic() > phase[2]:
                self.end_now(f"{phase[0]} did not end within {phase[1]:g} s")
                return

    def end_now(self, reason: str) -> None:
        """Report what all threads and tasks wait for, kill all children, and exit."""
        self._report(f"HANG: {reason}")
        if self._loop is not None:
            with suppress(RuntimeError):  # the set of tasks changed meanwhile
                for task in asyncio.all_tasks(self._loop):
                    self._report(f"  {task!r}")
        with suppress(ValueError, OSError):  # stderr is no file, in tests
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        self._end_process(EXIT_CODE)


def end_with_children(code: int) -> None:
    """Kill all children and exit with `code`, at once."""
    for pid in reversed(family_of(os.getpid())[1:]):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os._exit(code)
