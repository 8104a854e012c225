"""
The desk of the thread that reads for operators: lists, searches, in short snapshots.

Beside `sqlite_reading`, whose windows must not wait for anybody's search. Each job here
is one short snapshot, so that the write-ahead log can be emptied in between.
"""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Final

from bridge.core.admin_views import InboxMatch, InboxSummary, KeptMessage, SearchResult
from bridge.inbox.sqlite.chain import rows_back
from bridge.inbox.sqlite.reader import Reading

# Nobody's windows wait for this one: it need not keep much of the file in memory.
_CACHE_KIB: Final = 4 * 1024

_COLUMNS: Final = "event, taken_s, message_id, deadline_s, length(data)"


class LookingDesk(Reading):
    """A reader's desk with what operators ask for."""

    def enter(self) -> sqlite3.Connection:
        """Open the file beside writer and reader."""
        connection = super().enter()
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        return connection

    # --- jobs

    def users(
        self,
        connection: sqlite3.Connection,
        *,
        prefix: str,
        after: str,
        limit: int,
        epoch: str,
    ) -> Sequence[InboxSummary]:
        """Return a page of users by name; SQLite sorts UTF-8 as Python sorts text."""
        names: list[str] = []
        with closing(
            connection.execute(
                "SELECT user FROM users WHERE user > ? AND user >= ?"
                " ORDER BY user LIMIT ?",
                (after, prefix, limit),
            )
        ) as rows:
            for (name,) in rows:
                if not name.startswith(prefix):
                    break  # all that do stand together
                names.append(name)
        return [
            InboxSummary(name, self.state(connection, name, epoch=epoch))
            for name in names
        ]

    def user(
        self, connection: sqlite3.Connection, name: str, *, epoch: str
    ) -> InboxSummary | None:
        """Return one user's inbox; ``None`` if there never was a message."""
        state = self.state(connection, name, epoch=epoch)
        return InboxSummary(name, state) if state.last else None

    def look(
        self,
        connection: sqlite3.Connection,
        user: str,
        *,
        before: int | None,
        limit: int,
        max_bytes: int,
    ) -> Sequence[KeptMessage]:
        """Return some of one user's messages, newest first."""
        found: list[KeptMessage] = []
        size_bytes = 0
        with self._inbox(connection, user) as (user_id, tail):
            if user_id is None:
                return found
            span = self._span(connection, user_id, tail)
            before = span.last + 1 if before is None else before
            columns = f"{_COLUMNS}, data" if max_bytes else f"{_COLUMNS}, NULL"
            with closing(
                rows_back(
                    connection,
                    user_id,
                    span.seq,
                    tail,
                    first=span.first,
                    before=before,
                    columns=columns,
                )
            ) as rows:
                for row in rows:
                    size_bytes += row[5]
                    if len(found) >= limit or (found and 0 < max_bytes < size_bytes):
                        break
                    found.append(_kept(row))
        return found

    def find_of(
        self, connection: sqlite3.Connection, *, message_id: str, user: str
    ) -> SearchResult:
        """Find an id in one user's inbox."""
        with self._inbox(connection, user) as (user_id, tail):
            if user_id is None:
                return SearchResult((), 0, is_complete=True)
            span = self._span(connection, user_id, tail)
            with closing(
                rows_back(
                    connection,
                    user_id,
                    span.seq,
                    tail,
                    first=span.first,
                    before=span.last + 1,
                    columns=f"{_COLUMNS}, NULL",
                )
            ) as rows:
                kept = [_kept(row) for row in rows if row[3] == message_id]
            seen_s = self._tail.seen_s(user_id, message_id)
            if seen_s is None:
                row = connection.execute(
                    "SELECT seen_s FROM seen WHERE user_id = ? AND message_id = ?",
                    (user_id, message_id),
                ).fetchone()
                seen_s = row[0] if row else None
        sightings = []
        if kept or seen_s is not None:
            sightings.append(InboxMatch(user, kept[::-1], seen_s))
        return SearchResult(
            sightings, max(0, span.last + 1 - span.first), is_complete=True
        )

    def span_of_seqs(self, connection: sqlite3.Connection) -> tuple[int, int]:
        """Return the lowest and the highest number that a message has in the file."""
        low, high = connection.execute(
            "SELECT (SELECT min(seq) FROM messages), (SELECT max(seq) FROM messages)"
        ).fetchone()
        return low or 0, high or 0

    def users_with(
        self, connection: sqlite3.Connection, *, message_id: str, seqs: tuple[int, int]
    ) -> Sequence[str]:
        """Return the users of the messages with this id behind one seq, up to another."""
        # One statement, most of which runs without Python's lock.
        rows = connection.execute(
            "SELECT DISTINCT user FROM messages JOIN users ON users.id = user_id"
            " WHERE seq > ? AND seq <= ? AND message_id = ?",
            (*seqs, message_id),
        )
        return [name for (name,) in rows]

    def users_that_had(
        self,
        connection: sqlite3.Connection,
        *,
        message_id: str,
        after_id: int,
        count: int,
    ) -> tuple[Sequence[str], int | None]:
        """Return the users of a piece that had this id, and where the next piece begins."""
        last = connection.execute("SELECT max(id) FROM users").fetchone()[0] or 0
        upto_id = after_id + count
        rows = connection.execute(
            "SELECT user FROM users CROSS JOIN seen ON seen.user_id = users.id"
            " AND seen.message_id = ? WHERE users.id > ? AND users.id <= ?",
            (message_id, after_id, upto_id),
        )
        return [name for (name,) in rows], upto_id if upto_id < last else None


def _kept(row: tuple[Any, ...]) -> KeptMessage:
    offset, event, taken_s, message_id, deadline_s, data_bytes, data = row
    return KeptMessage(offset, event, taken_s, message_id, deadline_s, data_bytes, data)
