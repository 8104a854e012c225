"""
Statements that read or change many rows at once, in a transaction of the writer.

A statement for many rows is one call of SQLite. With a call per row, the thread would
release and acquire Python's global lock a hundred times per batch, and with a busy event
loop it would wait up to 5 ms for the lock each time.
"""

from collections.abc import Iterator, Sequence
from sqlite3 import Connection
from typing import Any, Final

from bridge.core.clock_reading import ClockReading
from bridge.core.revocation import Revocation, parse_revocation
from bridge.enums import SyncReason
from bridge.inbox.sqlite.unindexed import BLOCK, IndexBatch

Row = tuple[Any, ...]

_ROWS: Final = 32  # the most in a statement; a power of two
_MESSAGE_COLUMNS: Final = (
    "seq", "user_id", "offset", "prev", "taken_s", "event", "data",
    "deadline_s", "seen_s", "message_id",
)  # fmt: skip
_SPARSE_COLUMNS: Final = (
    "user_id", "offset", "taken_s", "event", "data", "deadline_s", "message_id", "key",
)  # fmt: skip
_REQUIRED_COLUMNS: Final = {_MESSAGE_COLUMNS: 7, _SPARSE_COLUMNS: 5}
# The most rows that one step of a sweep deletes.
_SWEEP_ROWS: Final = 500
_SWEEP_IDS: Final = 2000
_SWEEP_USERS: Final = 500
_LAST_KEY: Final = (2**63 - 1, "")

# Of a sparse inbox: what has not been deleted from it (the table also has retained messages).
_IN_INBOX: Final = (
    "FROM sparse WHERE user_id = ?1 AND offset > (SELECT gone FROM users WHERE id = ?1)"
)
_NOT_RETAINED: Final = (
    "NOT EXISTS (SELECT 1 FROM retained WHERE retained.user_id = sparse.user_id"
    " AND retained.event = sparse.event AND retained.key = sparse.key)"
)


def meta(connection: Connection, name: str) -> str | int:
    """Return the value of `name` in the table `bridge`."""
    value: str | int = connection.execute(
        "SELECT value FROM bridge WHERE name = ?", (name,)
    ).fetchone()[0]
    return value


def optional_meta(connection: Connection, name: str) -> str | None:
    """Return the text of `name` in the table `bridge`; ``None`` if it is not there."""
    row = connection.execute(
        "SELECT value FROM bridge WHERE name = ?", (name,)
    ).fetchone()
    return None if row is None else str(row[0])


def revocations(connection: Connection) -> list[Revocation]:
    """Return all revocations, those too that are over."""
    rows = connection.execute("SELECT revocation FROM revocations")
    return [parse_revocation(text) for (text,) in rows]


def insert(
    connection: Connection,
    head: str,
    values: Sequence[object],
    *,
    columns: int,
    tail: str = "",
) -> None:
    """Insert rows of `columns` values each, given as one flat sequence."""
    for rows, some in _in_groups(values, columns):
        connection.execute(f"{head} VALUES {rows}{tail}", some)


def insert_messages(connection: Connection, values: list[object]) -> None:
    """Insert rows of the table `messages`, given as one flat list, which is changed."""
    _insert_present(connection, "INSERT INTO messages", _MESSAGE_COLUMNS, values)


def insert_sparse(connection: Connection, values: list[object]) -> None:
    """Insert rows of the table `sparse` as `insert_messages` does; they replace others."""
    head = "INSERT OR REPLACE INTO sparse"
    _insert_present(connection, head, _SPARSE_COLUMNS, values)


def _insert_present(
    connection: Connection, head: str, names: tuple[str, ...], values: list[object]
) -> None:
    """
    Insert rows without the columns that none of them has.

    The module sqlite3 looks for an adapter of each value except numbers, texts and
    bytearrays, which takes longer than to bind it. So the data are bytearrays, and columns
    that no row has are left out.
    """
    columns = list(names)
    count = len(values) // len(columns)
    for number in reversed(range(_REQUIRED_COLUMNS[names], len(columns))):
        if values[number :: len(columns)].count(None) == count:
            del values[number :: len(columns)]
            del columns[number]
    insert(connection, f"{head} ({', '.join(columns)})", values, columns=len(columns))


def _in_groups(
    values: Sequence[object], columns: int
) -> Iterator[tuple[str, Sequence[object]]]:
    """
    Divide rows of `columns` values each, given as one flat sequence, among statements.

    Yields:
        The question marks of the rows of a statement, and their values. The numbers of rows
        are powers of two, so few different statements are prepared.

    """
    row = f"({', '.join('?' * columns)})"
    start, left, rows = 0, len(values) // columns, _ROWS
    while left:
        while rows > left:
            rows //= 2
        stop = start + rows * columns
        yield ", ".join([row] * rows), values[start:stop]
        start, left = stop, left - rows


def find_users(connection: Connection, users: Sequence[str]) -> Iterator[Row]:
    """
    Yield what is stored about those of `users` who have a row, without unindexed entries.

    Yields:
        Name, id, first offset (-1 if the inbox is sparse), offset and seq of the newest message.

    """
    for rows, some in _in_groups(users, 1):
        yield from connection.execute(
            f"WITH asked (user) AS (VALUES {rows})"  # noqa: S608 - question marks
            " SELECT user, id, CASE WHEN sparse_after IS NULL THEN first ELSE -1 END,"
            " coalesce(last, forgotten), coalesce(seq, 0)"
            " FROM asked CROSS JOIN users USING (user) LEFT JOIN heads ON user_id = id",
            some,
        )


def add_users(connection: Connection, users: Sequence[str]) -> Iterator[Row]:
    """Add `users`; yield the name, the id and the offset before the first of each."""
    for rows, some in _in_groups(users, 1):
        yield from connection.execute(
            f"WITH asked (user) AS (VALUES {rows})"  # noqa: S608 - question marks
            " INSERT INTO users (user, first, forgotten)"
            " SELECT user, value + 1, value FROM asked CROSS JOIN bridge"
            " WHERE name = 'forgotten' RETURNING user, id, forgotten",
            some,
        ).fetchall()


def find_ids(
    connection: Connection, keys: Sequence[tuple[int, str]], oldest_s: float
) -> Iterator[tuple[int, str]]:
    """Yield the `keys` (user id, message id) that were stored since `oldest_s`."""
    for rows, some in _in_groups([value for key in keys for value in key], 2):
        yield from connection.execute(
            f"WITH asked (user_id, message_id) AS (VALUES {rows})"  # noqa: S608 - question marks
            " SELECT user_id, message_id FROM asked CROSS JOIN seen"
            " USING (user_id, message_id) WHERE seen_s >= ?",
            (*some, oldest_s),
        )


def index(connection: Connection, batch: IndexBatch) -> None:
    """Write index rows. After a crash some are written a second time, without effect."""
    insert(
        connection,
        "INSERT INTO heads",
        batch.heads,
        columns=4,
        # The values only grow; 0 means unchanged.
        tail=" ON CONFLICT (user_id) DO UPDATE SET last = max(last, excluded.last),"
        " seq = max(seq, excluded.seq), delivered = max(delivered, excluded.delivered)",
    )
    insert(connection, "INSERT OR REPLACE INTO places", batch.places, columns=3)
    insert(connection, "INSERT OR REPLACE INTO seen", batch.seen, columns=3)
    if batch.upto is not None:
        seq, marks_id = batch.upto
        connection.execute(
            "UPDATE bridge SET value = ? WHERE name = 'indexed_seq'", (seq,)
        )
        connection.execute("DELETE FROM marks WHERE id <= ?", (marks_id,))


def oldest_unindexed_s(connection: Connection) -> float | None:
    """Return when the oldest unindexed message was received; ``None`` if all are indexed."""
    row = connection.execute(
        "SELECT taken_s FROM messages WHERE seq > ? ORDER BY seq LIMIT 1",
        (meta(connection, "indexed_seq"),),
    ).fetchone()
    return None if row is None else row[0]


def delete_before(connection: Connection, user_id: int, upto: int) -> None:
    """
    Delete one user's messages below the offset `upto`, which are over the limit.

    Unindexed messages stay, because the tail is read back from them. The rest of a block
    is deleted with the next block.
    """
    key = (user_id, upto, meta(connection, "indexed_seq"))
    connection.execute(
        "WITH RECURSIVE old (seq) AS ("  # noqa: S608 - a number
        "SELECT seq FROM places WHERE user_id = ?1 AND offset < ?2 AND seq <= ?3"
        " UNION ALL"
        " SELECT prev FROM old CROSS JOIN messages USING (seq)"
        f" WHERE user_id = ?1 AND offset % {BLOCK} <> 1)"
        " DELETE FROM messages WHERE seq IN old",
        key,
    )
    connection.execute(
        "DELETE FROM places WHERE user_id = ? AND offset < ? AND seq <= ?", key
    )
    connection.execute(
        "UPDATE users SET first = ?, trimmed_for = ? WHERE id = ? AND first < ?1",
        (upto, SyncReason.LIMIT, user_id),
    )


def delete_older(connection: Connection, oldest_s: float) -> bool:
    """
    Delete some messages received before `oldest_s`; return whether there may be more.

    The rows of their users are not updated: readers recognize deleted messages by the
    place where a user's chain breaks off.
    """
    upto_seq = count = 0
    block_ends: list[tuple[int, int]] = []
    for seq, user_id, offset, taken_s in connection.execute(
        "SELECT seq, user_id, offset, taken_s FROM messages WHERE seq <= ?"
        " ORDER BY seq LIMIT ?",
        (meta(connection, "indexed_seq"), _SWEEP_ROWS),
    ):
        if taken_s >= oldest_s:
            break
        upto_seq = seq
        count += 1
        if not offset % BLOCK:
            block_ends.append((user_id, offset))
    connection.execute("DELETE FROM messages WHERE seq <= ?", (upto_seq,))
    connection.executemany(
        "DELETE FROM places WHERE user_id = ? AND offset = ?", sorted(block_ends)
    )
    return count == _SWEEP_ROWS


def trim_sparse(
    connection: Connection, user_id: int, max_messages: int
) -> tuple[int, int]:
    """Delete one sparse inbox's messages over the limit; count those left and deleted."""
    count: int = connection.execute(
        f"SELECT count(*) {_IN_INBOX}",
        (user_id,),
    ).fetchone()[0]
    excess = max(0, count - max_messages)
    if excess:
        (upto,) = connection.execute(
            f"SELECT offset {_IN_INBOX} ORDER BY offset LIMIT 1 OFFSET ?2",
            (user_id, excess - 1),
        ).fetchone()
        _delete_sparse(connection, user_id, upto, SyncReason.LIMIT)
    return count - excess, excess


def delete_old_sparse(
    connection: Connection, after: int, oldest_s: float, now: ClockReading
) -> int | None:
    """
    Delete messages received before `oldest_s`, and retain none past its deadline.

    Returns:
        The `after` of the next call; ``None`` at the end.

    """
    user_ids: list[int] = [
        row[0]
        for row in connection.execute(
            "SELECT id FROM users WHERE sparse_after IS NOT NULL AND id > ?"
            " ORDER BY id LIMIT ?",
            (after, _SWEEP_USERS),
        )
    ]
    for user_id in user_ids:
        _drop_expired(connection, user_id, now)
        upto = None
        for offset, taken_s in connection.execute(
            f"SELECT offset, taken_s {_IN_INBOX} ORDER BY offset",
            (user_id,),
        ):
            if taken_s >= oldest_s:
                break
            upto = offset
        if upto is not None:
            _delete_sparse(connection, user_id, upto, SyncReason.EXPIRED)
    return user_ids[-1] if len(user_ids) == _SWEEP_USERS else None


def _delete_sparse(
    connection: Connection, user_id: int, upto: int, reason: SyncReason
) -> None:
    connection.execute(
        f"DELETE FROM sparse WHERE user_id = ? AND offset <= ? AND {_NOT_RETAINED}",  # noqa: S608 - no input
        (user_id, upto),
    )
    connection.execute(
        "UPDATE users SET gone = ?, trimmed_for = ? WHERE id = ?",
        (upto, reason, user_id),
    )


def retained_keys(connection: Connection, user_id: int) -> set[tuple[str, str]]:
    """Return event and key of all that is retained for a user."""
    query = "SELECT event, key FROM retained WHERE user_id = ?"
    return set(connection.execute(query, (user_id,)))


def _drop_expired(connection: Connection, user_id: int, now: ClockReading) -> None:
    expired = [
        (user_id, event, key)
        for event, key, deadline_s, taken_s in connection.execute(
            "SELECT event, key, deadline_s, taken_s FROM retained"
            " CROSS JOIN sparse USING (user_id, event, key)"
            " WHERE user_id = ? AND deadline_s IS NOT NULL",
            (user_id,),
        ).fetchall()
        if now.has_passed(deadline_s, since_s=taken_s)
    ]
    connection.executemany(
        "DELETE FROM retained WHERE user_id = ? AND event = ? AND key = ?", expired
    )
    if expired:
        connection.execute(
            "DELETE FROM sparse WHERE user_id = ?1 AND"  # noqa: S608 - no input
            f" offset <= (SELECT gone FROM users WHERE id = ?1) AND {_NOT_RETAINED}",
            (user_id,),
        )


def delete_old_ids(
    connection: Connection, after: tuple[int, str], oldest_s: float
) -> tuple[int, str] | None:
    """Delete some ids stored before `oldest_s`; return the `after` of the next call."""
    upto: tuple[int, str] | None = connection.execute(
        "SELECT user_id, message_id FROM seen WHERE (user_id, message_id) > (?, ?)"
        " ORDER BY user_id, message_id LIMIT 1 OFFSET ?",
        (*after, _SWEEP_IDS - 1),
    ).fetchone()
    connection.execute(
        "DELETE FROM seen WHERE (user_id, message_id) > (?, ?)"
        " AND (user_id, message_id) <= (?, ?) AND seen_s < ?",
        (*after, *(upto or _LAST_KEY), oldest_s),
    )
    return upto


def find_idle(
    connection: Connection, after: int
) -> tuple[list[tuple[int, str, int]], int | None]:
    """
    Return those of the next users after the id `after` who have no messages and no ids.

    Unindexed entries are not considered.

    Returns:
        Id, name and last offset of each, and the `after` of the next call; ``None`` at
        the end.

    """
    upto: tuple[int] | None = connection.execute(
        "SELECT id FROM users WHERE id > ? ORDER BY id LIMIT 1 OFFSET ?",
        (after, _SWEEP_USERS - 1),
    ).fetchone()
    found = connection.execute(
        "SELECT id, user, max(coalesce(last, 0), forgotten)"
        " FROM users LEFT JOIN heads ON user_id = id WHERE id > ? AND id <= ?"
        " AND NOT EXISTS (SELECT 1 FROM messages WHERE messages.seq = heads.seq)"
        " AND NOT EXISTS (SELECT 1 FROM seen WHERE seen.user_id = id)"
        " AND NOT EXISTS (SELECT 1 FROM sparse WHERE sparse.user_id = id)",
        (after, upto[0] if upto else _LAST_KEY[0]),
    ).fetchall()
    return found, upto[0] if upto else None


def forget_users(
    connection: Connection, user_ids: Sequence[int], forgotten: int
) -> None:
    """Delete the rows of users; offsets of new users start above `forgotten`."""
    keys = [(user_id,) for user_id in user_ids]
    connection.executemany("DELETE FROM users WHERE id = ?", keys)
    connection.executemany("DELETE FROM heads WHERE user_id = ?", keys)
    connection.executemany("DELETE FROM places WHERE user_id = ?", keys)
    connection.execute(
        "UPDATE bridge SET value = max(value, ?) WHERE name = 'forgotten'", (forgotten,)
    )
