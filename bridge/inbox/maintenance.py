"""
Keeping a store: open it, however long that takes, and tidy up in it now and then.

Somebody else has the file locked, the disk is full or read-only, the file is damaged: a
bridge that ended for it would have to be started again by hand, and its windows would be
without a word meanwhile. So it waits, not ready, as it does when that happens later on.
"""

import asyncio
from contextlib import suppress
from typing import Final, Protocol

import structlog
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_random_exponential,
)

from bridge.errors import ConfigError, StoreUnavailableError

log = structlog.get_logger(__name__)

_PAUSE_FIRST_S: Final = 0.2
_PAUSE_MAX_S: Final = 3.0
_SWEEP_S: Final = 60.0


class Store(Protocol):
    """What is kept."""

    async def open(self) -> None:
        """Take it, or raise why not; may be called again then."""

    async def sweep(self) -> None:
        """Forget what is too old."""


class StoreKeeper:
    """Keeps one store for as long as `run` runs; whoever opened it closes it."""

    def __init__(self, store: Store, *, sweep_each_s: float = _SWEEP_S) -> None:
        self._store = store
        self._sweep_each_s = sweep_each_s
        self._was_tried = asyncio.Event()
        self._is_open = asyncio.Event()
        self._told = ""

    async def wait_for_first_try(self, *, at_most_s: float) -> None:
        """Wait until the store was tried once, whatever came of it, or time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._was_tried.wait()

    async def wait_until_open(self) -> None:
        """Wait until the store can be used, however long it takes."""
        await self._is_open.wait()

    async def run(self) -> None:
        """
        Open the store and sweep in it, until cancelled.

        Raises:
            ConfigError: If the setting is wrong at the first try: no waiting mends that.
                Later on it is waited for like the rest: it was right, and somebody is at
                work there.

        Cancellation: the store is open or not; closing it is safe in both cases.
        """
        try:
            await self._store.open()
        except StoreUnavailableError as exc:
            self._tell(str(exc))
            self._was_tried.set()
            await self._open_patiently()
        self._was_tried.set()
        self._is_open.set()
        while True:
            await asyncio.sleep(self._sweep_each_s)
            await self._sweep()

    async def _open_patiently(self) -> None:
        """Try again with pauses of up to three seconds, the whole of them random."""
        await AsyncRetrying(
            retry=retry_if_exception_type((StoreUnavailableError, ConfigError)),
            wait=wait_random_exponential(_PAUSE_FIRST_S, _PAUSE_MAX_S),
            before_sleep=self._tell_failure,
        )(self._store.open)
        log.info("inbox.goes_on")

    def _tell_failure(self, state: RetryCallState) -> None:
        self._tell(str(state.outcome.exception() if state.outcome else None))

    def _tell(self, problem: str) -> None:
        """Log what is the matter, once and not with each try."""
        if problem != self._told:
            self._told = problem
            log.warning("inbox.waiting", problem=problem)

    async def _sweep(self) -> None:
        try:
            await self._store.sweep()
        except Exception:
            # A bug in tidying up must not stop the carrying. Readers go by the rules
            # themselves, so what stays only takes up room.
            log.exception("inbox.sweep_failed")
