"""
Queries for one user's messages, which form a chain from each message to the previous one.

A chain is entered at the newest message or at the end of a block of 16 messages; the table
`places` and the unindexed tail hold the ends of blocks. It breaks off where older messages
were deleted.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from sqlite3 import Connection
from typing import Any, Final

from bridge.core.message import Message, Stored
from bridge.core.message_options import MessageOptions
from bridge.inbox.sqlite.unindexed import UserTail

# The columns that `to_stored` needs.
STORED_COLUMNS: Final = "event, data, taken_s, message_id, deadline_s"

Row = tuple[Any, ...]
Rows = Generator[Row, None, None]


@dataclass(frozen=True, slots=True)
class MessageChain:
    """
    One user's messages in a read transaction.

    The generators yield the offset and `columns` of each message. Close them before the
    transaction ends: an open query keeps its snapshot.

    Attributes:
        connection: In a transaction.
        user_id: The user.
        last_seq: The seq of the user's newest message.
        tail: The unindexed entries of the user, taken before the transaction.

    """

    connection: Connection
    user_id: int
    last_seq: int
    tail: UserTail

    def above(self, offset: int, columns: str = STORED_COLUMNS) -> Rows:
        """Yield the messages above `offset`, oldest first."""
        statement = f"{_chain_query(columns)} ORDER BY offset"
        places = self.connection.execute(
            "SELECT offset, seq FROM places WHERE user_id = ? AND offset > ?"
            " ORDER BY offset",
            (self.user_id, offset),
        )
        for end, end_seq in chain(places, self.tail.blocks):
            if end > offset:
                key = (end_seq, self.user_id, offset + 1)
                yield from self.connection.execute(statement, key)
                offset = end
        key = (self.last_seq, self.user_id, offset + 1)
        yield from self.connection.execute(statement, key)

    def first_above(self, offset: int) -> int:
        """Return the offset of the oldest message above `offset`; there must be one."""
        with closing(self.above(offset, "seq")) as rows:
            return int(next(rows)[0])

    def below(self, offset: int, *, first: int, columns: str) -> Rows:
        """Yield the messages below `offset` down to `first`, newest first."""
        place = self.connection.execute(
            "SELECT seq FROM places WHERE user_id = ? AND offset >= ?"
            " ORDER BY offset LIMIT 1",
            (self.user_id, offset - 1),
        ).fetchone()
        unindexed = (seq for end, seq in self.tail.blocks if end >= offset - 1)
        start_seq = place[0] if place else next(unindexed, self.last_seq)
        yield from self.connection.execute(
            f"{_chain_query(columns)} WHERE offset < ?4",
            (start_seq, self.user_id, first, offset),
        )


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


def to_stored(user: str, row: Sequence[Any], *, key: str | None = None) -> Stored:
    """Return the message of a row with the columns `STORED_COLUMNS`."""
    offset, event, data, taken_s, message_id, deadline_s = row
    message = Message(user, event, data, taken_s, message_id, deadline_s)
    if key is not None:
        message.options = MessageOptions(key=key)
    return Stored(message, offset)
