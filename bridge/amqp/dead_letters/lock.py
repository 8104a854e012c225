"""One visit to the dead letter queue at a time, and what it holds meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from bridge.amqp.connection import BrokerAddress
from bridge.amqp.dead_letters.browser import LetterSession, ReturnedLine, visit
from bridge.errors import BrokerUnavailableError

# How long a request waits for a job, or another request, to let go of the queue.
_TURN_WITHIN_S: Final = 15.0


class LetterTurns:
    """Who may visit the queue now."""

    def __init__(self, address: BrokerAddress, queue: str) -> None:
        self._address = address
        self._queue = queue
        self._line = ReturnedLine()
        self._turn = asyncio.Lock()
        self._session: LetterSession | None = None

    @property
    def is_taken(self) -> bool:
        """Whether somebody has the turn."""
        return self._turn.locked()

    @property
    def standing(self) -> int | None:
        """How many letters there are while a visit is open; ``None`` if none is."""
        session = self._session
        return None if session is None else session.depth - session.acked

    @asynccontextmanager
    async def visit(self, *, is_patient: bool = False) -> AsyncIterator[LetterSession]:
        """Take the turn and open a visit. Errors as `take` and `open`."""
        async with self.take(is_patient=is_patient), self.open() as session:
            yield session

    @asynccontextmanager
    async def open(self) -> AsyncIterator[LetterSession]:
        """
        Open a visit; the caller has the turn.

        Raises:
            BrokerUnavailableError: If the broker is away or too slow.

        Cancellation:
            Safe; the letters go back.

        """
        try:
            async with visit(self._address, self._queue, self._line) as session:
                self._session = session
                yield session
        finally:
            self._session = None

    @asynccontextmanager
    async def take(self, *, is_patient: bool = False) -> AsyncIterator[None]:
        """
        Wait until nobody else is there, and keep them away.

        Args:
            is_patient: Wait for as long as it takes.

        Raises:
            BrokerUnavailableError: If others stay for too long.

        """
        try:
            async with asyncio.timeout(None if is_patient else _TURN_WITHIN_S):
                await self._turn.acquire()
        except TimeoutError as exc:
            raise BrokerUnavailableError(
                f"look at {self._queue}", "others work on the dead letters now"
            ) from exc
        try:
            yield
        finally:
            self._turn.release()
