"""
Inboxes in one SQLite file: what was appended is on the disk, and there after a crash.

Three parts: the file (sqlite_file), a thread that writes and one that reads
(sqlite_worker, with sqlite_writing and sqlite_reading), and the tail of what is stored
and not indexed yet (sqlite_tail). This one is what the rest of the house sees; all of it
runs in the event loop and never waits for the disk itself.

A file that cannot be used at the start makes `open` fail with StoreUnavailableError; it
is called again until it can (see opening.py). One that cannot be used while the bridge
runs makes `append` fail with it, which the pump waits out, and a probe each second finds
out when it is mended. `problem` says why, at the start as well.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from time import time
from typing import Final, TypeVar

import structlog

from bridge.core.message import Message, Stored
from bridge.core.replay import InboxState, Page
from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox.contract import DiskUsage, EpochListener, Retention, StoredListener
from bridge.inbox.sqlite.admin_queries import SqliteAdminQueries
from bridge.inbox.sqlite.admin_reader import LookingDesk
from bridge.inbox.sqlite.file import StoreFile, disk_usage
from bridge.inbox.sqlite.reader import Reading
from bridge.inbox.sqlite.unindexed import ROUND_ENTRIES, Tail
from bridge.inbox.sqlite.worker_thread import Worker
from bridge.inbox.sqlite.writer import Writing

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Marks are written so long after the first of them, all that came meanwhile together.
_MARKS_S: Final = 0.5
_PROBE_S: Final = 1.0
_READ_S: Final = 30.0
# A thread that has been at one commit for so long is a disk that does not answer.
_STUCK_S: Final = 5.0
_NOT_OPEN: Final = "it is not open yet"


class SqliteInbox:
    """All users' inboxes in one file, which is held by one bridge at a time."""

    def __init__(
        self,
        path: str,
        retention: Retention,
        *,
        now: Callable[[], float] = time,
        round_entries: int = ROUND_ENTRIES,
    ) -> None:
        """
        Know where the file is, and touch nothing yet.

        Args:
            path: Of the file; its folder is there already.
            retention: How much is kept.
            now: Unix time.
            round_entries: How many messages wait to be indexed together, in memory.

        """
        self.retention = retention  # may be replaced while running
        self.description: Final = f"sqlite:{path}"
        self._path = Path(path)
        self._file = file = StoreFile(self._path, self.description)
        tail = Tail(round_entries=round_entries)
        self._writing = Writing(file, tail, retention=self._current, now=now)
        self._reading = Reading(file, tail, retention=self._current, now=now)
        self._writer = Worker(
            self._writing, name="inbox-writer", store=self.description
        )
        self._reader = Worker(
            self._reading, name="inbox-reader", store=self.description
        )
        desk = LookingDesk(file, tail, retention=self._current, now=now)
        self.admin = SqliteAdminQueries(self, desk)
        self.is_open = False
        self._unopened_for: str | None = _NOT_OPEN
        self._followed: set[str] = set()
        self._on_stored: StoredListener | None = None
        self._marks: dict[str, int] = {}
        self._marks_on_their_way: dict[str, int] = {}
        self._forgotten: set[bytes] = set()
        self._is_on_errands = False
        self._timer: asyncio.TimerHandle | None = None

    def _current(self) -> Retention:
        return self.retention

    @property
    def epoch(self) -> str:
        """The life of the file, as positions name it; empty before it is open."""
        return self._writing.epoch

    @property
    def problem(self) -> str | None:
        """What keeps the store from being written, as far as is known."""
        if self._unopened_for is not None:
            return self._unopened_for
        busy_s = self._writer.busy_s
        if busy_s > _STUCK_S:
            return f"the disk has not answered for {busy_s:.0f} s"
        return self._writing.problem

    # --- opening and closing

    async def exists(self) -> bool:
        """Return whether the file exists; errors as `open`."""
        try:
            return await asyncio.to_thread(self._file.look)
        except OSError as exc:
            raise self._file.error(exc) from exc

    async def open(self) -> None:
        """
        Take the file, making it if it is not there.

        Raises:
            ConfigError: If the setting is wrong: no such folder, a folder itself, a file
                of something else or of a newer version.
            StoreUnavailableError: If it cannot be had now: another bridge has it, it is
                locked, read-only or damaged, or the disk is full. May be called again.

        """
        try:
            await self._writer.start()
            try:
                await self._reader.start()
            except BaseException:
                await self._writer.stop()
                raise
        except (StoreUnavailableError, ConfigError) as exc:
            self._unopened_for = getattr(exc, "problem", str(exc))
            raise
        self._unopened_for = None
        self.is_open = True

    async def close(self) -> None:
        """Write what is left to write, and let go of the file."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        was_open, self.is_open = self.is_open, False
        marks = self._marks_on_their_way | self._marks
        if was_open and (marks or self._forgotten):
            with suppress(StoreUnavailableError):  # then some messages are repeated
                await self._writer.submit(
                    lambda c: self._writing.run_errands(c, marks, self._forgotten)
                )
        await self.admin.close()
        await self._reader.stop()
        await self._writer.stop()

    async def check(self) -> None:
        """
        Write something, and look at every page of the file.

        Takes about a second for each GB.

        Raises:
            StoreUnavailableError: If nothing can be stored now, or the file is damaged.

        """
        await self._write(self._writing.probe)
        finding = await self._reader.submit(self._reading.quick_check)
        if finding != "ok":
            raise self._file.damaged(finding)

    async def usage(self) -> DiskUsage:
        """Return what the store takes on its disk and what is left; errors as `read`."""
        try:
            return await self._read(lambda _: disk_usage(self._path))
        except OSError as exc:
            raise StoreUnavailableError(self.description, str(exc)) from exc

    # --- the live feed

    def subscribe(
        self,
        on_stored: StoredListener,
        on_epoch_changed: EpochListener | None = None,
    ) -> None:
        """Publish stored messages; the epoch never changes while the file is open."""
        del on_epoch_changed
        self._on_stored = on_stored

    async def follow(self, user: str) -> None:
        """Let the listener hear of `user`. What is stored after this returns, it hears."""
        self._followed.add(user)

    def unfollow(self, user: str) -> None:
        """Let the listener hear of `user` no more."""
        self._followed.discard(user)

    def _feed(self, messages: Sequence[Message], offsets: Sequence[int | None]) -> None:
        followed = self._followed
        if self._on_stored is None or not followed:
            return
        fresh = [
            Stored(message, offset)
            for message, offset in zip(messages, offsets, strict=True)
            if offset is not None and message.user in followed
        ]
        if fresh:
            self._on_stored(fresh)

    # --- writing

    async def append(self, messages: Sequence[Message]) -> list[int | None]:
        """
        Store `messages` in order, all or none; on the disk when it returns.

        It waits for as long as the disk needs: what the disk has begun cannot be taken
        back, and giving up would mean storing it again. `problem` tells of it.

        Returns:
            The offset of each; ``None`` for one whose id its user has had within the
            dedupe window.

        Raises:
            StoreUnavailableError: If the file cannot be written now; nothing was stored.

        Cancellation: the messages may or may not have been stored.

        """
        if not messages:
            return []
        return await self._write(
            lambda connection: self._writing.append(connection, messages),
            lambda offsets: self._feed(messages, offsets),
        )

    async def sweep(self) -> None:
        """
        Forget messages and ids that are too old, in pieces that let appends pass.

        If the store is away now, the next sweep does it.
        """
        with suppress(StoreUnavailableError):
            for sweep in (self._writing.sweep_waiting, self._writing.sweep_messages):
                while await self._write(sweep):
                    pass
            key: tuple[int, str] | None = (0, "")
            while key is not None:
                key = await self._write(partial(self._writing.sweep_ids, after=key))

    def _write(
        self,
        work: Callable[[Connection], T],
        then: Callable[[T], None] | None = None,
    ) -> "asyncio.Future[T]":
        future = self._writer.submit(work, then)
        future.add_done_callback(self._look_after)
        return future

    def _look_after(self, _: object) -> None:
        if self._writing.problem is not None:
            self._wake_in(_PROBE_S)

    # --- reading

    async def state(self, user: str) -> InboxState:
        """Return where the inbox of `user` begins and ends; errors as `read`."""
        mark = self.unwritten_mark(user)
        state = await self._read(
            lambda c: self._reading.state(c, user, epoch=self.epoch)
        )
        # The mark as it was or as it is: it may have been written since it was read.
        mark = min(max(mark, self.unwritten_mark(user), state.delivered), state.last)
        return replace(state, delivered=mark)

    async def read(
        self, user: str, *, after: int, max_messages: int, max_bytes: int
    ) -> Page:
        """
        Read on behind the offset `after`.

        At least one message comes if there is any, however large it is.

        Raises:
            StoreUnavailableError: If the file cannot be read now.

        """
        return await self._read(
            lambda connection: self._reading.read(
                connection,
                user,
                after=after,
                max_messages=max_messages,
                max_bytes=max_bytes,
            )
        )

    async def count_expired(self, user: str, *, after: int) -> int:
        """Count what is past its deadline behind the offset `after`; errors as `read`."""
        return await self._read(
            lambda c: self._reading.count_expired(c, user, after=after)
        )

    async def _read(self, work: Callable[[Connection], T]) -> T:
        try:
            async with asyncio.timeout(_READ_S):
                return await self._reader.submit(work)
        except TimeoutError as exc:
            problem = f"it was not read within {_READ_S:.0f} s"
            raise StoreUnavailableError(self.description, problem) from exc

    # --- errands: what is written without anybody waiting for it

    def mark_delivered(self, user: str, offset: int) -> None:
        """
        Move the delivered mark of `user` forward to `offset`; backwards is ignored.

        It counts at once and is written a little later: a crash takes up to a second
        of marks back.
        """
        if offset > self.unwritten_mark(user):
            self._marks[user] = offset
            self._wake_in(_MARKS_S)

    def unwritten_mark(self, user: str) -> int:
        """Return the mark of `user` as far as it is not in the file yet; else 0."""
        return max(self._marks.get(user, 0), self._marks_on_their_way.get(user, 0))

    async def note_trial(self, key: bytes) -> int:
        """
        Note that the message with this key is in hand alone; returns which trial this is.

        Raises:
            StoreUnavailableError: If the file cannot be written now.

        """
        is_first = key in self._forgotten
        self._forgotten.discard(key)
        return await self._write(
            lambda c: self._writing.note_trial(c, key, is_first=is_first)
        )

    def forget_trial(self, key: bytes) -> None:
        """Forget it: the message was settled, or the process lives."""
        self._forgotten.add(key)
        # At once, not with the next marks: dying before it is written would count as
        # one more death with the message in hand.
        if self.is_open and not self._is_on_errands:
            self._run_errands()

    def _wake_in(self, delay_s: float) -> None:
        if self._timer is None and self.is_open:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(delay_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        if self._is_on_errands:
            return  # when they are done, or not, the next ones follow
        if self._marks or self._forgotten:
            self._run_errands()
        elif self._writing.problem is not None:
            self._write(self._writing.probe)

    def _run_errands(self) -> None:
        self._is_on_errands = True
        marks, self._marks = self._marks, {}
        forgotten, self._forgotten = self._forgotten, set()
        self._marks_on_their_way = marks
        writing = self._write(
            lambda c: self._writing.run_errands(c, marks, forgotten),
        )
        writing.add_done_callback(partial(self._errands_done, marks, forgotten))

    def _errands_done(
        self,
        marks: dict[str, int],
        forgotten: set[bytes],
        writing: "asyncio.Future[None]",
    ) -> None:
        self._is_on_errands = False
        self._marks_on_their_way = {}
        error = writing.exception()
        if isinstance(error, StoreUnavailableError):
            self._marks = marks | self._marks
            self._forgotten |= forgotten
            self._wake_in(_PROBE_S)
        elif error is not None:  # a bug; some messages will be repeated for it
            log.error("inbox.errands_failed", exc_info=error)
        elif self._forgotten and self.is_open:
            self._run_errands()
        elif self._marks:
            self._wake_in(_MARKS_S)
