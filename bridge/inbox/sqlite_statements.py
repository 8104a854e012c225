"""
Statements that change or look up many rows at once, inside a writer's transaction.

A statement for many rows is one step for SQLite. With a step for each row, the thread
would give Python's lock away and ask for it back a hundred times a batch, and with a
busy event loop wait up to 5 ms for it each time.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Final

from bridge.inbox.sqlite_tail import Piece
from bridge.names import SyncReason

_ROWS: Final = 25
# The most that is deleted in one go.
_SWEEP_ROWS: Final = 500
_SWEEP_IDS: Final = 2000
_LAST_KEY: Final = (2**63 - 1, "")


def meta(connection: sqlite3.Connection, name: str) -> str | int:
    """Return what the table `bridge` holds under `name`."""
    value: str | int = connection.execute(
        "SELECT value FROM bridge WHERE name = ?", (name,)
    ).fetchone()[0]
    return value


def insert(
    connection: sqlite3.Connection,
    head: str,
    values: Sequence[object],
    *,
    columns: int,
) -> None:
    """Insert rows of `columns` values each, which stand one after the other."""
    row = "(" + ", ".join("?" * columns) + ")"
    width = columns * _ROWS
    whole = len(values) - len(values) % width
    statement = f"{head} VALUES " + ", ".join([row] * _ROWS)
    for start in range(0, whole, width):
        connection.execute(statement, values[start : start + width])
    rest = values[whole:]
    connection.executemany(
        f"{head} VALUES {row}",
        [rest[start : start + columns] for start in range(0, len(rest), columns)],
    )


def find_ids(
    connection: sqlite3.Connection, keys: Sequence[tuple[int, str]], oldest_s: float
) -> Iterator[tuple[int, str]]:
    """Yield those of `keys`, user and message id, that were seen since `oldest_s`."""
    for start in range(0, len(keys), _ROWS):
        asked = keys[start : start + _ROWS]
        rows = ", ".join(["(?, ?)"] * len(asked))
        yield from connection.execute(
            f"WITH asked (user_id, message_id) AS (VALUES {rows})"  # noqa: S608 - question marks
            " SELECT user_id, message_id FROM asked CROSS JOIN seen"
            " USING (user_id, message_id) WHERE seen_s >= ?",
            [value for key in asked for value in key] + [oldest_s],
        )


def index(connection: sqlite3.Connection, piece: Piece) -> None:
    """Index what waited. After a crash some comes for the second time, to no effect."""
    places: list[object] = []
    seen: list[object] = []
    for user_id, entries in piece.entries:
        for offset, seq, message_id, seen_s in entries:
            places += (user_id, offset, seq)
            if message_id is not None:
                seen += (user_id, message_id, seen_s)
    insert(connection, "INSERT OR REPLACE INTO places", places, columns=3)
    insert(connection, "INSERT OR REPLACE INTO seen", seen, columns=3)
    if piece.indexed_seq is not None:
        connection.execute(
            "UPDATE bridge SET value = ? WHERE name = 'indexed_seq'",
            (piece.indexed_seq,),
        )


def oldest_waiting_s(connection: sqlite3.Connection) -> float | None:
    """When the oldest message that is not indexed was taken; ``None`` if all are."""
    row = connection.execute(
        "SELECT taken_s FROM messages WHERE seq > ? ORDER BY seq LIMIT 1",
        (meta(connection, "indexed_seq"),),
    ).fetchone()
    return None if row is None else row[0]


def delete_before(connection: sqlite3.Connection, user_id: int, upto: int) -> None:
    """
    Delete one user's messages before the offset `upto`: they are over the limit.

    What waits to be indexed stays for now: the tail is read back from it.
    """
    key = (user_id, upto)
    seqs = connection.execute(
        "SELECT seq FROM places WHERE user_id = ? AND offset < ? ORDER BY seq", key
    ).fetchall()
    connection.executemany("DELETE FROM messages WHERE seq = ?", seqs)
    connection.execute("DELETE FROM places WHERE user_id = ? AND offset < ?", key)
    _move_first(connection, [key], SyncReason.LIMIT)


def delete_older(connection: sqlite3.Connection, oldest_s: float) -> bool:
    """Delete some messages that were taken before `oldest_s`; true if there may be more."""
    upto_seq = count = 0
    first: dict[int, int] = {}  # user id -> first offset that is still there
    for seq, user_id, offset, taken_s in connection.execute(
        "SELECT seq, user_id, offset, taken_s FROM messages WHERE seq <= ?"
        " ORDER BY seq LIMIT ?",
        (meta(connection, "indexed_seq"), _SWEEP_ROWS),
    ):
        if taken_s >= oldest_s:
            break
        upto_seq = seq
        count += 1
        first[user_id] = offset + 1
    rows = sorted(first.items())
    connection.execute("DELETE FROM messages WHERE seq <= ?", (upto_seq,))
    connection.executemany("DELETE FROM places WHERE user_id = ? AND offset < ?", rows)
    _move_first(connection, rows, SyncReason.EXPIRED)
    return count == _SWEEP_ROWS


def forget_ids(
    connection: sqlite3.Connection, after: tuple[int, str], oldest_s: float
) -> tuple[int, str] | None:
    """Forget some ids that were seen before `oldest_s`; return the key to go on behind."""
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


def _move_first(
    connection: sqlite3.Connection, rows: Sequence[tuple[int, int]], reason: SyncReason
) -> None:
    connection.executemany(
        "UPDATE users SET first = ?2, trimmed_for = ?3 WHERE id = ?1 AND first < ?2",
        [(*row, reason) for row in rows],
    )
