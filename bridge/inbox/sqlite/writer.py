"""
Write transactions, run in the writer's thread: append, index, trim, delete.

Calls that are queued together share one transaction, and so one wait for the disk. If it
fails because of the store, all of them fail. If it fails because of the arguments of one
call, each call is run alone, so the others succeed.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from sqlite3 import Connection, Error
from typing import Any, Final

import orjson

from bridge.clock import SteadyClock
from bridge.core.message import Message
from bridge.core.replay import forgotten_above
from bridge.core.revocation import Revocation
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import REFUSED, Retention
from bridge.inbox.sqlite import statements
from bridge.inbox.sqlite.chain import MessageChain
from bridge.inbox.sqlite.database_thread import DatabaseCall
from bridge.inbox.sqlite.file import StoreFile
from bridge.inbox.sqlite.receipts import SqliteReceipts
from bridge.inbox.sqlite.unindexed import (
    BLOCK,
    HEAD,
    IndexBatch,
    UnindexedEntries,
    UnindexedTail,
    UserTail,
)

# Users whose row is cached in memory, some 20 MB at most.
_USERS_MAX: Final = 100_000
# Users whose retained keys are cached, some 20 MB if each has 100.
_RETAINED_USERS_MAX: Final = 500
# Rows to index for each message or mark that is stored. A message or mark makes at most
# two rows, so with three a round ends before the next one is due.
_INDEX_RATE: Final = 3
_INDEX_MIN: Final = 100
# The most that one append deletes of one user: this many rows, or this many times the
# messages added. An append must be able to delete more than it adds, or the messages of
# one busy user would grow without bound.
_TRIM_ROWS: Final = 500
_TRIM_RATE: Final = 2
# A sweep indexes this many rows at a time, and starts a round at least this often.
_SWEEP_ENTRIES: Final = 500
_ROUND_INTERVAL_S: Final = 3600.0


class SparseRows:
    """
    The messages of one append that belong to sparse inboxes.

    Attributes:
        seen_s: When they are stored.
        values: The rows of the table `sparse`, flat.
        log: User id, offset, seq before it, and message id of each.
        first: For inboxes that become sparse: the newest offset before that, and the user id.
        users: The names of the users.

    """

    def __init__(self, seen_s: float) -> None:
        self.seen_s = seen_s
        self.values: list[object] = []
        self.log: list[tuple[int, int, int, str | None]] = []
        self.first: list[tuple[int, int]] = []
        self.users: set[str] = set()

    def add(self, user_id: int, offset: int, seq: int, message: Message) -> None:
        """Add a message after the message `seq`."""
        options = message.options
        self.values += (
            user_id, offset, message.taken_s, message.event, bytearray(message.data),
            message.deadline_s, message.id, None if options is None else options.key,
        )  # fmt: skip
        self.log.append((user_id, offset, seq, message.id))
        self.users.add(message.user)


class SqliteWriter:
    """
    The runner of the writer's thread; every change of the file is made here.

    `problem` says why the last transaction failed because of the store; ``None`` if it
    did not. `trimmed` counts the messages that were over the limit of their inbox. Both may
    be read in any thread. `receipts` are those of tracked messages.
    """

    def __init__(
        self,
        file: StoreFile,
        tail: UnindexedTail,
        *,
        retention: Callable[[], Retention],
        clock: SteadyClock,
    ) -> None:
        self.problem: str | None = None
        self.trimmed = 0
        self._file = file
        self._tail = tail
        self._retention = retention
        self._clock = clock
        self._users: dict[str, bytes] = {}  # packed as HEAD, by name
        self._seq = 0
        self._committed_seq = 0
        self._index_budget = 0  # rows
        # Of sparse inboxes by user id, at least: messages added since they were counted.
        self._sparse_counts: dict[int, int] = {}
        # Of inboxes at the limit by user id: the first message, until a sweep deletes some.
        self._first_kept: dict[int, int] = {}
        # Event and key of what is retained, by user id.
        self._retained: dict[int, set[tuple[str, str]]] = {}
        self.receipts = SqliteReceipts(
            tail, head_of=self._head_of, retention=retention, clock=clock
        )
        self._last_round_s = self._clock.real_s()
        # Of the current transaction:
        self._added = UnindexedEntries()
        self._trimmed = 0
        self._marks_id = 0
        self._index_batch: IndexBatch | None = None

    # --- as a runner of calls

    def open_connection(self) -> Connection:
        """Lock and open the file, and read back its unindexed entries."""
        connection = self._file.connect_writer()
        try:
            indexed_seq = int(statements.meta(connection, "indexed_seq"))
            self._seq = self._tail.load(connection, indexed_seq)
            self._clock.resume(statements.optional_meta(connection, "clock"))
            self.receipts.begin(connection)
        except BaseException as exc:
            self.close_connection(connection)
            if isinstance(exc, Error):
                raise self._file.translate(exc) from exc
            raise
        self._committed_seq = self._seq
        return connection

    def close_connection(self, connection: Connection) -> None:
        """Close the connection, which checkpoints the write-ahead log, and unlock."""
        try:
            connection.close()
        finally:
            self._file.release()

    def run(self, connection: Connection, calls: Sequence[DatabaseCall[Any]]) -> None:
        """Run `calls` in one transaction, or each in its own if one of them fails."""
        try:
            results = self._transact(connection, calls)
        except Exception as exc:  # noqa: BLE001 - raised to the caller; the thread continues
            error = self._file.translate(exc)
            if isinstance(error, StoreUnavailableError):
                self.problem = error.problem
            elif len(calls) > 1:
                for call in calls:
                    self.run(connection, (call,))
                return
            if error is not exc:
                error.__cause__ = exc
            for call in calls:
                call.fail(error)
        else:
            self.problem = None
            for call, result in zip(calls, results, strict=True):
                call.finish(result)

    def _transact(
        self, connection: Connection, calls: Sequence[DatabaseCall[Any]]
    ) -> list[Any]:
        is_committed = False
        if connection.in_transaction:  # the rollback of the last one failed
            connection.rollback()
        try:
            connection.execute("BEGIN IMMEDIATE")
            self.receipts.begin(connection)
            results = [call.work(connection) for call in calls]
            self._index(connection)
            # A file that was deleted or replaced accepts commits, and they are lost.
            self._file.verify()
            connection.execute("COMMIT")
            is_committed = True
        finally:
            if is_committed:
                self._after_commit()
            else:
                self._after_rollback()
                connection.rollback()
        return results

    def _after_commit(self) -> None:
        """Show the commit to readers, before any caller receives its result."""
        if self._index_batch is not None:
            self._tail.remove(self._index_batch)
            if self._index_batch.upto is not None:
                self._last_round_s = self._clock.real_s()
        self._tail.add(self._added, seq=self._seq, marks_id=self._marks_id)
        self._committed_seq = self._seq
        self.trimmed += self._trimmed
        self.receipts.after_commit()
        self._index_budget += _INDEX_RATE * self._added.count
        self._reset_transaction()
        while len(self._users) > _USERS_MAX:
            del self._users[next(iter(self._users))]
        if len(self._retained) > _RETAINED_USERS_MAX:
            self._retained.clear()

    def _after_rollback(self) -> None:
        self._users.clear()
        self._first_kept.clear()
        self._retained.clear()
        self._seq = self._committed_seq
        self.receipts.after_rollback()
        self._reset_transaction()

    def _reset_transaction(self) -> None:
        self._added = UnindexedEntries()
        self._trimmed = 0
        self._marks_id = 0
        self._index_batch = None

    # --- writes

    def append(
        self, connection: Connection, messages: Sequence[Message]
    ) -> list[int | None]:
        """Store `messages`; return the offset of each, ``None`` for a duplicate."""
        now = self._clock.read()
        retention = self._retention()
        limit = retention.max_messages
        users = self._users
        self._load_or_add_users(connection, messages)
        seen = self._seen_ids(connection, messages, now.ago(retention.dedupe_s))
        added = self._added
        unpack, pack = HEAD.unpack, HEAD.pack
        over_limit: dict[str, int] = {}  # messages added, by user
        sparse = SparseRows(now.now_s)
        offsets: list[int | None] = []
        values: list[object] = []
        seq = self._seq
        for message in messages:
            user_id, first, last, prev = unpack(users[message.user])
            seen_s = None
            if message.id is not None:
                key = (user_id, message.id)
                if key in seen:
                    offsets.append(None)
                    continue
                seen.add(key)
                added.ids[key] = seen_s = now.now_s
            options = message.options
            if first < 0 or (options is not None and options.key is not None):
                user = (user_id, first, last, prev)
                offsets.append(
                    self._add_sparse(connection, message, user, sparse, seen)
                )
                continue
            seq += 1
            offset = last + 1
            offsets.append(offset)
            values += (
                seq, user_id, offset, prev or None, message.taken_s, message.event,
                bytearray(message.data), message.deadline_s, seen_s, message.id,
            )  # fmt: skip
            head = users[message.user] = pack(user_id, first, offset, seq)
            added.heads[user_id] = head
            if not offset % BLOCK:
                added.blocks.setdefault(user_id, []).append((offset, seq))
            if offset - first >= limit:
                over_limit[message.user] = over_limit.get(message.user, 0) + 1
        added.count += seq - self._seq + len(sparse.log)
        self._seq = seq
        statements.insert_messages(connection, values)
        self.receipts.add(connection, messages, offsets)
        if sparse.log:
            self._append_sparse(connection, sparse, limit)
        if over_limit:
            self._keep_limit(connection, over_limit, limit)
        return offsets

    def write_background(
        self,
        connection: Connection,
        marks: Mapping[str, int],
        ended_trials: Collection[bytes],
    ) -> None:
        """Move the delivered marks of existing users forward, and delete trials."""
        pairs: dict[int, int] = {}
        unknown = [user for user in marks if user not in self._users]
        self._load_users(connection, unknown)
        for user, offset in marks.items():
            head = self._users.get(user)
            if head is not None:
                user_id, _, last, _ = HEAD.unpack(head)
                pairs[user_id] = min(offset, last)
        if pairs:
            self._insert_marks(connection, list(pairs.items()))
            self._added.marks.update(pairs)
            self._added.count += len(pairs)
        connection.executemany(
            "DELETE FROM trials WHERE key = ?", [(key,) for key in ended_trials]
        )

    def _insert_marks(
        self,
        connection: Connection,
        marks: Sequence[tuple[int, int]],
        sparse: object = None,
    ) -> None:
        self._marks_id = max(self._marks_id + 1, self._tail.next_marks_id)
        text = None if sparse is None else orjson.dumps(sparse)
        connection.execute(
            "INSERT INTO marks VALUES (?, ?, ?)",
            (self._marks_id, orjson.dumps(marks), text),
        )

    def _add_sparse(
        self,
        connection: Connection,
        message: Message,
        user: tuple[int, int, int, int],
        rows: SparseRows,
        seen: set[tuple[int, str]],
    ) -> int:
        """Add a message of `user` (as in `HEAD`) to `rows`; return its offset, or `REFUSED`."""
        user_id, first, last, prev = user
        if not self._retain(connection, user_id, message):
            if message.id is not None:
                seen.remove((user_id, message.id))
                del self._added.ids[user_id, message.id]
            return REFUSED
        if first >= 0:
            rows.first.append((last, user_id))
        offset = last + 1
        rows.add(user_id, offset, prev, message)
        head = self._users[message.user] = HEAD.pack(user_id, -1, offset, prev)
        self._added.heads[user_id] = head
        return offset

    def _append_sparse(
        self, connection: Connection, rows: SparseRows, max_messages: int
    ) -> None:
        """
        Insert messages of sparse inboxes, which replaces those with the same key.

        Then delete those that are over the limit.
        """
        connection.executemany(
            "UPDATE users SET sparse_after = ? WHERE id = ?", rows.first
        )
        statements.insert_sparse(connection, rows.values)
        self._insert_marks(connection, (), (rows.seen_s, rows.log))
        self.receipts.push_out(connection, rows.users)
        counts = self._sparse_counts
        for user_id, *_ in rows.log:
            counts[user_id] = counts.get(user_id, 0) + 1
            if counts[user_id] > max_messages + max(BLOCK, max_messages // 8):
                counts[user_id], deleted = statements.trim_sparse(
                    connection, user_id, max_messages
                )
                self._trimmed += deleted
        if len(counts) > _USERS_MAX:
            counts.clear()

    def _retain(self, connection: Connection, user_id: int, message: Message) -> bool:
        """Note whether the key of `message` is retained; false if it is one too many."""
        options = message.options
        if options is None or not (options.is_retained or options.is_cleared):
            return True
        kept = self._retained.get(user_id)
        if kept is None:
            kept = statements.retained_keys(connection, user_id)
            self._retained[user_id] = kept
        place = (message.event, options.key or "")
        if options.is_cleared and place in kept:
            kept.remove(place)
            statement = "DELETE FROM retained WHERE (user_id, event, key) = (?, ?, ?)"
        elif options.is_retained and place not in kept:
            if len(kept) >= self._retention().max_retained:
                return False
            kept.add(place)
            statement = "INSERT INTO retained VALUES (?, ?, ?)"
        else:
            return True
        connection.execute(statement, (user_id, *place))
        return True

    def note_trial(self, connection: Connection, key: bytes, *, is_first: bool) -> int:
        """Count a trial of this key; `is_first` discards the trials before it."""
        found = connection.execute("SELECT count FROM trials WHERE key = ?", (key,))
        row = None if is_first else found.fetchone()
        count = 1 if row is None else int(row[0]) + 1
        connection.execute(
            "INSERT OR REPLACE INTO trials VALUES (?, ?, ?)",
            (key, count, self._clock.read().now_s),
        )
        return count

    def read_revocations(self, connection: Connection) -> Sequence[Revocation]:
        """Return all revocations."""
        return statements.revocations(connection)

    def revoke(self, connection: Connection, revocation: Revocation) -> None:
        """Store a revocation."""
        connection.execute(
            "INSERT OR IGNORE INTO revocations VALUES (?)", (revocation.render(),)
        )

    def drop_revocations(self, connection: Connection) -> None:
        """Delete the revocations that are over."""
        now = self._clock.read()
        over = [
            each for each in statements.revocations(connection) if each.is_over(now)
        ]
        connection.executemany(
            "DELETE FROM revocations WHERE revocation = ?",
            [(each.render(),) for each in over],
        )

    def probe(self, connection: Connection) -> None:
        """Write a value without meaning, to find out whether the file can be written."""
        connection.execute(
            "INSERT OR REPLACE INTO bridge VALUES ('probed_s', ?)",
            (self._clock.read().now_s,),
        )

    def store_clock(self, connection: Connection) -> None:
        """Store a reading of the clock, which the next bridge resumes."""
        connection.execute(
            "INSERT OR REPLACE INTO bridge VALUES ('clock', ?)",
            (self._clock.read().render(),),
        )

    def sweep_unindexed(self, connection: Connection) -> bool:
        """
        Index some of the tail if a round is overdue; return whether there may be more.

        Unindexed messages cannot be deleted, neither for their age nor over the limit. At
        a low message rate it would take weeks until a round starts by size.
        """
        if not self._tail.count:
            return False
        taken_s = statements.oldest_unindexed_s(connection)
        oldest_s = self._clock.read().ago(self._retention().max_age_s)
        is_old = taken_s is not None and taken_s < oldest_s
        if not is_old and self._clock.real_s() - self._last_round_s < _ROUND_INTERVAL_S:
            return False
        self._tail.begin_round()
        self._index_budget = max(self._index_budget, _SWEEP_ENTRIES)
        return True

    def sweep_messages(self, connection: Connection) -> bool:
        """Delete some messages and trials that are too old; return whether more may be."""
        oldest_s = self._clock.read().ago(self._retention().max_age_s)
        connection.execute("DELETE FROM trials WHERE noted_s < ?", (oldest_s,))
        self._first_kept.clear()
        return statements.delete_older(connection, oldest_s)

    def sweep_sparse(self, connection: Connection, after: int) -> int | None:
        """Delete old messages of sparse inboxes; arguments and result as `sweep_ids`."""
        now = self._clock.read()
        oldest_s = now.ago(self._retention().max_age_s)
        self._retained.clear()
        return statements.delete_old_sparse(connection, after, oldest_s, now)

    def sweep_ids(
        self, connection: Connection, after: tuple[int, str]
    ) -> tuple[int, str] | None:
        """Delete old ids above the key `after`; return the next key, ``None`` at the end."""
        oldest_s = self._clock.read().ago(self._retention().dedupe_s)
        return statements.delete_old_ids(connection, after, oldest_s)

    def forget_idle(
        self, connection: Connection, after: int, is_followed: Callable[[str], bool]
    ) -> tuple[Sequence[str], int | None]:
        """
        Delete some users who have no messages, no ids and no windows.

        Returns:
            Their names, and the `after` of the next call; ``None`` at the end.

        """
        found, following = statements.find_idle(connection, after)
        added = self._added
        idle = [
            row
            for row in found
            if not is_followed(row[1])
            and row[1] not in self.receipts.open
            and self._tail.of(row[0]) == UserTail()
            and row[0] not in added.heads
            and row[0] not in added.marks
        ]
        if idle:
            forgotten = forgotten_above(max(last for _, _, last in idle))
            statements.forget_users(connection, [row[0] for row in idle], forgotten)
        for _, user, _ in idle:
            self._users.pop(user, None)
        return [user for _, user, _ in idle], following

    # --- users

    def _load_or_add_users(
        self, connection: Connection, messages: Sequence[Message]
    ) -> None:
        users = self._users
        unknown = {each.user: None for each in messages if each.user not in users}
        if unknown:
            self._load_users(connection, list(unknown))
            new = [user for user in unknown if user not in users]
            for user, user_id, before in statements.add_users(connection, new):
                users[user] = HEAD.pack(user_id, before + 1, before, 0)

    def _load_users(self, connection: Connection, users: Sequence[str]) -> None:
        for user, user_id, first, *head in statements.find_users(connection, users):
            last, seq = map(max, head, self._tail.of(user_id).head)
            self._users[user] = HEAD.pack(user_id, first, last, seq)

    def _head_of(self, connection: Connection, user: str) -> bytes | None:
        if user not in self._users:
            self._load_users(connection, (user,))
        return self._users.get(user)

    # --- ids

    def _seen_ids(
        self,
        connection: Connection,
        messages: Sequence[Message],
        oldest_s: float,
    ) -> set[tuple[int, str]]:
        """Return the ids of `messages` that were stored since `oldest_s`."""
        seen: set[tuple[int, str]] = set()
        unknown: list[tuple[int, str]] = []
        added_ids = self._added.ids
        for message in messages:
            if message.id is None:
                continue
            key = (HEAD.unpack(self._users[message.user])[0], message.id)
            seen_s = added_ids.get(key) or self._tail.seen_s(*key)
            if seen_s is None:
                unknown.append(key)
            elif seen_s >= oldest_s:
                seen.add(key)
        seen.update(statements.find_ids(connection, unknown, oldest_s))
        return seen

    # --- the index

    def _index(self, connection: Connection) -> None:
        """Index a part of the tail, in proportion to the messages stored."""
        if self._index_budget < min(_INDEX_MIN, self._tail.round_entries):
            return
        self._index_batch = self._tail.next_batch(self._index_budget)
        self._index_budget = 0
        if self._index_batch is not None:
            statements.index(connection, self._index_batch)

    def _keep_limit(
        self, connection: Connection, added: Mapping[str, int], limit: int
    ) -> None:
        """Count the messages that `added` ones moved over the limit; delete whole blocks."""
        self.receipts.push_out(connection, added)
        # At least one block above the limit, so that there is a whole block to delete.
        delete_from = limit + max(BLOCK, limit // 8)
        first_kept = self._first_kept
        for user, count in added.items():
            user_id, first, last, seq = HEAD.unpack(self._users[user])
            before = first_kept.get(user_id)
            if before is None:
                # Sweeps do not note what they delete: the chain shows what is left.
                chain = MessageChain(connection, user_id, seq, self._tail.of(user_id))
                before = chain.first_above(last - count - limit)
            after = first_kept[user_id] = max(before, last - limit + 1)
            self._trimmed += after - before
            if last - first >= delete_from:
                self._trim(
                    connection,
                    user,
                    max_messages=limit,
                    delete_max=max(_TRIM_ROWS, _TRIM_RATE * count),
                )

    def _trim(
        self,
        connection: Connection,
        user: str,
        *,
        max_messages: int,
        delete_max: int,
    ) -> None:
        """
        Delete the oldest messages of `user` above the limit, at most `delete_max`.

        Readers apply the limit themselves, so the deletion may lag behind.
        """
        user_id, first, last, seq = HEAD.unpack(self._users[user])
        before = min(last - max_messages + 1, first + delete_max)
        before -= (before - 1) % BLOCK  # whole blocks
        statements.delete_before(connection, user_id, before)
        self._users[user] = HEAD.pack(user_id, before, last, seq)
