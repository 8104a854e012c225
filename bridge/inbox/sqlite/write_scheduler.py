"""
When writes are made: at once for callers that wait, grouped in the background for others.

Delivered marks and deletions of trials have no caller that waits for them. While the store
cannot be written, the scheduler also probes it once a second, so that `problem` ends soon
after its cause does.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from sqlite3 import Connection
from typing import Final, TypeVar

import structlog

from bridge.errors import StoreUnavailableError
from bridge.inbox.sqlite.database_thread import DatabaseThread
from bridge.inbox.sqlite.writer import SqliteWriter

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Marks are written this long after the first of them, together with all later ones.
_MARKS_DELAY_S: Final = 0.5
_PROBE_DELAY_S: Final = 1.0


class WriteScheduler:
    """Submits writes to the writer's thread. All methods are called in the event loop."""

    def __init__(self, writer: SqliteWriter, thread: DatabaseThread) -> None:
        self._writer = writer
        self._thread = thread
        self._is_open = False
        self._marks: dict[str, int] = {}
        self._marks_in_flight: dict[str, int] = {}
        self._ended_trials: set[bytes] = set()
        self._is_writing = False
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Allow background writes: the thread is running."""
        self._is_open = True

    async def close(self) -> None:
        """Write the pending marks and trials, while the thread is still running."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        was_open, self._is_open = self._is_open, False
        marks = self._marks_in_flight | self._marks
        if was_open and (marks or self._ended_trials):
            # If this fails, some messages are delivered twice.
            with suppress(StoreUnavailableError):
                await self._thread.submit(
                    lambda c: self._writer.write_background(
                        c, marks, self._ended_trials
                    )
                )

    def submit(
        self,
        work: Callable[[Connection], T],
        then: Callable[[T], None] | None = None,
    ) -> "asyncio.Future[T]":
        """Run a write in the writer's thread; see `DatabaseThread.submit`."""
        future = self._thread.submit(work, then)
        future.add_done_callback(self._after_write)
        return future

    def mark_delivered(self, user: str, offset: int) -> None:
        """Move the delivered mark of `user` forward to `offset`, in the background."""
        if offset > self.unwritten_mark(user):
            self._marks[user] = offset
            if self._writer.receipts.note_mark(user, offset):
                self._write_urgent()
            else:
                self._wake_in(_MARKS_DELAY_S)

    def unwritten_mark(self, user: str) -> int:
        """Return the mark of `user` that is not in the file yet; 0 if there is none."""
        return max(self._marks.get(user, 0), self._marks_in_flight.get(user, 0))

    async def note_trials(self, keys: Sequence[bytes]) -> list[int]:
        """Record trials and return their numbers; see `InboxWriter.note_trials`."""
        ended = self._ended_trials.intersection(keys)
        self._ended_trials -= ended
        return await self.submit(
            lambda c: [
                self._writer.note_trial(c, key, is_first=key in ended) for key in keys
            ]
        )

    def forget_trial(self, key: bytes) -> None:
        """Delete the record of a trial in the background."""
        self._ended_trials.add(key)
        # Without the delay of marks: if the process died before the deletion was written,
        # the message would count as the cause of one more crash.
        self._write_urgent()

    def _write_urgent(self) -> None:
        if self._is_open and not self._is_writing:
            self._write_background()

    def _after_write(self, _: object) -> None:
        self._writer.receipts.notify()
        if self._writer.problem is not None:
            self._wake_in(_PROBE_DELAY_S)

    def _wake_in(self, delay_s: float) -> None:
        if self._timer is None and self._is_open:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(delay_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        if self._is_writing:
            return  # its end starts the next write or the timer
        if self._marks or self._ended_trials:
            self._write_background()
        elif self._writer.problem is not None:
            self.submit(self._writer.probe)

    def _write_background(self) -> None:
        self._is_writing = True
        marks, self._marks = self._marks, {}
        ended_trials, self._ended_trials = self._ended_trials, set()
        self._marks_in_flight = marks
        future = self.submit(
            lambda c: self._writer.write_background(c, marks, ended_trials)
        )
        future.add_done_callback(partial(self._written, marks, ended_trials))

    def _written(
        self,
        marks: dict[str, int],
        ended_trials: set[bytes],
        future: "asyncio.Future[None]",
    ) -> None:
        self._is_writing = False
        self._marks_in_flight = {}
        error = future.exception()
        if isinstance(error, StoreUnavailableError):
            self._marks = marks | self._marks
            self._ended_trials |= ended_trials
            self._wake_in(_PROBE_DELAY_S)
        elif error is not None:  # a bug: the marks are dropped, so messages repeat
            log.error("inbox.background_write_failed", exc_info=error)
        elif self._ended_trials or self._writer.receipts.has_marks:
            self._write_urgent()
        elif self._marks:
            self._wake_in(_MARKS_DELAY_S)
