"""
A thread that owns one connection to SQLite and runs the calls of the event loop on it.

SQLite's functions block while they wait for the disk. Here they block a thread instead of
the loop: a call is submitted with `submit`, and its result returns to the loop in the
order of the calls.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from sqlite3 import Connection
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

from bridge.errors import StoreUnavailableError

T = TypeVar("T")

_GROUP_MAX: Final = 64
_CHECK_INTERVAL_S: Final = 1.0


class DatabaseCall(Generic[T]):
    """
    One call on the connection, with a future for its result.

    `then` is called in the loop with the result, even if the future was cancelled while
    the call was running.
    """

    def __init__(
        self,
        work: Callable[[Connection], T],
        then: Callable[[T], None] | None = None,
    ) -> None:
        self.work = work
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        # Retrieve the exception, so asyncio logs nothing if the future is not awaited:
        # the store reports the failure as its `problem`.
        self.future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._then = then

    def finish(self, result: T) -> None:
        """Return `result` to the loop. Called in the thread."""
        self._call_in_loop(self._finish, result)

    def fail(self, error: BaseException) -> None:
        """Raise `error` in the loop. Called in the thread."""
        self._call_in_loop(self._fail, error)

    def _call_in_loop(self, function: Callable[[Any], None], argument: object) -> None:
        with suppress(RuntimeError):  # the loop is closed, so no caller is left
            self.future.get_loop().call_soon_threadsafe(function, argument)

    def _finish(self, result: T) -> None:
        # Resolve the future before `then`: its waiter wakes in the next iteration of the
        # loop, so after `then`; and an error in `then` does not leave it waiting.
        if not self.future.done():
            self.future.set_result(result)
        if self._then is not None:
            self._then(result)

    def _fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class CallRunner(Protocol):
    """Opens the connection of a thread and runs calls on it; used in that thread only."""

    def open_connection(self) -> Connection:
        """Open the connection."""

    def run(self, connection: Connection, calls: Sequence[DatabaseCall[Any]]) -> None:
        """Run `calls` in order and finish or fail each of them. Never raises."""

    def close_connection(self, connection: Connection) -> None:
        """Close the connection."""


class DatabaseThread:
    """
    The thread; its methods are called in the event loop.

    The queue needs no bound: each caller waits for its call before it submits another.
    """

    def __init__(self, runner: CallRunner, *, name: str, store: str) -> None:
        self._runner = runner
        self._name = name
        self._store = store
        self._queue: queue.SimpleQueue[DatabaseCall[Any] | None] | None = None
        self._ended: DatabaseCall[None] | None = None
        self._busy_since_s: float | None = None

    @property
    def is_running(self) -> bool:
        """Whether calls can be submitted."""
        return self._queue is not None

    @property
    def busy_s(self) -> float:
        """For how long the current calls have been running; 0 if the thread is idle."""
        since_s = self._busy_since_s
        return 0.0 if since_s is None else monotonic() - since_s

    async def start(self) -> None:
        """
        Start the thread and wait until it has opened its connection.

        Raises:
            StoreUnavailableError: If the connection cannot be opened. The thread has
                ended.

        Cancellation: the thread ends as soon as the connection is open.

        """
        self._queue = queue.SimpleQueue()
        self._ended = DatabaseCall(_do_nothing)
        opened = DatabaseCall(_do_nothing)
        threading.Thread(
            target=self._main,
            args=(self._queue, opened, self._ended),
            name=self._name,
            # A disk that hangs must not keep the process alive; the file survives a crash.
            daemon=True,
        ).start()
        try:
            await opened.future
        except BaseException:
            self._queue.put(None)
            self._queue = None
            raise

    async def stop(self) -> None:
        """Finish the submitted calls, close the connection and end the thread."""
        if self._queue is not None and self._ended is not None:
            self._queue.put(None)
            self._queue = None
            await self._ended.future

    def submit(
        self,
        work: Callable[[Connection], T],
        then: Callable[[T], None] | None = None,
    ) -> asyncio.Future[T]:
        """
        Call `work` in the thread, then `then` in the loop with the result.

        Cancelling the future before the thread has started the call withdraws the call.

        Raises:
            StoreUnavailableError: If the thread is not running.

        """
        if self._queue is None:
            raise StoreUnavailableError(self._store, "it is not open")
        call = DatabaseCall(work, then)
        self._queue.put(call)
        return call.future

    # --- in the thread

    def _main(
        self,
        calls: "queue.SimpleQueue[DatabaseCall[Any] | None]",
        opened: DatabaseCall[None],
        ended: DatabaseCall[None],
    ) -> None:
        try:
            connection = self._runner.open_connection()
        except BaseException as exc:  # noqa: BLE001 - raised by `start`
            opened.fail(exc)
            return
        opened.finish(None)
        is_open = True
        while is_open:
            group, is_open = _next_group(calls)
            self._busy_since_s = monotonic()
            if group:
                self._runner.run(connection, group)
            self._busy_since_s = None
        try:
            self._runner.close_connection(connection)
        finally:
            ended.finish(None)


def _next_group(
    calls: "queue.SimpleQueue[DatabaseCall[Any] | None]",
) -> tuple[Sequence[DatabaseCall[Any]], bool]:
    """Wait for a call and take the queued ones with it; return whether to continue."""
    group: list[DatabaseCall[Any]] = []
    try:
        call = calls.get(timeout=_CHECK_INTERVAL_S)
    except queue.Empty:
        # A program that ends without closing the store must not wait for this thread.
        return (), threading.main_thread().is_alive()
    while call is not None:
        if not call.future.cancelled():
            group.append(call)
        if len(group) >= _GROUP_MAX or calls.empty():
            return group, True
        call = calls.get()
    return group, False


def _do_nothing(_: Connection) -> None:
    """Serve as the work of calls that only signal an event."""
