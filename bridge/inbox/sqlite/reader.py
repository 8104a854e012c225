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
from bridge.core.replay import InboxPage, InboxState, count_gone, fit
from bridge.enums import SyncReason
from bridge.inbox.contract import Retention
from bridge.inbox.sqlite import statements
from bridge.inbox.sqlite.chain import (
    STORED_COLUMNS,
    MessageChain,
    Rows,
    to_stored,
)
from bridge.inbox.sqlite.database_thread import DatabaseCall
from bridge.inbox.sqlite.file import StoreFile
from bridge.inbox.sqlite.unindexed import UnindexedTail, UserTail


@dataclass(frozen=True, slots=True)
class InboxSnapshot:
    """
    One user's inbox in a read transaction.

    `state` says what counts as kept; the tables may hold more messages.
    """

    chain: MessageChain
    state: InboxState

    def above(self, offset: int, columns: str = STORED_COLUMNS) -> Rows:
        """Yield offset and columns of the kept messages above `offset`, oldest first."""
        offset = max(offset, self.state.first - 1)
        yield from self.chain.above(offset, columns)
        if self.state.sparse_after is not None:
            yield from self.chain.connection.execute(
                f"SELECT offset, {columns} FROM sparse"  # noqa: S608 - no input
                " WHERE user_id = ? AND offset > ? ORDER BY offset",
                (self.chain.user_id, offset),
            )

    def below(self, offset: int, columns: str) -> Rows:
        """Yield offset, columns and key of the kept messages below `offset`, newest first."""
        first, sparse_after = self.state.first, self.state.sparse_after
        if sparse_after is not None:
            yield from self.chain.connection.execute(
                f"SELECT offset, {columns}, key FROM sparse"  # noqa: S608 - no input
                " WHERE user_id = ? AND offset < ? AND offset >= ? ORDER BY offset DESC",
                (self.chain.user_id, offset, first),
            )
            offset = min(offset, sparse_after + 1)
        # Only messages in `sparse` have a key.
        yield from self.chain.below(offset, first=first, columns=f"{columns}, NULL")


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
        with self._snapshot(connection, user) as inbox:
            if inbox is None:
                return InboxState.empty(self._file.epoch, _forgotten(connection))
            return inbox.state

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
        expired = size_bytes = 0
        gone: int | None = 0
        with self._snapshot(connection, user) as inbox:
            if inbox is None:
                return InboxPage.empty(after, _forgotten(connection))
            state = inbox.state
            next_after = max(after, state.forgotten)
            gone = count_gone(next_after, state.first, state.sparse_after)
            next_after = max(next_after, state.first - 1)
            with closing(inbox.above(after)) as rows:
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
                    next_after = stored.offset
                else:
                    next_after = max(state.last, next_after)
        return InboxPage(found, next_after, expired=expired, gone=gone, last=state.last)

    def read_retained(
        self,
        connection: Connection,
        user: str,
        *,
        after: int,
        upto: int,
        max_bytes: int,
    ) -> Sequence[Stored]:
        """Read the newest message of each retained key; see `InboxReader`."""
        now = self._clock.read()
        rows = connection.execute(
            f"SELECT sparse.offset, {STORED_COLUMNS}, key FROM retained"  # noqa: S608 - no input
            " CROSS JOIN sparse USING (user_id, event, key) WHERE offset > ? AND offset <= ?"
            " AND user_id = (SELECT id FROM users WHERE user = ?) ORDER BY offset",
            (after, upto, user),
        )
        with closing(rows):
            found = (to_stored(user, row, key=key) for *row, key in rows)
            return fit(
                (each for each in found if not each.message.is_expired(now)),
                max_bytes=max_bytes,
            )

    def count_expired(self, connection: Connection, user: str, *, after: int) -> int:
        """Count the messages above the offset `after` that are past their deadline."""
        now = self._clock.read()
        with self._snapshot(connection, user) as inbox:
            if inbox is None:
                return 0
            with closing(inbox.above(after, "deadline_s, taken_s")) as rows:
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
            " coalesce(seq, 0), coalesce(delivered, 0), sparse_after, gone"
            " FROM users LEFT JOIN heads ON user_id = id WHERE id = ? AND user = ?",
            (user_id, user),
        ).fetchone()
        if row is None:  # it was forgotten, and its id may be another user's by now
            return None
        first, reason, forgotten, *head, delivered, sparse_after, gone = row
        delivered = max(delivered, tail.delivered, forgotten)
        trimmed_for = SyncReason(reason) if reason else None
        last, seq = map(max, head, tail.head)
        chain = MessageChain(connection, user_id, seq, tail)
        oldest_s = self._clock.read().ago(retention.max_age_s)
        chain_last, room, sparse_count, retained = last, retention.max_messages, 0, 0
        if sparse_after is not None:
            chain_last = sparse_after
            retained = connection.execute(
                "SELECT count(*) FROM retained WHERE user_id = ?", (user_id,)
            ).fetchone()[0]
            kept = connection.execute(
                "SELECT offset, taken_s FROM sparse WHERE user_id = ? AND offset > ?"
                " ORDER BY offset",
                (user_id, gone),
            ).fetchall()
            start = limit = max(0, len(kept) - room)
            while start < len(kept) and kept[start][1] < oldest_s:
                start += 1
            if start:
                gone = kept[start - 1][0]
                is_old = start > limit
                trimmed_for = SyncReason.EXPIRED if is_old else SyncReason.LIMIT
            sparse_count = len(kept) - start
            room -= sparse_count
        if chain_last - room + 1 > first:
            first = chain_last - room + 1
            trimmed_for = SyncReason.LIMIT
        with closing(chain.above(first - 1, "taken_s")) as rows:
            first_young = next(
                (offset for offset, taken_s in rows if taken_s >= oldest_s),
                chain_last + 1,
            )
        # Messages that a sweep deleted are missing from the chain, and `users.first` does
        # not tell: the first message that is found does.
        if first_young > first:
            first, trimmed_for = first_young, SyncReason.EXPIRED
        depth = max(0, chain_last + 1 - first) + sparse_count
        first = max(first, gone + 1)
        holes = last + 1 - first - depth
        state = InboxState(
            *(self._file.epoch, first, last, delivered, trimmed_for, forgotten),
            *(sparse_after, holes, retained),
        )
        return InboxSnapshot(chain, state)


def _forgotten(connection: Connection) -> int:
    return int(statements.meta(connection, "forgotten"))
