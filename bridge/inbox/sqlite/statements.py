"""
Statements that change or look up many rows at once, inside a writer's transaction.

A statement for many rows is one step for SQLite. With a step for each row, the thread
would give Python's lock away and ask for it back a hundred times a batch, and with a
busy event loop wait up to 5 ms for it each time.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Final

from bridge.enums import SyncReason
from bridge.inbox.sqlite.unindexed import BLOCK, Piece

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
    tail: str = "",
) -> None:
    """Insert rows of `columns` values each, which stand one after the other."""
    row = "(" + ", ".join("?" * columns) + ")"
    width = columns * _ROWS
    whole = len(values) - len(values) % width
    statement = f"{head} VALUES " + ", ".join([row] * _ROWS) + tail
    for start in range(0, whole, width):
        connection.execute(statement, values[start : start + width])
    rest = values[whole:]
    connection.executemany(
        f"{head} VALUES {row}{tail}",
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
    insert(
        connection,
        "INSERT INTO heads",
        piece.heads,
        columns=4,
        # Nothing here ever moves back; 0 stands for what has not changed.
        tail=" ON CONFLICT (user_id) DO UPDATE SET last = max(last, excluded.last),"
        " seq = max(seq, excluded.seq), delivered = max(delivered, excluded.delivered)",
    )
    insert(connection, "INSERT OR REPLACE INTO places", piece.places, columns=3)
    insert(connection, "INSERT OR REPLACE INTO seen", piece.seen, columns=3)
    if piece.upto is not None:
        seq, marks_id = piece.upto
        connection.execute(
            "UPDATE bridge SET value = ? WHERE name = 'indexed_seq'", (seq,)
        )
        connection.execute("DELETE FROM marks WHERE id <= ?", (marks_id,))


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

    What waits to be indexed stays for now: the tail is read back from it. What stays of a
    block that is deleted goes with the next one.
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


def delete_older(connection: sqlite3.Connection, oldest_s: float) -> bool:
    """
    Delete some messages that were taken before `oldest_s`; true if there may be more.

    Nothing is noted with their users: that a message is gone is seen from where a user's
    chain of messages breaks off.
    """
    upto_seq = count = 0
    ends: list[tuple[int, int]] = []  # of blocks
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
            ends.append((user_id, offset))
    connection.execute("DELETE FROM messages WHERE seq <= ?", (upto_seq,))
    connection.executemany(
        "DELETE FROM places WHERE user_id = ? AND offset = ?", sorted(ends)
    )
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
