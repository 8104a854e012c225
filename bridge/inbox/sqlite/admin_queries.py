"""
Queries of operators on inboxes in a SQLite file.

They have a thread and a connection of their own, created at the first query: a search
through a million messages delays neither the replay of a window nor an append. Each call
in the thread takes one short snapshot, so the write-ahead log can be checkpointed between
two of them.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from sqlite3 import Connection
from time import monotonic
from typing import Concatenate, Final, ParamSpec, TypeVar

from bridge.core.admin_views import (
    InboxMatch,
    InboxSummary,
    KeptMessage,
    SearchResult,
    WaitingEvent,
    WaitingEvents,
)
from bridge.core.receipts import Receipt, unpack_event, unpack_receipt
from bridge.errors import StoreUnavailableError
from bridge.inbox.sqlite.database_thread import DatabaseThread
from bridge.inbox.sqlite.reader import SqliteReader
from bridge.inbox.sqlite.receipts import SELECT_RECEIPTS
from bridge.inbox.sqlite.write_scheduler import WriteScheduler

P = ParamSpec("P")
T = TypeVar("T")

_TIMEOUT_S: Final = 30.0
_MATCHES_MAX: Final = 100
# Messages that a search examines in one snapshot. The number adapts to the size of the
# messages, so that a step takes about _STEP_S.
_STEP_ROWS_FIRST: Final = 1000
_STEP_ROWS_MIN: Final = 50
_STEP_ROWS_MAX: Final = 20_000
_STEP_S: Final = 0.05
# Smaller than the cache of the reader: no window waits for these queries.
_CACHE_KIB: Final = 4 * 1024
_COLUMNS: Final = "event, taken_s, message_id, deadline_s, length(data)"


class AdminReader(SqliteReader):
    """The runner of the thread: a reader with the queries of operators."""

    def open_connection(self) -> Connection:
        """Open the file, with a small cache."""
        connection = super().open_connection()
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        return connection

    def users(
        self, connection: Connection, *, prefix: str, after: str, limit: int
    ) -> Sequence[InboxSummary]:
        """Return a page of users by name; SQLite sorts UTF-8 as Python sorts text."""
        names: list[str] = []
        statement = (
            "SELECT user FROM users WHERE user > ? AND user >= ? ORDER BY user LIMIT ?"
        )
        with closing(connection.execute(statement, (after, prefix, limit))) as rows:
            for (name,) in rows:
                if not name.startswith(prefix):
                    break  # names with the prefix are adjacent
                names.append(name)
        return [InboxSummary(name, self.state(connection, name)) for name in names]

    def user(self, connection: Connection, user: str) -> InboxSummary | None:
        """Return one user's inbox; ``None`` if the user never had a message."""
        state = self.state(connection, user)
        return InboxSummary(user, state) if state.had_messages else None

    def messages(
        self,
        connection: Connection,
        user: str,
        before: int | None,
        limit: int,
        max_bytes: int,
    ) -> Sequence[KeptMessage]:
        """Return messages of one user, newest first."""
        found: list[KeptMessage] = []
        size_bytes = 0
        columns = f"{_COLUMNS}, data" if max_bytes else f"{_COLUMNS}, NULL"
        with self._snapshot(connection, user) as inbox:
            if inbox is None:
                return found
            before = inbox.state.last + 1 if before is None else before
            with closing(inbox.below(before, columns)) as rows:
                for row in rows:
                    size_bytes += row[5]
                    if len(found) >= limit or (found and 0 < max_bytes < size_bytes):
                        break
                    found.append(KeptMessage(*row))
        return found

    def find_in_inbox(
        self, connection: Connection, message_id: str, user: str
    ) -> SearchResult:
        """Find an id in one user's inbox."""
        columns = f"{_COLUMNS}, NULL"
        with self._snapshot(connection, user) as inbox:
            if inbox is None:
                return SearchResult((), 0, is_complete=True)
            with closing(inbox.above(0, columns)) as rows:
                kept = [KeptMessage(*row) for row in rows if row[3] == message_id]
            user_id = inbox.chain.user_id
            seen_s = self._tail.seen_s(user_id, message_id)
            if seen_s is None:
                row = connection.execute(
                    "SELECT seen_s FROM seen WHERE user_id = ? AND message_id = ?",
                    (user_id, message_id),
                ).fetchone()
                seen_s = row[0] if row else None
        found = kept or seen_s is not None
        matches = [InboxMatch(user, kept, seen_s)] if found else []
        state = inbox.state
        scanned = max(0, state.last + 1 - state.first - state.holes)
        return SearchResult(matches, scanned, is_complete=True)

    def open_receipts(
        self, connection: Connection, user: str, message_id: str
    ) -> Sequence[Receipt]:
        """Return the receipts of messages with this id; examines those of all users."""
        rows = connection.execute(f"{SELECT_RECEIPTS} WHERE user = ?", (user,))
        found = [unpack_receipt(row[3], user=user, offset=row[2]) for row in rows]
        return [each for each in found if each.message.id == message_id]

    def waiting_events(
        self, connection: Connection, user: str, message_id: str, *, after: int
    ) -> tuple[Sequence[WaitingEvent], int | None]:
        """
        Examine events above `after` for about _STEP_S; return those about the message.

        The second value is the `after` of the next call; ``None`` at the end.
        """
        until_s = monotonic() + _STEP_S
        found: list[WaitingEvent] = []
        statement = (
            "SELECT id, event FROM events WHERE is_confirmed = 0 AND id > ? ORDER BY id"
        )
        with closing(connection.execute(statement, (after,))) as rows:
            for row_id, packed in rows:
                event = unpack_event(packed, key=None)
                if event.user == user and event.message_id == message_id:
                    found.append(WaitingEvent(event.routing_key, event.at_s))
                if monotonic() > until_s:
                    return found, row_id
        return found, None

    def seq_range(self, connection: Connection) -> tuple[int, int]:
        """Return the lowest and the highest seq of all messages; 0 if there is none."""
        low, high = connection.execute(
            "SELECT (SELECT min(seq) FROM messages), (SELECT max(seq) FROM messages)"
        ).fetchone()
        return low or 0, high or 0

    def users_with_message(
        self, connection: Connection, message_id: str, *, after: int, upto: int
    ) -> Sequence[str]:
        """Return the users of messages with this id and a seq in (`after`, `upto`]."""
        # A single statement, which runs mostly without Python's global lock.
        rows = connection.execute(
            "SELECT DISTINCT user FROM messages JOIN users ON users.id = user_id"
            " WHERE seq > ? AND seq <= ? AND message_id = ?",
            (after, upto, message_id),
        )
        return [name for (name,) in rows]

    def users_with_seen_id(
        self, connection: Connection, message_id: str, *, after: int, limit: int
    ) -> tuple[Sequence[str], int | None]:
        """
        Return those of the next `limit` users who had this id: it is remembered, or sparse.

        The second value is the `after` of the next call; ``None`` at the end.
        """
        last = connection.execute("SELECT max(id) FROM users").fetchone()[0] or 0
        upto = after + limit
        rows = connection.execute(
            "SELECT user FROM users CROSS JOIN seen ON seen.user_id = users.id"
            " AND seen.message_id = ?1 WHERE users.id > ?2 AND users.id <= ?3"
            " UNION SELECT user FROM users CROSS JOIN sparse ON sparse.user_id = users.id"
            " AND sparse.message_id = ?1 WHERE users.id > ?2 AND users.id <= ?3",
            (message_id, after, upto),
        )
        names = [name for (name,) in rows]
        for user_id in () if after else self._tail.users_with(message_id):
            names += connection.execute(
                "SELECT user FROM users WHERE id = ?", (user_id,)
            ).fetchone()
        return names, upto if upto < last else None


@dataclass(slots=True)
class _Search:
    """A search for one id in all inboxes."""

    message_id: str
    until_s: float
    users: dict[str, None] = field(default_factory=dict)  # an ordered set
    scanned: int = 0
    steps: int = 0
    is_complete: bool = True

    def may_continue(self) -> bool:
        """Return whether to take another step; if not, the search is incomplete."""
        is_over = monotonic() > self.until_s or len(self.users) >= _MATCHES_MAX
        if is_over and self.steps:  # at least one step, however short the limit is
            self.is_complete = False
        self.steps += 1
        return self.is_complete


class SqliteAdminQueries:
    """Queries on all inboxes in the file as of the last commit."""

    def __init__(
        self,
        reader: AdminReader,
        writes: WriteScheduler,
        *,
        store: str,
        search_s: float,
    ) -> None:
        """
        Prepare queries; the thread starts with the first one.

        Args:
            reader: Reads the file.
            writes: Holds the delivered marks that are not in the file yet.
            store: The description of the store, for errors.
            search_s: After this time a search through all users or events stops.

        """
        self._reader = reader
        self._writes = writes
        self._store = store
        self._search_s = search_s
        self._thread = DatabaseThread(reader, name="inbox-admin", store=store)
        self._starting = asyncio.Lock()
        self._is_open = False

    def open(self) -> None:
        """Allow queries: the file is open."""
        self._is_open = True

    async def close(self) -> None:
        """Refuse further queries, and end the thread."""
        async with self._starting:
            self._is_open = False
            await self._thread.stop()

    async def users(
        self, *, prefix: str = "", after: str = "", limit: int
    ) -> Sequence[InboxSummary]:
        """Return up to `limit` users with this prefix, by name, from `after` on."""
        found = await self._run(
            self._reader.users, prefix=prefix, after=after, limit=limit
        )
        return [self._with_unwritten_mark(each) for each in found]

    async def user(self, user: str) -> InboxSummary | None:
        """Return the inbox of `user`; ``None`` if the user never had a message."""
        found = await self._run(self._reader.user, user)
        return self._with_unwritten_mark(found) if found else None

    async def messages(
        self, user: str, *, before: int | None = None, limit: int, max_bytes: int = 0
    ) -> Sequence[KeptMessage]:
        """Return up to `limit` messages of `user`, newest first."""
        bounds = (before, limit, max_bytes)
        return await self._run(self._reader.messages, user, *bounds)

    async def find(self, message_id: str, *, user: str | None = None) -> SearchResult:
        """Find the messages with this id, of one user or of all, the newest first."""
        if user is not None:
            return await self._run(self._reader.find_in_inbox, message_id, user)
        search = _Search(message_id, until_s=monotonic() + self._search_s)
        await self._search_messages(search)
        await self._search_seen_ids(search)
        matches: list[InboxMatch] = []
        for name in search.users:
            matches += (await self.find(message_id, user=name)).matches
        return SearchResult(matches, search.scanned, is_complete=search.is_complete)

    async def open_receipts(self, user: str, message_id: str) -> Sequence[Receipt]:
        """Return the receipts of messages with this id whose outcome is not decided yet."""
        return await self._run(self._reader.open_receipts, user, message_id)

    async def waiting_events(self, user: str, message_id: str) -> WaitingEvents:
        """Return the events about messages with this id that wait to be published."""
        until_s = monotonic() + self._search_s
        query = self._reader.waiting_events
        found: list[WaitingEvent] = []
        after: int | None = 0
        while after is not None:
            events, after = await self._run(query, user, message_id, after=after)
            found += events
            if monotonic() > until_s:
                break
        return WaitingEvents(found, is_complete=after is None)

    async def _search_messages(self, search: _Search) -> None:
        low, upto = await self._run(self._reader.seq_range)
        step_rows = _STEP_ROWS_FIRST
        while upto >= low and upto > 0 and search.may_continue():
            began_s = monotonic()
            after = max(low - 1, upto - step_rows)
            query = self._reader.users_with_message
            users = await self._run(query, search.message_id, after=after, upto=upto)
            search.users |= dict.fromkeys(users)
            search.scanned += upto - after
            upto = after
            if monotonic() - began_s > _STEP_S:
                step_rows = max(_STEP_ROWS_MIN, step_rows // 2)
            else:
                step_rows = min(_STEP_ROWS_MAX, step_rows * 2)

    async def _search_seen_ids(self, search: _Search) -> None:
        """Search the remembered ids, which can outlive their messages."""
        after: int | None = 0
        while after is not None and search.may_continue():
            users, after = await self._run(
                self._reader.users_with_seen_id,
                search.message_id,
                after=after,
                limit=_STEP_ROWS_MAX,
            )
            search.users |= dict.fromkeys(users)

    def _with_unwritten_mark(self, inbox: InboxSummary) -> InboxSummary:
        state = inbox.state
        mark = max(self._writes.unwritten_mark(inbox.user), state.delivered)
        return replace(inbox, state=replace(state, delivered=min(mark, state.last)))

    async def _run(
        self,
        query: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                async with self._starting:
                    if not self._is_open:
                        raise StoreUnavailableError(self._store, "it is not open")
                    if not self._thread.is_running:
                        await self._thread.start()
                return await self._thread.submit(lambda c: query(c, *args, **kwargs))
        except TimeoutError as exc:
            problem = f"it was not read within {_TIMEOUT_S:.0f} s"
            raise StoreUnavailableError(self._store, problem) from exc
