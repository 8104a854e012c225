"""
Read queries, run in the reader's thread.

The reader never waits for the writer, nor the writer for the reader: each query sees the
file as of the last commit. Entries that are not indexed yet come from the unindexed tail,
which is asked before the snapshot is taken.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from time import time
from typing import Any

from bridge.core.message import Stored
from bridge.core.replay import InboxState, Page
from bridge.enums import SyncReason
from bridge.inbox.contract import Retention
from bridge.inbox.sqlite.chain import rows_after, to_stored
from bridge.inbox.sqlite.database_thread import DatabaseCall
from bridge.inbox.sqlite.file import StoreFile
from bridge.inbox.sqlite.unindexed import UnindexedTail, UserTail


@dataclass(frozen=True, slots=True)
class InboxBounds:
    """The range of an inbox that counts as kept, even if the file still holds more."""

    first: int
    last: int
    last_seq: int
    delivered: int
    trimmed_for: SyncReason | None


class SqliteReader:
    """The runner of the reader's thread."""

    def __init__(
        self,
        file: StoreFile,
        tail: UnindexedTail,
        *,
        retention: Callable[[], Retention],
        now: Callable[[], float] = time,
    ) -> None:
        self._file = file
        self._tail = tail
        self._retention = retention
        self._now = now

    # --- as a runner of calls

    def open_connection(self) -> sqlite3.Connection:
        """Open the file, which the writer has opened before."""
        return self._file.connect_reader()

    def close_connection(self, connection: sqlite3.Connection) -> None:
        """Close the connection."""
        connection.close()

    def run(
        self, connection: sqlite3.Connection, calls: Sequence[DatabaseCall[Any]]
    ) -> None:
        """Run each of `calls`; one that fails does not affect the others."""
        for call in calls:
            try:
                result = call.work(connection)
            except Exception as exc:  # noqa: BLE001 - raised to the caller; the thread continues
                call.fail(self._file.translate(exc))
            else:
                call.finish(result)

    # --- queries

    def state(self, connection: sqlite3.Connection, user: str) -> InboxState:
        """Return the first, last and delivered offsets of the inbox of `user`."""
        epoch = self._file.epoch
        with self._snapshot(connection, user) as (user_id, tail):
            if user_id is None:
                return InboxState(epoch=epoch, first=1, last=0, delivered=0)
            bounds = self._bounds(connection, user_id, tail)
        return InboxState(
            epoch, bounds.first, bounds.last, bounds.delivered, bounds.trimmed_for
        )

    def read(
        self,
        connection: sqlite3.Connection,
        user: str,
        *,
        after: int,
        max_messages: int,
        max_bytes: int,
    ) -> Page:
        """Read messages with offsets above `after`, oldest first."""
        with self._snapshot(connection, user) as (user_id, tail):
            if user_id is None:
                return Page(messages=(), next_after=after, expired=0, gone=0, last=0)
            bounds = self._bounds(connection, user_id, tail)
            start = max(after, bounds.first - 1)
            with closing(
                rows_after(connection, user_id, bounds.last_seq, tail, after=start)
            ) as rows:
                return _page(
                    (to_stored(user, row) for row in rows),
                    after=after,
                    last=bounds.last,
                    max_messages=max_messages,
                    max_bytes=max_bytes,
                    now_s=self._now(),
                )

    def count_expired(
        self, connection: sqlite3.Connection, user: str, *, after: int
    ) -> int:
        """Count the messages above the offset `after` that are past their deadline."""
        now_s = self._now()
        with self._snapshot(connection, user) as (user_id, tail):
            if user_id is None:
                return 0
            bounds = self._bounds(connection, user_id, tail)
            after = max(after, bounds.first - 1)
            seq, columns = bounds.last_seq, "deadline_s"
            with closing(
                rows_after(connection, user_id, seq, tail, after=after, columns=columns)
            ) as rows:
                return sum(
                    deadline_s is not None and deadline_s <= now_s
                    for _, deadline_s in rows
                )

    def quick_check(self, connection: sqlite3.Connection) -> str:
        """Check every page of the file; return "ok" or the first fault."""
        finding: str = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        return finding

    @contextmanager
    def _snapshot(
        self, connection: sqlite3.Connection, user: str
    ) -> Iterator[tuple[int | None, UserTail]]:
        """Begin a read transaction; yield the id of `user`, if it exists, and the tail."""
        row = connection.execute(
            "SELECT id FROM users WHERE user = ?", (user,)
        ).fetchone()
        if row is None:
            yield None, UserTail()
            return
        # Before the snapshot: entries indexed in between are then found in the file.
        tail = self._tail.of(row[0])
        connection.execute("BEGIN")
        try:
            yield row[0], tail
        finally:
            connection.rollback()

    def _bounds(
        self, connection: sqlite3.Connection, user_id: int, tail: UserTail
    ) -> InboxBounds:
        retention = self._retention()
        first, reason, *head, delivered = connection.execute(
            "SELECT first, trimmed_for, coalesce(last, 0), coalesce(seq, 0),"
            " coalesce(delivered, 0)"
            " FROM users LEFT JOIN heads ON user_id = id WHERE id = ?",
            (user_id,),
        ).fetchone()
        trimmed_for = SyncReason(reason) if reason else None
        last, seq = max(tuple(head), tail.head)
        if last - retention.max_messages + 1 > first:
            first = last - retention.max_messages + 1
            trimmed_for = SyncReason.LIMIT
        oldest_s = self._now() - retention.max_age_s
        first_young = last + 1
        with closing(
            rows_after(
                connection, user_id, seq, tail, after=first - 1, columns="taken_s"
            )
        ) as rows:
            for offset, taken_s in rows:
                if taken_s >= oldest_s:
                    first_young = offset
                    break
        # Messages that a sweep deleted are missing from the chain, and `users.first` does
        # not tell: the first message that is found does.
        if first_young > first:
            first = first_young
            trimmed_for = SyncReason.EXPIRED
        return InboxBounds(
            first, last, seq, max(delivered, tail.delivered), trimmed_for
        )


def _page(
    stored: Iterator[Stored],
    *,
    after: int,
    last: int,
    max_messages: int,
    max_bytes: int,
    now_s: float,
) -> Page:
    """Collect a page; offsets that `stored` skips, up to `last`, count as gone."""
    found: list[Stored] = []
    expired = gone = size_bytes = 0
    next_after = after
    for each in stored:
        if each.is_expired(now_s):
            expired += 1
        else:
            size_bytes += len(each.message.data)
            if found and (len(found) >= max_messages or size_bytes > max_bytes):
                break
            found.append(each)
        gone += each.offset - 1 - next_after
        next_after = each.offset
    else:
        gone += max(0, last - next_after)
        next_after = max(last, next_after)
    return Page(found, next_after, expired=expired, gone=gone, last=last)
