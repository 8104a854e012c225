"""
What the reader's thread does: say where an inbox begins and ends, and read pages of it.

Writers never hold it up, nor it them: it sees the file as of the last commit. What is
not indexed yet it finds in the tail, which is asked before the snapshot is taken.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from time import time
from typing import Any, Final

from bridge.core.message import Message, Stored
from bridge.core.replay import InboxState, Page
from bridge.enums import SyncReason
from bridge.inbox.contract import Retention
from bridge.inbox.sqlite.chain import rows
from bridge.inbox.sqlite.file import StoreFile
from bridge.inbox.sqlite.unindexed import Tail, Waiting
from bridge.inbox.sqlite.worker_thread import Job

_NOTHING: Final = Waiting(head=(0, 0), blocks=(), delivered=0)


@dataclass(frozen=True, slots=True)
class _Span:
    """What is kept of an inbox, by today's rules, whatever the file still holds."""

    first: int
    last: int
    seq: int
    delivered: int
    trimmed_for: SyncReason | None


class Reading:
    """The reader's desk."""

    def __init__(
        self,
        file: StoreFile,
        tail: Tail,
        *,
        retention: Callable[[], Retention],
        now: Callable[[], float] = time,
    ) -> None:
        self._file = file
        self._tail = tail
        self._retention = retention
        self._now = now

    # --- the desk

    def enter(self) -> sqlite3.Connection:
        """Open the file beside the writer."""
        return self._file.connect_reader()

    def leave(self, connection: sqlite3.Connection) -> None:
        """Close it."""
        connection.close()

    def run(self, connection: sqlite3.Connection, jobs: Sequence[Job[Any]]) -> None:
        """Do `jobs`, each for itself."""
        for job in jobs:
            try:
                result = job.work(connection)
            except Exception as exc:  # noqa: BLE001 - handed to who waits; the thread lives on
                job.fail(self._file.error(exc))
            else:
                job.finish(result)

    # --- jobs

    def state(
        self, connection: sqlite3.Connection, user: str, *, epoch: str
    ) -> InboxState:
        """Return where the inbox of `user` begins, ends, and is delivered up to."""
        with self._inbox(connection, user) as (user_id, tail):
            if user_id is None:
                return InboxState(epoch=epoch, first=1, last=0, delivered=0)
            span = self._span(connection, user_id, tail)
        return InboxState(
            epoch=epoch,
            first=span.first,
            last=span.last,
            delivered=span.delivered,
            trimmed_for=span.trimmed_for,
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
        """Read on behind the offset `after`, as the contract has it (memory.py)."""
        with self._inbox(connection, user) as (user_id, tail):
            if user_id is None:
                return Page(messages=(), next_after=after, expired=0, gone=0, last=0)
            span = self._span(connection, user_id, tail)
            start = max(after, span.first - 1)
            with closing(
                rows(connection, user_id, span.seq, tail, after=start)
            ) as found:
                return _page(
                    (_stored(user, row) for row in found),
                    after=after,
                    last=span.last,
                    max_messages=max_messages,
                    max_bytes=max_bytes,
                    now_s=self._now(),
                )

    def count_expired(
        self, connection: sqlite3.Connection, user: str, *, after: int
    ) -> int:
        """Count what is kept behind the offset `after` and is past its deadline."""
        now_s = self._now()
        with self._inbox(connection, user) as (user_id, tail):
            if user_id is None:
                return 0
            span = self._span(connection, user_id, tail)
            after = max(after, span.first - 1)
            with closing(
                rows(
                    connection,
                    user_id,
                    span.seq,
                    tail,
                    after=after,
                    columns="deadline_s",
                )
            ) as found:
                return sum(
                    deadline_s is not None and deadline_s <= now_s
                    for _, deadline_s in found
                )

    def quick_check(self, connection: sqlite3.Connection) -> str:
        """Look at every page of the file; return "ok" or the first fault."""
        finding: str = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        return finding

    @contextmanager
    def _inbox(
        self, connection: sqlite3.Connection, user: str
    ) -> Iterator[tuple[int | None, Waiting]]:
        """Take a snapshot of one inbox: the user's id, if there is one, and the tail."""
        row = connection.execute(
            "SELECT id FROM users WHERE user = ?", (user,)
        ).fetchone()
        if row is None:
            yield None, _NOTHING
            return
        tail = self._tail.of(row[0])  # before the snapshot
        connection.execute("BEGIN")
        try:
            yield row[0], tail
        finally:
            connection.rollback()

    def _span(
        self, connection: sqlite3.Connection, user_id: int, tail: Waiting
    ) -> _Span:
        retention = self._retention()
        first, reason, *head, delivered = connection.execute(
            "SELECT first, trimmed_for, coalesce(last, 0), coalesce(seq, 0),"
            " coalesce(delivered, 0)"
            " FROM users LEFT JOIN heads ON user_id = id WHERE id = ?",
            (user_id,),
        ).fetchone()
        delivered = max(delivered, tail.delivered)
        trimmed_for = SyncReason(reason) if reason else None
        last, seq = max(tuple(head), tail.head)
        if last - retention.max_messages + 1 > first:
            first = last - retention.max_messages + 1
            trimmed_for = SyncReason.LIMIT
        oldest_s = self._now() - retention.max_age_s
        young = last + 1
        with closing(rows(connection, user_id, seq, tail, after=first - 1)) as found:
            for offset, _, _, taken_s, *_ in found:
                if taken_s >= oldest_s:
                    young = offset
                    break
        # What was swept is not there at all, and is younger than `first` all the same.
        if young > first:
            first = young
            trimmed_for = SyncReason.EXPIRED
        return _Span(first, last, seq, delivered, trimmed_for)


def _stored(user: str, row: tuple[Any, ...]) -> Stored:
    offset, event, data, taken_s, message_id, deadline_s = row
    return Stored(Message(user, event, data, taken_s, message_id, deadline_s), offset)


def _page(
    stored: Iterator[Stored],
    *,
    after: int,
    last: int,
    max_messages: int,
    max_bytes: int,
    now_s: float,
) -> Page:
    """Gather a page: what was not found between two offsets, and up to `last`, is gone."""
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
