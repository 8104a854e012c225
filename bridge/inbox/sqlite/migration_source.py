"""
A SQLite inbox as the source of a migration: user by user, in parts of bounded size.

The file is locked as a bridge locks it, so no bridge can use it meanwhile. It stays as it
is except for two changes that the start of a bridge makes as well: it is migrated to the
format of this version, and unindexed entries are indexed.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from sqlite3 import Connection, Error
from time import time
from typing import Final

from bridge.core.message import Stored
from bridge.core.message_options import MessageOptions
from bridge.core.receipts import Receipt, WorkerEvent, unpack_receipt
from bridge.core.revocation import Revocation
from bridge.enums import SyncReason
from bridge.errors import ConfigError
from bridge.inbox.migration.model import (
    InboxCount,
    InboxNumbers,
    InboxPart,
    MigrationBatch,
    MigrationTotals,
    SourceIdentity,
)
from bridge.inbox.sqlite import statements
from bridge.inbox.sqlite.chain import STORED_COLUMNS, MessageChain, Row, to_stored
from bridge.inbox.sqlite.file import StoreFile
from bridge.inbox.sqlite.receipts import SELECT_RECEIPTS, read_events
from bridge.inbox.sqlite.unindexed import ROUND_ENTRIES, UnindexedTail, UserTail

# Limits of a batch: messages and ids together; bytes, unless a single message has more;
# and parts, for users without messages.
_BATCH_ENTRIES: Final = 1000
_BATCH_BYTES: Final = 1 << 20
_BATCH_PARTS: Final = 500
_INDEX_ROWS: Final = 5000

_USERS: Final = (
    "SELECT id, user, first, trimmed_for, coalesce(last, forgotten), coalesce(seq, 0),"
    " max(coalesce(delivered, 0), forgotten), forgotten, sparse_after, gone,"
    " (SELECT count(*) FROM sparse WHERE sparse.user_id = id AND offset > gone),"
    " (SELECT count(*) FROM retained WHERE retained.user_id = id)"
    " FROM users LEFT JOIN heads ON user_id = id"
    " WHERE id > ? ORDER BY id"
)


class SqliteSource:
    """The file to copy from. All calls block, and are made in one thread."""

    def __init__(
        self, path: str, *, dedupe_s: float, now: Callable[[], float] = time
    ) -> None:
        """
        Prepare a source without touching the file.

        Args:
            path: Of the file.
            dedupe_s: Ids that were stored longer ago are not copied.
            now: Unix time.

        """
        self.description = f"sqlite:{path}"
        self._file = StoreFile(Path(path), self.description)
        self._dedupe_s = dedupe_s
        self._now = now
        self._connection: Connection | None = None

    def open(self) -> SourceIdentity:
        """
        Lock and open the file.

        Raises:
            ConfigError: If it does not exist, or is not an inbox.
            StoreInUseError: If a bridge has it open.
            StoreUnavailableError: If it cannot be opened for another reason.

        """
        if not self._file.exists():
            problem = "the file does not exist, so there is nothing to copy"
            raise ConfigError((f"{self.description}: {problem}",))
        connection = self._file.connect_writer()
        self._connection = connection
        try:
            with self._translated_errors():
                _index_all(connection)
                return _identity(connection)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close and unlock the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._file.release()

    def totals(self) -> MigrationTotals:
        """Count what will be copied, except the bytes."""
        with self._translated_errors():
            users, messages, ids = self._connected.execute(
                "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM messages"
                " CROSS JOIN users ON id = user_id WHERE offset >= first)"
                " + (SELECT count(*) FROM sparse),"
                " (SELECT count(*) FROM seen WHERE seen_s >= ?)",
                (self._oldest_s,),
            ).fetchone()
        return MigrationTotals(users, messages, ids)

    def batches(self, *, after: int) -> Iterator[MigrationBatch]:
        """Yield the inboxes of all users with numbers above `after`."""
        with self._translated_errors():
            yield from self._batches(after)

    def counts(self) -> Iterator[Sequence[InboxCount]]:
        """Yield all inboxes in groups, for the comparison."""
        with self._translated_errors():
            yield from self._counts()

    def revocations(self) -> Sequence[Revocation]:
        """Return all revocations."""
        with self._translated_errors():
            return statements.revocations(self._connected)

    def receipts(self) -> Iterator[Sequence[Receipt]]:
        """Yield the receipts whose outcome is open."""
        with self._translated_errors():
            found = self._connected.execute(SELECT_RECEIPTS)
            while rows := found.fetchmany(_BATCH_ENTRIES):
                yield [
                    unpack_receipt(packed, user=user, offset=offset)
                    for _, user, offset, packed in rows
                ]

    def events(self) -> Sequence[WorkerEvent]:
        """Return the events that are not confirmed, oldest first."""
        with self._translated_errors():
            return read_events(self._connected, limit=-1, max_bytes=sys.maxsize)

    # --- reading

    def _batches(self, after: int) -> Iterator[MigrationBatch]:
        parts: list[InboxPart] = []
        entries = size_bytes = 0
        upto = after
        for user_id, part in self._parts(after):
            more = len(part.messages) + len(part.ids)
            more_bytes = sum(len(each.message.data) for each in part.messages)
            is_full = (
                entries + more > _BATCH_ENTRIES
                or size_bytes + more_bytes > _BATCH_BYTES
                or len(parts) >= _BATCH_PARTS
            )
            # Only the users before this one are complete: it may have more parts.
            upto = max(upto, user_id - 1)
            if parts and is_full:
                yield MigrationBatch(parts, upto)
                parts, entries, size_bytes = [], 0, 0
            parts.append(part)
            entries += more
            size_bytes += more_bytes
        if parts:
            yield MigrationBatch(parts, user_id)

    def _counts(self) -> Iterator[Sequence[InboxCount]]:
        counts: list[InboxCount] = []
        for row in self._connected.execute(_USERS, (0,)):
            inbox, found = self._inbox(row, columns="1")
            counts.append(InboxCount(inbox, sum(1 for _ in found)))
            if len(counts) == _BATCH_PARTS:
                yield counts
                counts = []
        yield counts

    def _parts(self, after: int) -> Iterator[tuple[int, InboxPart]]:
        for row in self._connected.execute(_USERS, (after,)):
            user_id, user = row[:2]
            inbox, found = self._inbox(row)
            messages: list[Stored] = []
            size_bytes = 0
            has_part = False
            dense = (to_stored(user, each) for each in found)
            for stored in chain(dense, self._sparse(user_id, user)):
                size_bytes += len(stored.message.data)
                if messages and (
                    len(messages) >= _BATCH_ENTRIES or size_bytes > _BATCH_BYTES
                ):
                    yield user_id, InboxPart(inbox, messages)
                    has_part = True
                    messages, size_bytes = [], len(stored.message.data)
                messages.append(stored)
            if messages or not has_part:
                yield user_id, InboxPart(inbox, messages)
            for ids in self._ids(user_id):
                yield user_id, InboxPart(inbox, ids=ids)

    def _inbox(
        self, row: Row, *, columns: str = STORED_COLUMNS
    ) -> tuple[InboxNumbers, Iterator[Row]]:
        """Return the numbers of a user's inbox, and the rows of its messages, oldest first."""
        user_id, user, first, reason, last, seq, delivered, forgotten, *sparse = row
        dense_last = last if sparse[0] is None else sparse[0]
        messages = MessageChain(self._connected, user_id, seq, UserTail())
        found = messages.above(first - 1, columns)
        oldest = next(found, None)
        trimmed_for = SyncReason(reason) if reason else None
        # Messages that a sweep deleted are missing from the chain, and `users.first` does
        # not tell: the first message that is found does.
        oldest_offset = dense_last + 1 if oldest is None else oldest[0]
        if oldest_offset > first:
            first, trimmed_for = oldest_offset, SyncReason.EXPIRED
        inbox = InboxNumbers(
            user, first, last, min(delivered, last), trimmed_for, forgotten, *sparse
        )
        return inbox, chain(() if oldest is None else (oldest,), found)

    def _sparse(self, user_id: int, user: str) -> Iterator[Stored]:
        """Yield the messages since the first one with a key, oldest first."""
        retained = statements.retained_keys(self._connected, user_id)
        for key, *row in self._connected.execute(
            f"SELECT key, offset, {STORED_COLUMNS} FROM sparse WHERE user_id = ?"  # noqa: S608 - no input
            " ORDER BY offset",
            (user_id,),
        ):
            stored = to_stored(user, tuple(row))
            message = stored.message
            if key is not None:
                is_retained = (message.event, key) in retained
                message.options = MessageOptions(key=key, is_retained=is_retained)
            yield stored

    def _ids(self, user_id: int) -> Iterator[Sequence[tuple[str, float]]]:
        found = self._connected.execute(
            "SELECT message_id, seen_s FROM seen WHERE user_id = ? AND seen_s >= ?",
            (user_id, self._oldest_s),
        )
        while ids := found.fetchmany(_BATCH_ENTRIES):
            yield ids

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise errors of SQLite as those of the store."""
        try:
            yield
        except Error as exc:
            raise self._file.translate(exc) from exc

    @property
    def _oldest_s(self) -> float:
        return self._now() - self._dedupe_s

    @property
    def _connected(self) -> Connection:
        assert self._connection is not None  # noqa: S101 - it is opened first
        return self._connection


def _index_all(connection: Connection) -> None:
    """Index all unindexed entries, so that the tables hold everything."""
    tail = UnindexedTail(round_entries=ROUND_ENTRIES)
    tail.load(connection, int(statements.meta(connection, "indexed_seq")))
    tail.begin_round()
    is_done = not tail.count
    while not is_done:
        batch = tail.next_batch(_INDEX_ROWS)
        assert batch is not None  # noqa: S101 - the round has not ended
        connection.execute("BEGIN IMMEDIATE")
        try:
            statements.index(connection, batch)
            connection.execute("COMMIT")
        finally:
            connection.rollback()  # without effect after the commit
        tail.remove(batch)
        is_done = batch.upto is not None


def _identity(connection: Connection) -> SourceIdentity:
    """Fingerprint the file: a bridge that used it meanwhile has changed one of these."""
    facts = connection.execute(
        "SELECT (SELECT coalesce(min(seq), 0) || '-' || coalesce(max(seq), 0)"
        " FROM messages), (SELECT count(*) || '/' || coalesce(sum(first), 0) FROM users),"
        " (SELECT coalesce(sum(delivered), 0) FROM heads),"
        " (SELECT count(*) || '/' || coalesce(sum(length(revocation)), 0) FROM revocations)"
    ).fetchone()
    facts += connection.execute(
        "SELECT coalesce(max(offset), '') || '/' || coalesce(sum(offset), ''),"
        " (SELECT count(*) FROM retained), (SELECT coalesce(sum(id), 0) FROM receipts),"
        " (SELECT coalesce(sum(id), 0) FROM events WHERE is_confirmed = 0) FROM sparse"
    ).fetchone()
    return SourceIdentity(
        epoch=str(statements.meta(connection, "epoch")),
        contents=" ".join(map(str, facts)),
        forgotten=int(statements.meta(connection, "forgotten")),
    )
