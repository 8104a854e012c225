"""
A thread that owns a connection to SQLite, and does what the event loop asks of it.

SQLite's calls wait for the disk. Here they wait without the loop: work goes in through
`submit`, and its result comes back as a call in the loop, in the order of the work.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

from bridge.errors import StoreUnavailableError

T = TypeVar("T")

_GROUP_JOBS: Final = 64
_LOOK_EACH_S: Final = 1.0


class Job(Generic[T]):
    """
    One piece of work: done in the thread, its result handed over in the loop.

    `then` is called with the result even if nobody waits for it any more.
    """

    def __init__(
        self,
        work: Callable[[sqlite3.Connection], T],
        then: Callable[[T], None] | None = None,
    ) -> None:
        self.work = work
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        # Nobody may wait for it: its failure is then told by `problem`, not by asyncio.
        self.future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._then = then

    def finish(self, result: T) -> None:
        """Hand over the result; in the thread."""
        self._call(self._finish, result)

    def fail(self, error: BaseException) -> None:
        """Hand over why there is none; in the thread."""
        self._call(self._fail, error)

    def _call(self, function: Callable[[Any], None], argument: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self.future.get_loop().call_soon_threadsafe(function, argument)

    def _finish(self, result: T) -> None:
        # The future first: it wakes its waiter in the next turn of the loop, and so
        # after `then`, and whatever `then` raises, the waiter is not left waiting.
        if not self.future.done():
            self.future.set_result(result)
        if self._then is not None:
            self._then(result)

    def _fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Desk(Protocol):
    """What a worker's thread does; called in that thread alone."""

    def enter(self) -> sqlite3.Connection:
        """Open the connection."""

    def run(self, connection: sqlite3.Connection, jobs: Sequence[Job[Any]]) -> None:
        """Do `jobs` in order and finish or fail each. Never raises."""

    def leave(self, connection: sqlite3.Connection) -> None:
        """Close the connection."""


class Worker:
    """
    The thread at a desk.

    All methods are for the event loop. What waits is bounded by those who wait for it:
    each has one piece of work at a time.
    """

    def __init__(self, desk: Desk, *, name: str, store: str) -> None:
        self._desk = desk
        self._name = name
        self._store = store
        self._queue: queue.SimpleQueue[Job[Any] | None] | None = None
        self._ended: Job[None] | None = None
        self._busy_since: float | None = None

    @property
    def busy_s(self) -> float:
        """How long the thread has been at what it does now; 0 = it waits for work."""
        since = self._busy_since
        return 0.0 if since is None else monotonic() - since

    async def start(self) -> None:
        """
        Start the thread and wait until it has its connection.

        Raises:
            StoreUnavailableError: If it cannot be opened; the thread has ended then.

        Cancellation: the thread is told to end.

        """
        self._queue = queue.SimpleQueue()
        self._ended = Job(_nothing)
        opened = Job(_nothing)
        threading.Thread(
            target=self._main,
            args=(self._queue, opened, self._ended),
            name=self._name,
            # A disk that hangs must not keep the process: the file survives a crash.
            daemon=True,
        ).start()
        try:
            await opened.future
        except BaseException:
            self._queue.put(None)
            self._queue = None
            raise

    async def stop(self) -> None:
        """Do what was submitted, close the connection and end the thread."""
        if self._queue is not None and self._ended is not None:
            self._queue.put(None)
            self._queue = None
            await self._ended.future

    def submit(
        self,
        work: Callable[[sqlite3.Connection], T],
        then: Callable[[T], None] | None = None,
    ) -> asyncio.Future[T]:
        """
        Let the thread call `work`, and the loop call `then` with what it returned.

        A future that is cancelled before the thread has come to it takes the work back.

        Raises:
            StoreUnavailableError: If the worker has not been started or was stopped.

        """
        if self._queue is None:
            raise StoreUnavailableError(self._store, "it is not open")
        job = Job(work, then)
        self._queue.put(job)
        return job.future

    # --- in the thread

    def _main(
        self,
        jobs: "queue.SimpleQueue[Job[Any] | None]",
        opened: Job[None],
        ended: Job[None],
    ) -> None:
        try:
            connection = self._desk.enter()
        except BaseException as exc:  # noqa: BLE001 - raised where the start is awaited
            opened.fail(exc)
            return
        opened.finish(None)
        is_open = True
        while is_open:
            group, is_open = _take(jobs)
            self._busy_since = monotonic()
            if group:
                self._desk.run(connection, group)
            self._busy_since = None
        try:
            self._desk.leave(connection)
        finally:
            ended.finish(None)


def _take(
    jobs: "queue.SimpleQueue[Job[Any] | None]",
) -> tuple[Sequence[Job[Any]], bool]:
    """Wait for a job, take those that wait with it, and say whether more may come."""
    group: list[Job[Any]] = []
    try:
        job = jobs.get(timeout=_LOOK_EACH_S)
    except queue.Empty:
        # A program that ends without closing the store waits for its threads.
        return (), threading.main_thread().is_alive()
    while job is not None:
        if not job.future.cancelled():
            group.append(job)
        if len(group) >= _GROUP_JOBS or jobs.empty():
            return group, True
        job = jobs.get()
    return group, False


def _nothing(_: sqlite3.Connection) -> None:
    """Jobs that only tell that something happened."""
