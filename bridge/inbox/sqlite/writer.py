"""
What the writer's thread does: store, index, trim, forget, all in whole transactions.

What waits is done in one transaction, and so paid for with one wait for the disk. If it
fails because of the store, all of it fails; if it fails because of what one of the jobs
brought, each is done alone, so that the others do not suffer for it.
"""

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from time import time
from typing import Any, Final

import orjson

from bridge.core.message import Message
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.sqlite import statements
from bridge.inbox.sqlite.file import StoreFile
from bridge.inbox.sqlite.unindexed import BLOCK, HEAD, Fresh, Piece, Tail
from bridge.inbox.sqlite.worker_thread import Job

# Users whose row is kept in memory, some 20 MB at most.
_KNOWN_USERS: Final = 100_000
# For each message or mark, rows that are indexed: more than the two that it can make, so
# that a round comes to its end before the next one could begin.
_INDEX_RATE: Final = 3
_INDEX_LEAST: Final = 100
# The most that is deleted of one user in one go, unless more is added: with every go, more
# must be able to leave than came, or one busy user would grow without bound.
_TRIM_ROWS: Final = 500
_TRIM_RATE: Final = 2
# A sweep indexes so much in one go, and whatever waits at least so often.
_SWEEP_ENTRIES: Final = 500
_ROUND_EACH_S: Final = 3600.0


class Writing:
    """
    The writer's desk: all that changes the file goes through here.

    `problem` says why the last transaction failed because of the store; ``None`` if it
    did not. It may be read in any thread.
    """

    def __init__(
        self,
        file: StoreFile,
        tail: Tail,
        *,
        retention: Callable[[], Retention],
        now: Callable[[], float] = time,
    ) -> None:
        self.problem: str | None = None
        self.epoch = ""
        self._file = file
        self._tail = tail
        self._retention = retention
        self._now = now
        self._known: dict[str, bytes] = {}  # users, as HEAD has them
        self._seq = 0
        self._committed_seq = 0
        self._owed = 0
        self._rounded_s = now()  # when all that waited had been indexed
        # Of the transaction that is going on:
        self._fresh = Fresh()
        self._marks_id = 0
        self._piece: Piece | None = None

    # --- the desk

    def enter(self) -> sqlite3.Connection:
        """Take the file and read back what waits to be indexed."""
        connection = self._file.connect_writer()
        try:
            self.epoch = str(statements.meta(connection, "epoch"))
            indexed_seq = int(statements.meta(connection, "indexed_seq"))
            self._seq = self._tail.load(connection, indexed_seq)
        except BaseException as exc:
            self.leave(connection)
            if isinstance(exc, sqlite3.Error):
                raise self._file.error(exc) from exc
            raise
        self._committed_seq = self._seq
        return connection

    def leave(self, connection: sqlite3.Connection) -> None:
        """Close the file, which moves the write-ahead log into it, and let go of it."""
        try:
            connection.close()
        finally:
            self._file.release()

    def run(self, connection: sqlite3.Connection, jobs: Sequence[Job[Any]]) -> None:
        """Do `jobs` in one transaction, or each in its own if one of them cannot be."""
        try:
            results = self._transact(connection, jobs)
        except Exception as exc:  # noqa: BLE001 - handed to who waits; the thread lives on
            error = self._file.error(exc)
            if isinstance(error, StoreUnavailableError):
                self.problem = error.problem
            elif len(jobs) > 1:
                for job in jobs:
                    self.run(connection, (job,))
                return
            if error is not exc:
                error.__cause__ = exc
            for job in jobs:
                job.fail(error)
        else:
            self.problem = None
            for job, result in zip(jobs, results, strict=True):
                job.finish(result)

    def _transact(
        self, connection: sqlite3.Connection, jobs: Sequence[Job[Any]]
    ) -> list[Any]:
        is_committed = False
        if connection.in_transaction:  # the last one could not even be rolled back
            connection.rollback()
        try:
            connection.execute("BEGIN IMMEDIATE")
            results = [job.work(connection) for job in jobs]
            self._index(connection)
            self._file.verify()
            connection.execute("COMMIT")
            is_committed = True
        finally:
            if is_committed:
                self._keep()
            else:
                self._forget()
                connection.rollback()
        return results

    def _keep(self) -> None:
        """Let readers see what was committed, before anybody is told of it."""
        if self._piece is not None:
            self._tail.drop(self._piece)
            if self._piece.upto is not None:
                self._rounded_s = self._now()
        self._tail.add(self._fresh, seq=self._seq, marks_id=self._marks_id)
        self._committed_seq = self._seq
        self._owed += _INDEX_RATE * self._fresh.count
        self._end()
        while len(self._known) > _KNOWN_USERS:
            del self._known[next(iter(self._known))]

    def _forget(self) -> None:
        """Let memory be as the file is."""
        self._known.clear()
        self._seq = self._committed_seq
        self._end()

    def _end(self) -> None:
        self._fresh = Fresh()
        self._marks_id = 0
        self._piece = None

    # --- jobs

    def append(
        self, connection: sqlite3.Connection, messages: Sequence[Message]
    ) -> list[int | None]:
        """Store `messages`; the offset of each, ``None`` for a duplicate."""
        now_s = self._now()
        retention = self._retention()
        # A block more at least, so that there is a whole one to delete.
        limit = retention.max_messages + max(BLOCK, retention.max_messages // 8)
        known = self._known
        for message in messages:
            if message.user not in known:
                self._meet(connection, message.user)
        had = self._had(connection, messages, oldest_s=now_s - retention.dedupe_s)
        fresh = self._fresh
        unpack, pack = HEAD.unpack, HEAD.pack
        over: dict[str, int] = {}  # how many came to a user who has too much
        offsets: list[int | None] = []
        values: list[object] = []
        seq = self._seq
        for message in messages:
            user_id, first, last, prev = unpack(known[message.user])
            seen_s = None
            if message.id is not None:
                key = (user_id, message.id)
                if key in had:
                    offsets.append(None)
                    continue
                had.add(key)
                fresh.ids[key] = seen_s = now_s
            seq += 1
            offset = last + 1
            offsets.append(offset)
            values += (
                seq, user_id, offset, prev or None, message.taken_s,
                message.deadline_s, seen_s, message.id, message.event, message.data,
            )  # fmt: skip
            head = known[message.user] = pack(user_id, first, offset, seq)
            fresh.heads[user_id] = head
            if not offset % BLOCK:
                fresh.blocks.setdefault(user_id, []).append((offset, seq))
            if offset - first >= limit:
                over[message.user] = over.get(message.user, 0) + 1
        fresh.count += seq - self._seq
        self._seq = seq
        statements.insert(connection, "INSERT INTO messages", values, columns=10)
        for name, count in over.items():
            most = max(_TRIM_ROWS, _TRIM_RATE * count)
            self._trim(connection, name, max_messages=retention.max_messages, most=most)
        return offsets

    def run_errands(
        self,
        connection: sqlite3.Connection,
        marks: Mapping[str, int],
        forgotten: Collection[bytes],
    ) -> None:
        """Move delivered marks forward, where there is a user, and forget trials."""
        pairs: dict[int, int] = {}
        for name, offset in marks.items():
            user = self._known.get(name) or self._load(connection, name)
            if user is not None:
                user_id, _, last, _ = HEAD.unpack(user)
                pairs[user_id] = min(offset, last)
        if pairs:
            self._marks_id = self._tail.next_marks_id
            connection.execute(
                "INSERT INTO marks VALUES (?, ?)",
                (self._marks_id, orjson.dumps(list(pairs.items()))),
            )
            self._fresh.marks.update(pairs)
            self._fresh.count += len(pairs)
        connection.executemany(
            "DELETE FROM trials WHERE key = ?", [(key,) for key in forgotten]
        )

    def note_trial(
        self, connection: sqlite3.Connection, key: bytes, *, is_first: bool
    ) -> int:
        """Count a trial of this key; all before are forgotten if it `is_first`."""
        found = connection.execute("SELECT count FROM trials WHERE key = ?", (key,))
        row = None if is_first else found.fetchone()
        count = 1 if row is None else int(row[0]) + 1
        connection.execute(
            "INSERT OR REPLACE INTO trials VALUES (?, ?, ?)", (key, count, self._now())
        )
        return count

    def probe(self, connection: sqlite3.Connection) -> None:
        """Write something that means nothing, to see whether it can be."""
        connection.execute(
            "INSERT OR REPLACE INTO bridge VALUES ('probed_s', ?)", (self._now(),)
        )

    def sweep_waiting(self, connection: sqlite3.Connection) -> bool:
        """
        Index some of what waits, if it waited for too long; true if there may be more.

        What is not indexed cannot be deleted, neither for its age nor over the limit.
        When few messages come, a round would not begin by itself for weeks.
        """
        now_s = self._now()
        if not self._tail.count:
            return False
        taken_s = statements.oldest_waiting_s(connection)
        is_old = taken_s is not None and (taken_s < now_s - self._retention().max_age_s)
        if not is_old and now_s - self._rounded_s < _ROUND_EACH_S:
            return False
        self._tail.begin_round()
        self._owed = max(self._owed, _SWEEP_ENTRIES)
        return True

    def sweep_messages(self, connection: sqlite3.Connection) -> bool:
        """Delete some messages that are over their age; true if there may be more."""
        oldest_s = self._now() - self._retention().max_age_s
        connection.execute("DELETE FROM trials WHERE noted_s < ?", (oldest_s,))
        return statements.delete_older(connection, oldest_s)

    def sweep_ids(
        self, connection: sqlite3.Connection, after: tuple[int, str]
    ) -> tuple[int, str] | None:
        """Forget some ids behind the key `after`; the next key, ``None`` at the end."""
        oldest_s = self._now() - self._retention().dedupe_s
        return statements.forget_ids(connection, after, oldest_s)

    # --- users

    def _meet(self, connection: sqlite3.Connection, name: str) -> None:
        """Let a user be known, who may be new."""
        if self._load(connection, name) is None:
            user_id = connection.execute(
                "INSERT INTO users (user) VALUES (?)", (name,)
            ).lastrowid
            assert user_id is not None  # noqa: S101 - an INSERT has one
            self._known[name] = HEAD.pack(user_id, 1, 0, 0)

    def _load(self, connection: sqlite3.Connection, name: str) -> bytes | None:
        row = connection.execute(
            "SELECT id, first, coalesce(last, 0), coalesce(seq, 0)"
            " FROM users LEFT JOIN heads ON user_id = id WHERE user = ?",
            (name,),
        ).fetchone()
        if row is None:
            return None
        user_id, first, *head = row
        last, seq = max(self._tail.of(user_id).head, tuple(head))
        user = self._known[name] = HEAD.pack(user_id, first, last, seq)
        return user

    # --- ids

    def _had(
        self,
        connection: sqlite3.Connection,
        messages: Sequence[Message],
        *,
        oldest_s: float,
    ) -> set[tuple[int, str]]:
        """Find which of the ids of `messages` their users have had since `oldest_s`."""
        had: set[tuple[int, str]] = set()
        unknown: list[tuple[int, str]] = []
        fresh_ids = self._fresh.ids
        for message in messages:
            if message.id is None:
                continue
            key = (HEAD.unpack(self._known[message.user])[0], message.id)
            seen_s = fresh_ids.get(key) or self._tail.seen_s(*key)
            if seen_s is None:
                unknown.append(key)
            elif seen_s >= oldest_s:
                had.add(key)
        had.update(statements.find_ids(connection, unknown, oldest_s))
        return had

    # --- the index

    def _index(self, connection: sqlite3.Connection) -> None:
        """Index a piece of what waits, in proportion to what is stored."""
        if self._owed < min(_INDEX_LEAST, self._tail.round_entries):
            return
        self._piece = self._tail.next_piece(self._owed)
        self._owed = 0
        if self._piece is not None:
            statements.index(connection, self._piece)

    def _trim(
        self,
        connection: sqlite3.Connection,
        name: str,
        *,
        max_messages: int,
        most: int,
    ) -> None:
        """
        Delete what one user has too much, or the oldest `most` of it.

        Readers count themselves what is over the limit, so this may lag.
        """
        user_id, first, last, seq = HEAD.unpack(self._known[name])
        upto = min(last - max_messages + 1, first + most)
        upto -= (upto - 1) % BLOCK  # whole blocks
        statements.delete_before(connection, user_id, upto)
        self._known[name] = HEAD.pack(user_id, upto, last, seq)
