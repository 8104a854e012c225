"""
One user's messages in the file, found by going from each to the one before it.

A chain begins at the newest message, or at the end of a block of 16, of which the table
`places` knows the place, and the tail where that is not written yet. It breaks off where
older messages are gone. Used within a snapshot, with a tail asked before it.
"""

import sqlite3
from collections.abc import Generator
from itertools import chain
from typing import Any, Final

from bridge.inbox.sqlite.unindexed import Waiting

COLUMNS: Final = "event, data, taken_s, message_id, deadline_s"


def _back(columns: str) -> str:
    """From the message with seq ?1 back, as long as the offset is at least ?3."""
    return (
        # That it is the same user is always so; nobody gets another one's message if the
        # file was tampered with.
        "WITH RECURSIVE back (seq, prev) AS (SELECT seq, prev FROM messages"  # noqa: S608 - no input
        " WHERE seq = ?1 AND user_id = ?2 AND offset >= ?3 UNION ALL"
        " SELECT messages.seq, messages.prev FROM back CROSS JOIN messages"
        " ON messages.seq = back.prev WHERE user_id = ?2 AND offset >= ?3)"
        f" SELECT offset, {columns} FROM back CROSS JOIN messages USING (seq)"
    )


def rows(
    connection: sqlite3.Connection,
    user_id: int,
    seq: int,
    tail: Waiting,
    *,
    after: int,
    columns: str = COLUMNS,
) -> Generator[tuple[Any, ...], None, None]:
    """
    Yield offset and columns of what is stored behind `after`, oldest first.

    Args:
        connection: Within a transaction.
        user_id: Whose.
        seq: Of the user's newest message.
        tail: What waits for that user.
        after: An offset.
        columns: What is wanted of `messages`.

    """
    statement = f"{_back(columns)} ORDER BY offset"
    places = connection.execute(
        "SELECT offset, seq FROM places WHERE user_id = ? AND offset > ?"
        " ORDER BY offset",
        (user_id, after),
    )
    for end, end_seq in chain(places, tail.blocks):
        if end > after:
            yield from connection.execute(statement, (end_seq, user_id, after + 1))
            after = end
    yield from connection.execute(statement, (seq, user_id, after + 1))


def rows_back(
    connection: sqlite3.Connection,
    user_id: int,
    seq: int,
    tail: Waiting,
    *,
    first: int,
    before: int,
    columns: str = COLUMNS,
) -> Generator[tuple[Any, ...], None, None]:
    """Yield the same from the offset `before`, which is left out, back to `first`."""
    place = connection.execute(
        "SELECT seq FROM places WHERE user_id = ? AND offset >= ?"
        " ORDER BY offset LIMIT 1",
        (user_id, before - 1),
    ).fetchone()
    waiting = (place_seq for end, place_seq in tail.blocks if end >= before - 1)
    begin = place[0] if place else next(waiting, seq)
    yield from connection.execute(
        f"{_back(columns)} WHERE offset < ?4", (begin, user_id, first, before)
    )
