"""
A SQLite inbox as something to be carried away: user by user, in portions of bounded size.

The file is held as by a bridge, so none has it meanwhile. It is left as it was, but for
two things that a start of a bridge does as well: it is brought into the format of this
version, and what waited to be indexed is indexed.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import Any, Final

from bridge.core.message import Message, Stored
from bridge.enums import SyncReason
from bridge.errors import ConfigError
from bridge.inbox.migration.model import (
    Amount,
    CarriedInbox,
    Held,
    Load,
    Portion,
    Waybill,
)
from bridge.inbox.sqlite import statements
from bridge.inbox.sqlite.chain import rows
from bridge.inbox.sqlite.file import StoreFile
from bridge.inbox.sqlite.unindexed import ROUND_ENTRIES, Tail, Waiting

# The most that one load holds: of messages and ids together, and of bytes unless a single
# message has more.
_LOAD_ENTRIES: Final = 1000
_LOAD_BYTES: Final = 1 << 20
# Users who have nothing but their numbers.
_LOAD_USERS: Final = 500
_PIECE_ROWS: Final = 5000

_NOTHING_WAITS: Final = Waiting(head=(0, 0), blocks=(), delivered=0)
_USERS: Final = (
    "SELECT id, user, first, trimmed_for, coalesce(last, 0), coalesce(seq, 0),"
    " coalesce(delivered, 0) FROM users LEFT JOIN heads ON user_id = id"
    " WHERE id > ? ORDER BY id"
)


class SqliteSource:
    """The file, in the hands of who carries it. All calls block, in one thread."""

    def __init__(
        self, path: str, *, dedupe_s: float, now: Callable[[], float] = time
    ) -> None:
        """
        Know where the file is, and touch nothing yet.

        Args:
            path: Of the file.
            dedupe_s: Ids that were seen longer ago are left behind.
            now: Unix time.

        """
        self.description = f"sqlite:{path}"
        self._file = StoreFile(Path(path), self.description)
        self._dedupe_s = dedupe_s
        self._now = now
        self._connection: sqlite3.Connection | None = None

    def open(self) -> Waybill:
        """
        Take the file.

        Raises:
            ConfigError: If there is none, or it is no inbox.
            StoreInUseError: If a bridge has it.
            StoreUnavailableError: If it cannot be had for another reason.

        """
        if not self._file.look():
            problem = "there is no such file, and nothing to carry"
            raise ConfigError((f"{self.description}: {problem}",))
        connection = self._file.connect_writer()
        self._connection = connection
        try:
            with self._faults_told():
                _index_all(connection)
                return _waybill(connection)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._file.release()

    def amount(self) -> Amount:
        """Count what will be carried, all but the bytes."""
        with self._faults_told():
            users, messages, ids = self._connected.execute(
                "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM messages"
                " CROSS JOIN users ON id = user_id WHERE offset >= first),"
                " (SELECT count(*) FROM seen WHERE seen_s >= ?)",
                (self._oldest_s,),
            ).fetchone()
        return Amount(users, messages, ids)

    def loads(self, *, after: int) -> Iterator[Load]:
        """Yield what is to be put, for all users behind the number `after`."""
        with self._faults_told():
            yield from self._loads(after)

    def held(self) -> Iterator[Sequence[Held]]:
        """Yield all inboxes, some at a time."""
        with self._faults_told():
            yield from self._held()

    # --- reading

    def _loads(self, after: int) -> Iterator[Load]:
        portions: list[Portion] = []
        entries = size_bytes = 0
        upto = after
        for user_id, portion in self._portions(after):
            more = len(portion.messages) + len(portion.ids)
            more_bytes = sum(len(each.message.data) for each in portion.messages)
            is_full = (
                entries + more > _LOAD_ENTRIES
                or size_bytes + more_bytes > _LOAD_BYTES
                or len(portions) >= _LOAD_USERS
            )
            # Complete is who stands before the one that is being read.
            upto = max(upto, user_id - 1)
            if portions and is_full:
                yield Load(portions, upto)
                portions, entries, size_bytes = [], 0, 0
            portions.append(portion)
            entries += more
            size_bytes += more_bytes
        if portions:
            yield Load(portions, user_id)

    def _held(self) -> Iterator[Sequence[Held]]:
        held: list[Held] = []
        for row in self._connected.execute(_USERS, (0,)):
            inbox, found = self._inbox(row, columns="1")
            held.append(Held(inbox, sum(1 for _ in found)))
            if len(held) == _LOAD_USERS:
                yield held
                held = []
        yield held

    def _portions(self, after: int) -> Iterator[tuple[int, Portion]]:
        for row in self._connected.execute(_USERS, (after,)):
            user_id, user = row[:2]
            inbox, found = self._inbox(row)
            messages: list[Stored] = []
            size_bytes = 0
            is_told = False
            for each in found:
                stored = _stored(user, each)
                size_bytes += len(stored.message.data)
                if messages and (
                    len(messages) >= _LOAD_ENTRIES or size_bytes > _LOAD_BYTES
                ):
                    yield user_id, Portion(inbox, messages)
                    is_told = True
                    messages, size_bytes = [], len(stored.message.data)
                messages.append(stored)
            if messages or not is_told:
                yield user_id, Portion(inbox, messages)
            for ids in self._ids(user_id):
                yield user_id, Portion(inbox, ids=ids)

    def _inbox(
        self, row: tuple[Any, ...], *, columns: str | None = None
    ) -> tuple[CarriedInbox, Iterator[tuple[Any, ...]]]:
        """Return what is known of a user, and what is kept, oldest first."""
        user_id, user, first, reason, last, seq, delivered = row
        wanted = {} if columns is None else {"columns": columns}
        found: Iterator[tuple[Any, ...]] = rows(
            self._connected, user_id, seq, _NOTHING_WAITS, after=first - 1, **wanted
        )
        oldest = next(found, None)
        trimmed_for = SyncReason(reason) if reason else None
        # That messages were deleted for their age is written down nowhere else than
        # where the chain breaks off.
        young = last + 1 if oldest is None else oldest[0]
        if young > first:
            first, trimmed_for = young, SyncReason.EXPIRED
        inbox = CarriedInbox(user, first, last, min(delivered, last), trimmed_for)
        return inbox, _with(oldest, found)

    def _ids(self, user_id: int) -> Iterator[Sequence[tuple[str, float]]]:
        found = self._connected.execute(
            "SELECT message_id, seen_s FROM seen WHERE user_id = ? AND seen_s >= ?",
            (user_id, self._oldest_s),
        )
        while ids := found.fetchmany(_LOAD_ENTRIES):
            yield ids

    @contextmanager
    def _faults_told(self) -> Iterator[None]:
        """Let SQLite's faults be told as those of the store."""
        try:
            yield
        except sqlite3.Error as exc:
            raise self._file.error(exc) from exc

    @property
    def _oldest_s(self) -> float:
        return self._now() - self._dedupe_s

    @property
    def _connected(self) -> sqlite3.Connection:
        assert self._connection is not None  # noqa: S101 - it is opened first
        return self._connection


def _index_all(connection: sqlite3.Connection) -> None:
    """Index what waits, so that all there is to know stands in the tables."""
    tail = Tail(round_entries=ROUND_ENTRIES)
    tail.load(connection, int(statements.meta(connection, "indexed_seq")))
    tail.begin_round()
    is_done = not tail.count
    while not is_done:
        piece = tail.next_piece(_PIECE_ROWS)
        assert piece is not None  # noqa: S101 - the round goes on
        connection.execute("BEGIN IMMEDIATE")
        try:
            statements.index(connection, piece)
            connection.execute("COMMIT")
        finally:
            connection.rollback()  # nothing to do after a commit
        tail.drop(piece)
        is_done = piece.upto is not None


def _waybill(connection: sqlite3.Connection) -> Waybill:
    """Say what is in the file: a bridge that had it meanwhile changed one of these."""
    facts = connection.execute(
        "SELECT (SELECT coalesce(min(seq), 0) || '-' || coalesce(max(seq), 0)"
        " FROM messages), (SELECT count(*) || '/' || coalesce(sum(first), 0) FROM users),"
        " (SELECT coalesce(sum(delivered), 0) FROM heads)"
    ).fetchone()
    return Waybill(
        epoch=str(statements.meta(connection, "epoch")),
        contents=" ".join(map(str, facts)),
    )


def _with(
    first: tuple[Any, ...] | None, rest: Iterator[tuple[Any, ...]]
) -> Iterator[tuple[Any, ...]]:
    if first is not None:
        yield first
        yield from rest


def _stored(user: str, row: tuple[Any, ...]) -> Stored:
    offset, event, data, taken_s, message_id, deadline_s = row
    return Stored(Message(user, event, data, taken_s, message_id, deadline_s), offset)
