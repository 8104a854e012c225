"""
Opening a store, however long that takes, and sweeping it once a minute.

A store may be unusable at the start: another process has locked the file, the disk is
full, the server is down. If the bridge exited, an operator would have to start it again
and clients would get no answer meanwhile. So it waits and reports that it is not ready,
as it does when a store becomes unusable later.
"""

import asyncio
from contextlib import suppress
from typing import Final

import structlog
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_random_exponential,
)

from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox.contract import Inbox

log = structlog.get_logger(__name__)

_PAUSE_FIRST_S: Final = 0.2
_PAUSE_MAX_S: Final = 3.0
_SWEEP_INTERVAL_S: Final = 60.0


class InboxMaintenance:
    """Opens one store and sweeps it while `run` runs; the caller closes the store."""

    def __init__(
        self,
        inbox: Inbox,
        *,
        sweep_interval_s: float = _SWEEP_INTERVAL_S,
        pause_max_s: float = _PAUSE_MAX_S,
    ) -> None:
        self._inbox = inbox
        self._sweep_interval_s = sweep_interval_s
        self._pause_max_s = pause_max_s
        self._was_tried = asyncio.Event()
        self._is_open = asyncio.Event()
        self._logged_problem = ""

    async def wait_for_first_try(self, *, at_most_s: float) -> None:
        """Wait until the first attempt to open the store has ended, or time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._was_tried.wait()

    async def wait_until_open(self) -> None:
        """Wait until the store is open, without a limit."""
        await self._is_open.wait()

    async def run(self) -> None:
        """
        Open the store, then sweep it at intervals, until cancelled.

        Raises:
            ConfigError: If the first attempt finds that the setting is wrong. Later
                attempts retry this error too: the setting was right at the start, so an
                operator is probably moving files.

        Cancellation: the store may or may not be open; it can be closed in both cases.

        """
        try:
            await self._inbox.open()
        except StoreUnavailableError as exc:
            self._log_problem(str(exc))
            self._was_tried.set()
            await self._retry_open()
        self._was_tried.set()
        self._is_open.set()
        while True:
            await asyncio.sleep(self._sweep_interval_s)
            await self._sweep()

    async def _retry_open(self) -> None:
        await AsyncRetrying(
            retry=retry_if_exception_type((StoreUnavailableError, ConfigError)),
            wait=wait_random_exponential(_PAUSE_FIRST_S, self._pause_max_s),
            before_sleep=self._log_failure,
        )(self._inbox.open)
        log.info("inbox.opened")

    def _log_failure(self, state: RetryCallState) -> None:
        self._log_problem(str(state.outcome.exception() if state.outcome else None))

    def _log_problem(self, problem: str) -> None:
        """Log a problem when it changes, not at every attempt."""
        if problem != self._logged_problem:
            self._logged_problem = problem
            log.warning("inbox.unavailable", problem=problem)

    async def _sweep(self) -> None:
        try:
            await self._inbox.sweep()
        except Exception:
            # A bug in the sweep must not stop the delivery of messages. Reads apply the
            # retention themselves, so messages that stay only use space.
            log.exception("inbox.sweep_failed")
