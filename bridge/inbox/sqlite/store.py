"""
Inboxes in one SQLite file: an appended message is on the disk and survives a crash.

The store runs in the event loop and never waits for the disk itself. One thread writes and
one reads (`database_thread`, with `writer` and `reader`); a third one runs the queries of
operators when they are used. `file` locks and opens the file, and `unindexed` holds what is
stored but not indexed yet.

If the file cannot be used at the start, `open` fails with StoreUnavailableError and is
called again until it succeeds (see inbox/maintenance.py). If the file cannot be used while
the bridge runs, `append` fails with the same error, and the pipeline retries. `problem`
gives the reason in both cases.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import Final, TypeVar

from bridge.clock import SteadyClock
from bridge.core.identity import Identity
from bridge.core.message import Message, Stored
from bridge.core.receipts import WorkerEvent
from bridge.core.replay import InboxPage, InboxState
from bridge.core.revocation import Revocation, RevocationIndex
from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox.contract import (
    EVENT_BYTES,
    AnnouncedListener,
    DiskUsage,
    EpochListener,
    Retention,
    RevokedListener,
    StoredListener,
)
from bridge.inbox.sqlite.admin_queries import AdminReader, SqliteAdminQueries
from bridge.inbox.sqlite.database_thread import DatabaseThread
from bridge.inbox.sqlite.file import StoreFile, disk_usage
from bridge.inbox.sqlite.presence import SqlitePresence
from bridge.inbox.sqlite.reader import SqliteReader
from bridge.inbox.sqlite.receipts import read_events
from bridge.inbox.sqlite.unindexed import ROUND_ENTRIES, UnindexedTail
from bridge.inbox.sqlite.write_scheduler import WriteScheduler
from bridge.inbox.sqlite.writer import SqliteWriter

T = TypeVar("T")

_NOT_OPEN: Final = "it is not open yet"
# Each checks 500 users.
_FORGET_STEPS: Final = 100
# Each decides about 500 receipts. Later ones wait until events were published.
_DUE_STEPS: Final = 4


class SqliteInbox:
    """The inboxes of all users in one file, which one bridge can open at a time."""

    def __init__(
        self,
        path: str,
        retention: Retention,
        *,
        clock: SteadyClock | None = None,
        round_entries: int = ROUND_ENTRIES,
        read_timeout_s: float = 30.0,
        stuck_s: float = 5.0,
        search_s: float = 5.0,
    ) -> None:
        """
        Prepare a store without touching the file.

        Args:
            path: Of the file, in an existing folder.
            retention: How much is kept.
            clock: Measures the age of messages.
            round_entries: How many messages are collected in memory before they are
                indexed together.
            read_timeout_s: After this time a read fails.
            stuck_s: A commit that takes this long is reported as a problem.
            search_s: After this time a search through all users or events stops.

        """
        self.retention = retention
        self.description: Final = f"sqlite:{path}"
        self._path = Path(path)
        self._read_timeout_s = read_timeout_s
        self._stuck_s = stuck_s
        self._file = file = StoreFile(self._path, self.description)
        tail = UnindexedTail(round_entries=round_entries)
        retention_now = self._current_retention
        self._clock = clock = clock or SteadyClock()
        self._revocations = RevocationIndex()
        self._writer = SqliteWriter(file, tail, retention=retention_now, clock=clock)
        self._reader = SqliteReader(file, tail, retention=retention_now, clock=clock)
        self._writer_thread = DatabaseThread(
            self._writer, name="inbox-writer", store=self.description
        )
        self._reader_thread = DatabaseThread(
            self._reader, name="inbox-reader", store=self.description
        )
        self._writes = WriteScheduler(self._writer, self._writer_thread)
        self._presence = SqlitePresence(self._writes, self._writer.receipts, clock)
        self.admin: Final = SqliteAdminQueries(
            AdminReader(file, tail, retention=retention_now, clock=clock),
            self._writes,
            store=self.description,
            search_s=search_s,
        )
        self._unopened_for: str | None = _NOT_OPEN
        self._followed: set[str] = set()
        self._forget_after = 0
        self._on_stored: StoredListener | None = None
        self._on_announced: AnnouncedListener | None = None
        self._on_epoch_changed: EpochListener | None = None

    def _current_retention(self) -> Retention:
        return self.retention

    @property
    def epoch(self) -> str:
        """The epoch of the file; empty before it is open."""
        return self._file.epoch

    @property
    def trimmed(self) -> int:
        """Messages that were deleted because their inbox was full."""
        return self._writer.trimmed

    @property
    def problem(self) -> str | None:
        """Why the file cannot be written now; ``None`` if no problem is known."""
        if self._unopened_for is not None:
            return self._unopened_for
        busy_s = self._writer_thread.busy_s
        if busy_s > self._stuck_s:
            return f"the disk has not answered for {busy_s:.0f} s"
        return self._writer.problem

    # --- opening and closing

    async def exists(self) -> bool:
        """Return whether the file exists; errors as `open`."""
        try:
            return await asyncio.to_thread(self._file.exists)
        except OSError as exc:
            raise self._file.translate(exc) from exc

    async def open(self) -> None:
        """
        Lock and open the file, creating it if it does not exist.

        Raises:
            ConfigError: If the setting is wrong: the folder does not exist, the path is a
                folder, or the file belongs to another program or a newer version.
            StoreUnavailableError: If the file cannot be opened now: another bridge has it
                open, it is locked, read-only or damaged, or the disk is full. The call
                may be repeated.

        """
        try:
            await self._writer_thread.start()
            try:
                # Before anything can be read: no window is admitted unchecked.
                submit = self._writer_thread.submit
                for each in await submit(self._writer.read_revocations):
                    self._revocations.add(each)
                await self._reader_thread.start()
            except BaseException:
                await self._writer_thread.stop()
                raise
        except (StoreUnavailableError, ConfigError) as exc:
            self._unopened_for = getattr(exc, "problem", str(exc))
            raise
        self._unopened_for = None
        self._writes.open()
        self.admin.open()

    async def close(self) -> None:
        """Finish background writes and close the file."""
        await self._writes.close()
        await self.admin.close()
        await self._reader_thread.stop()
        await self._writer_thread.stop()

    async def check(self) -> None:
        """
        Write a value, and check every page of the file.

        This takes about a second per GB.

        Raises:
            StoreUnavailableError: If the file cannot be written now, or is damaged.

        """
        await self._writes.submit(self._writer.probe)
        finding = await self._reader_thread.submit(self._reader.quick_check)
        if finding != "ok":
            raise self._file.damaged(finding)

    async def usage(self) -> DiskUsage:
        """Return the size of the file and the free space; errors as `read`."""
        try:
            return await self._read(lambda _: disk_usage(self._path))
        except OSError as exc:
            raise StoreUnavailableError(self.description, str(exc)) from exc

    # --- the live feed

    def subscribe(
        self,
        on_stored: StoredListener,
        on_epoch_changed: EpochListener | None = None,
        on_announced: AnnouncedListener | None = None,
        on_revoked: RevokedListener | None = None,
    ) -> None:
        """Publish messages, revocations, and users forgotten while they connected."""
        self._on_stored = on_stored
        self._on_announced = on_announced
        self._revocations.subscribe(on_revoked)
        self._on_epoch_changed = on_epoch_changed

    async def follow(self, user: str) -> None:
        """Include `user` in the feed."""
        self._followed.add(user)

    def unfollow(self, user: str) -> None:
        """Exclude `user` from the feed."""
        self._followed.discard(user)

    def _publish(
        self, messages: Sequence[Message], offsets: Sequence[int | None]
    ) -> None:
        followed = self._followed
        if self._on_stored is None or not followed:
            return
        fresh = [
            Stored(message, offset)
            for message, offset in zip(messages, offsets, strict=True)
            if offset is not None and offset > 0 and message.user in followed
        ]
        if fresh:
            self._on_stored(fresh)

    # --- writing

    async def announce(self, messages: Sequence[Message]) -> None:
        """Publish ephemeral messages of followed users, without storing them."""
        announced = [each for each in messages if each.user in self._followed]
        if announced and self._on_announced is not None:
            self._on_announced(announced)

    async def append(self, messages: Sequence[Message]) -> list[int | None]:
        """
        Store `messages`; return the offset of each, ``None`` for a duplicate.

        There is no timeout: a commit that the disk has begun cannot be withdrawn, so
        giving up would store the messages twice. `problem` reports a disk that hangs.

        Raises:
            StoreUnavailableError: If the file cannot be written now; nothing was stored.

        Cancellation: the messages may or may not have been stored.

        """
        if not messages:
            return []
        return await self._writes.submit(
            lambda connection: self._writer.append(connection, messages),
            lambda offsets: self._publish(messages, offsets),
        )

    async def revoke(self, revocation: Revocation) -> None:
        """Store a revocation, and pass it to the subscriber; errors as `append`."""
        self._revocations.check_room()
        await self._writes.submit(
            partial(self._writer.revoke, revocation=revocation),
            lambda _: self._revocations.add(revocation),
        )

    def is_revoked(self, identity: Identity) -> bool:
        """Return whether a revocation in force covers the token of `identity`."""
        return self._revocations.is_revoked(identity, self._clock.read())

    def revocations(self, user: str) -> Sequence[Revocation]:
        """Return the revocations of `user` that are in force."""
        return self._revocations.of(user, self._clock.read())

    def all_revocations(self) -> Sequence[Revocation]:
        """Return the revocations of all users that are in force."""
        return self._revocations.all(self._clock.read())

    async def sweep(self) -> None:
        """
        Delete messages and ids that are too old, and forget idle users.

        Works in steps that let appends through.
        """
        # If the store is unavailable now, the next sweep does it.
        with suppress(StoreUnavailableError):
            await self._writes.submit(self._writer.store_clock)
            await self._writes.submit(self._writer.drop_revocations)
            await self._presence.sweep()
            self._revocations.drop_over(self._clock.read())
            for sweep in (
                self._writer.receipts.sweep,  # first: it needs the messages
                self._writer.sweep_unindexed,
                self._writer.sweep_messages,
            ):
                while await self._writes.submit(sweep):
                    pass
            after: int | None = 0
            while after is not None:
                after = await self._writes.submit(
                    partial(self._writer.sweep_sparse, after=after)
                )
            key: tuple[int, str] | None = (0, "")
            while key is not None:
                key = await self._writes.submit(
                    partial(self._writer.sweep_ids, after=key)
                )
            await self._forget_idle()

    async def _forget_idle(self) -> None:
        """Check the next users; a sweep of all others continues a minute later."""
        is_followed = self._followed.__contains__
        for _ in range(_FORGET_STEPS):
            users, following = await self._writes.submit(
                partial(
                    self._writer.forget_idle,
                    after=self._forget_after,
                    is_followed=is_followed,
                )
            )
            # These began to connect before the commit, and may have read the old state.
            connecting = [user for user in users if is_followed(user)]
            if connecting and self._on_epoch_changed is not None:
                self._on_epoch_changed(connecting)
            self._forget_after = following or 0
            if following is None:
                return

    def mark_delivered(self, user: str, offset: int) -> None:
        """Move the delivered mark of `user` forward to `offset`."""
        self._writes.mark_delivered(user, offset)

    # --- receipts

    @property
    def tracked(self) -> Collection[str]:
        """The users who have receipts whose outcome is open."""
        return self._writer.receipts.open.keys()

    def on_events(self, wake: Callable[[], None]) -> None:
        """Call `wake` when there is an event to publish."""
        self._writer.receipts.on_events(wake)

    async def pending_events(
        self, limit: int, *, max_bytes: int = EVENT_BYTES
    ) -> Sequence[WorkerEvent]:
        """Decide what is due, and return the oldest events; errors as `append`."""
        receipts = self._writer.receipts
        for _ in range(_DUE_STEPS):
            if not receipts.is_due or not await self._writes.submit(
                receipts.settle_due
            ):
                break
        if not receipts.pending:
            return ()
        limits = {"limit": limit, "max_bytes": max_bytes}
        return await self._read(lambda c: read_events(c, **limits))

    async def confirm_events(self, events: Sequence[WorkerEvent]) -> None:
        """Delete events that were published; errors as `append`."""
        row_ids = [each.key for each in events if isinstance(each.key, int)]
        await self._writes.submit(
            partial(self._writer.receipts.confirm, row_ids=row_ids)
        )

    async def add_event(self, event: WorkerEvent) -> None:
        """Add an event; errors as `append`."""
        await self._writes.submit(
            partial(self._writer.receipts.put, events=[(event, None)])
        )

    async def drop_presence_events(self, limit: int) -> int:
        """Delete the oldest events about presence; errors as `append`."""
        return await self._presence.drop_events(limit)

    async def events_depth(self) -> tuple[int, float | None]:
        """Return the number of events, and the age of the oldest; errors as `append`."""
        pending = self._writer.receipts.pending
        if not pending:
            return 0, None
        oldest = await self._read(lambda c: read_events(c, limit=1, max_bytes=0))
        now_s = self._clock.read().now_s
        return pending, now_s - oldest[0].at_s if oldest else None

    async def note_presence(
        self, windows: Mapping[str, int], *, debounce_s: float
    ) -> Callable[[str], bool] | None:
        """Note windows, and decide who is online; see `PresenceStore`."""
        return await self._presence.note(windows, debounce_s=debounce_s)

    async def note_trials(self, keys: Sequence[bytes]) -> list[int]:
        """Record a trial of each key in one transaction; return their numbers."""
        return await self._writes.note_trials(keys)

    def forget_trial(self, key: bytes) -> None:
        """Delete the record in the background."""
        self._writes.forget_trial(key)

    # --- reading

    async def state(self, user: str) -> InboxState:
        """Return the first, last and delivered offsets of the inbox of `user`."""
        mark = self._writes.unwritten_mark(user)
        state = await self._read(lambda c: self._reader.state(c, user))
        # The mark from before the read counts too: it may have been written since.
        mark = max(mark, self._writes.unwritten_mark(user), state.delivered)
        return replace(state, delivered=min(mark, state.last))

    async def read(
        self, user: str, *, after: int, max_messages: int, max_bytes: int
    ) -> InboxPage:
        """Read messages with offsets above `after`, oldest first."""
        limits = {"max_messages": max_messages, "max_bytes": max_bytes}
        return await self._read(
            lambda c: self._reader.read(c, user, after=after, **limits)
        )

    async def read_retained(
        self, user: str, *, after: int, upto: int, max_bytes: int
    ) -> Sequence[Stored]:
        """Read the newest message of each retained key; see `InboxReader`."""
        span = {"after": after, "upto": upto, "max_bytes": max_bytes}
        return await self._read(lambda c: self._reader.read_retained(c, user, **span))

    async def count_expired(self, user: str, *, after: int) -> int:
        """Count the messages above the offset `after` that are past their deadline."""
        return await self._read(
            lambda c: self._reader.count_expired(c, user, after=after)
        )

    async def _read(self, work: Callable[[Connection], T]) -> T:
        try:
            async with asyncio.timeout(self._read_timeout_s):
                return await self._reader_thread.submit(work)
        except TimeoutError as exc:
            problem = f"it was not read within {self._read_timeout_s:g} s"
            raise StoreUnavailableError(self.description, problem) from exc
