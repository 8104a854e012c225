"""
Read queries, run in the reader's thread.

The reader never waits for the writer, nor the writer for the reader: each query sees the
file as of the last commit. Entries that are not indexed yet come from the unindexed tail,
which is asked before the snapshot is taken.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any

from bridge.clock import SteadyClock
from bridge.core.message import Stored
from bridge.core.replay import InboxPage, InboxState
from bridge.enums import SyncReason
from bridge.inbox.contract import Retention
from bridge.inbox.sqlite import statements
from bridge.inbox.sqlite.chain import MessageChain, to_stored
from bridge.inbox.sqlite.database_thread import DatabaseCall
from bridge.inbox.sqlite.file import StoreFile
from bridge.inbox.sqlite.unindexed import UnindexedTail, UserTail


@dataclass(frozen=True, slots=True)
class InboxSnapshot:
    """
    One user's inbox in a read transaction.

    `first`, `last` and the rest say what counts as kept; the chain may hold more messages.
    """

    chain: MessageChain
    first: int
    last: int
    delivered: int
    trimmed_for: SyncReason | None
    forgotten: int


class SqliteReader:
    """The runner of the reader's thread."""

    def __init__(
        self,
        file: StoreFile,
        tail: UnindexedTail,
        *,
        retention: Callable[[], Retention],
        clock: SteadyClock,
    ) -> None:
        self._file = file
        self._tail = tail
        self._retention = retention
        self._clock = clock

    # --- as a runner of calls

    def open_connection(self) -> Connection:
        """Open the file, which the writer has opened before."""
        return self._file.connect_reader()

    def close_connection(self, connection: Connection) -> None:
        """Close the connection."""
        connection.close()

    def run(self, connection: Connection, calls: Sequence[DatabaseCall[Any]]) -> None:
        """Run each of `calls`; one that fails does not affect the others."""
        for call in calls:
            try:
                result = call.work(connection)
            except Exception as exc:  # noqa: BLE001 - raised to the caller; the thread continues
                call.fail(self._file.translate(exc))
            else:
                call.finish(result)

    # --- queries

    def state(self, connection: Connection, user: str) -> InboxState:
        """Return the first, last and delivered offsets of the inbox of `user`."""
        epoch = self._file.epoch
        with self._snapshot(connection, user) as inbox:
            if inbox is None:
                return InboxState.empty(epoch, _forgotten(connection))
            return InboxState(
                *(epoch, inbox.first, inbox.last, inbox.delivered),
                *(inbox.trimmed_for, inbox.forgotten),
            )

    def read(
        self,
        connection: Connection,
        user: str,
        *,
        after: int,
        max_messages: int,
        max_bytes: int,
    ) -> InboxPage:
        """Read messages with offsets above `after`, oldest first."""
        now = self._clock.read()
        found: list[Stored] = []
        expired = gone = size_bytes = 0
        with self._snapshot(connection, user) as inbox:
            if inbox is None:
                return InboxPage.empty(after, _forgotten(connection))
            next_after = max(after, inbox.forgotten)
            with closing(inbox.chain.above(max(after, inbox.first - 1))) as rows:
                for row in rows:
                    stored = to_stored(user, row)
                    if stored.message.is_expired(now):
                        expired += 1
                    else:
                        size_bytes += len(stored.message.data)
                        if found and (
                            len(found) >= max_messages or size_bytes > max_bytes
                        ):
                            break
                        found.append(stored)
                    # Offsets that the chain skips are those of deleted messages.
                    gone += stored.offset - 1 - next_after
                    next_after = stored.offset
                else:
                    gone += max(0, inbox.last - next_after)
                    next_after = max(inbox.last, next_after)
        return InboxPage(found, next_after, expired=expired, gone=gone, last=inbox.last)

    def count_expired(self, connection: Connection, user: str, *, after: int) -> int:
        """Count the messages above the offset `after` that are past their deadline."""
        now = self._clock.read()
        with self._snapshot(connection, user) as inbox:
            if inbox is None:
                return 0
            with closing(
                inbox.chain.above(max(after, inbox.first - 1), "deadline_s, taken_s")
            ) as rows:
                return sum(
                    deadline_s is not None
                    and now.has_passed(deadline_s, since_s=taken_s)
                    for _, deadline_s, taken_s in rows
                )

    def quick_check(self, connection: Connection) -> str:
        """Check every page of the file; return "ok" or the first fault."""
        finding: str = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        return finding

    @contextmanager
    def _snapshot(
        self, connection: Connection, user: str
    ) -> Iterator[InboxSnapshot | None]:
        """Begin a read transaction; yield the inbox of `user`, if there is one."""
        row = connection.execute(
            "SELECT id FROM users WHERE user = ?", (user,)
        ).fetchone()
        if row is None:
            yield None
            return
        # Before the transaction: entries indexed in between are then found in the file.
        tail = self._tail.of(row[0])
        connection.execute("BEGIN")
        try:
            yield self._inbox(connection, row[0], user, tail)
        finally:
            connection.rollback()

    def _inbox(
        self, connection: Connection, user_id: int, user: str, tail: UserTail
    ) -> InboxSnapshot | None:
        retention = self._retention()
        row = connection.execute(
            "SELECT first, trimmed_for, forgotten, coalesce(last, forgotten),"
            " coalesce(seq, 0), coalesce(delivered, 0)"
            " FROM users LEFT JOIN heads ON user_id = id WHERE id = ? AND user = ?",
            (user_id, user),
        ).fetchone()
        if row is None:  # it was forgotten, and its id may be another user's by now
            return None
        first, reason, forgotten, *head, delivered = row
        delivered = max(delivered, tail.delivered, forgotten)
        trimmed_for = SyncReason(reason) if reason else None
        last, seq = max(tuple(head), tail.head)
        if last - retention.max_messages + 1 > first:
            first = last - retention.max_messages + 1
            trimmed_for = SyncReason.LIMIT
        chain = MessageChain(connection, user_id, seq, tail)
        oldest_s = self._clock.read().ago(retention.max_age_s)
        with closing(chain.above(first - 1, "taken_s")) as rows:
            first_young = next(
                (offset for offset, taken_s in rows if taken_s >= oldest_s), last + 1
            )
        # Messages that a sweep deleted are missing from the chain, and `users.first` does
        # not tell: the first message that is found does.
        if first_young > first:
            first, trimmed_for = first_young, SyncReason.EXPIRED
        return InboxSnapshot(chain, first, last, delivered, trimmed_for, forgotten)


def _forgotten(connection: Connection) -> int:
    return int(statements.meta(connection, "forgotten"))
