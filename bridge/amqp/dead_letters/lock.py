"""The lock on the dead-letter queue: one browse session at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from bridge.amqp.connection import BrokerAddress
from bridge.amqp.dead_letters.browser import BrowseSession, ReturnedHead, open_session
from bridge.errors import BrokerUnavailableError

# How long a request waits for a job or another request to release the queue.
_LOCK_WITHIN_S: Final = 15.0


class DeadLetterLock:
    """Serializes access to the queue; two sessions at once would mix up its order."""

    def __init__(self, address: BrokerAddress, queue: str) -> None:
        self._address = address
        self._queue = queue
        self._returned = ReturnedHead()
        self._lock = asyncio.Lock()
        self._session: BrowseSession | None = None

    @property
    def is_held(self) -> bool:
        """Whether an operation is using the queue."""
        return self._lock.locked()

    @property
    def depth(self) -> int | None:
        """How many dead letters there are while a session is open; ``None`` otherwise."""
        session = self._session
        return None if session is None else session.depth - session.acked

    @asynccontextmanager
    async def session(
        self, *, within_s: float | None = _LOCK_WITHIN_S
    ) -> AsyncIterator[BrowseSession]:
        """Hold the lock and open a session. Errors as `hold` and `open`."""
        async with self.hold(within_s=within_s), self.open() as session:
            yield session

    @asynccontextmanager
    async def open(self) -> AsyncIterator[BrowseSession]:
        """
        Open a session; the caller holds the lock.

        Raises:
            BrokerUnavailableError: If the broker is unreachable or too slow.

        Cancellation:
            Safe; the messages return to the queue.

        """
        try:
            async with open_session(
                self._address, self._queue, self._returned
            ) as session:
                self._session = session
                yield session
        finally:
            self._session = None

    @asynccontextmanager
    async def hold(
        self, *, within_s: float | None = _LOCK_WITHIN_S
    ) -> AsyncIterator[None]:
        """
        Wait for the lock and hold it.

        Args:
            within_s: The longest wait; ``None`` = without a limit.

        Raises:
            BrokerUnavailableError: If the lock was not released in time.

        """
        try:
            async with asyncio.timeout(within_s):
                await self._lock.acquire()
        except TimeoutError as exc:
            raise BrokerUnavailableError(
                f"browse {self._queue}", "another operation is using the dead letters"
            ) from exc
        try:
            yield
        finally:
            self._lock.release()
