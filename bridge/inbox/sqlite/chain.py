"""
Queries for one user's messages, which form a chain from each message to the previous one.

A chain is entered at the newest message or at the end of a block of 16 messages; the table
`places` and the unindexed tail hold the ends of blocks. It breaks off where older messages
were deleted. The queries run in a read transaction, with a tail that was taken before it.
"""

import sqlite3
from collections.abc import Generator
from itertools import chain
from typing import Any, Final

from bridge.core.message import Message, Stored
from bridge.inbox.sqlite.unindexed import UserTail

# The columns that `to_stored` needs.
STORED_COLUMNS: Final = "event, data, taken_s, message_id, deadline_s"


def _chain_query(columns: str) -> str:
    """Follow the chain from the message with seq ?1 while the offset is at least ?3."""
    return (
        # A chain always stays with one user. The condition on ?2 keeps that true for a
        # file that was modified by hand.
        "WITH RECURSIVE back (seq, prev) AS (SELECT seq, prev FROM messages"  # noqa: S608 - no input
        " WHERE seq = ?1 AND user_id = ?2 AND offset >= ?3 UNION ALL"
        " SELECT messages.seq, messages.prev FROM back CROSS JOIN messages"
        " ON messages.seq = back.prev WHERE user_id = ?2 AND offset >= ?3)"
        f" SELECT offset, {columns} FROM back CROSS JOIN messages USING (seq)"
    )


def rows_after(
    connection: sqlite3.Connection,
    user_id: int,
    seq: int,
    tail: UserTail,
    *,
    after: int,
    columns: str = STORED_COLUMNS,
) -> Generator[tuple[Any, ...], None, None]:
    """
    Yield the offset and `columns` of the messages above the offset `after`, oldest first.

    Args:
        connection: In a transaction.
        user_id: The user.
        seq: The seq of the user's newest message.
        tail: The unindexed entries of the user.
        after: An offset.
        columns: Columns of the table `messages`.

    """
    statement = f"{_chain_query(columns)} ORDER BY offset"
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


def rows_before(
    connection: sqlite3.Connection,
    user_id: int,
    seq: int,
    tail: UserTail,
    *,
    first: int,
    before: int,
    columns: str = STORED_COLUMNS,
) -> Generator[tuple[Any, ...], None, None]:
    """Yield the same for the messages below the offset `before` down to `first`."""
    place = connection.execute(
        "SELECT seq FROM places WHERE user_id = ? AND offset >= ?"
        " ORDER BY offset LIMIT 1",
        (user_id, before - 1),
    ).fetchone()
    unindexed = (place_seq for end, place_seq in tail.blocks if end >= before - 1)
    start_seq = place[0] if place else next(unindexed, seq)
    yield from connection.execute(
        f"{_chain_query(columns)} WHERE offset < ?4",
        (start_seq, user_id, first, before),
    )


def to_stored(user: str, row: tuple[Any, ...]) -> Stored:
    """Return the message of a row with the default columns."""
    offset, event, data, taken_s, message_id, deadline_s = row
    return Stored(Message(user, event, data, taken_s, message_id, deadline_s), offset)
