"""
What is stored and not indexed yet, in memory.

Messages are stored in the order in which they arrive, whoever they are for, and each names
the one before it of the same user, so that a commit writes a few pages at the end of one
table. What leads to a user's messages is a row for each user with the newest one, and one
for each block of messages. Each of those rows stands on another page, and to write them at
once would cost more than the messages. So they wait here, as delivered marks and message
ids do, and are written in the order of users, a few with each commit, when a whole round
of them has gathered: many then share a page, and a user who got many has one row.

What waits is known from the file as well: it is what stands behind `indexed_seq`, and in
the table `marks`. So nothing is lost with the memory, and opening reads it back.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, Final

import orjson

# So many messages and marks wait before a round begins: some 20 MB, more with ids. More
# would share pages better, and take longer to read back.
ROUND_ENTRIES: Final = 100_000
# Every so many messages of a user, one can be found without going through the newer ones.
BLOCK: Final = 16

# What is known of a user: id, `first`, and the offset and seq of the newest message, 0 if
# there is none. As bytes: there are a hundred thousand of them, and as tuples each change
# made the garbage collector go through them all, one microsecond for each message.
HEAD: Final = Struct("<4q")
# An offset and its seq.
Place = tuple[int, int]
_NOWHERE: Final = HEAD.pack(0, 0, 0, 0)


@dataclass(slots=True)
class Fresh:
    """
    What one transaction has stored.

    Attributes:
        heads: The user as `HEAD` has it, by user id.
        blocks: The messages that end a block, by user id.
        ids: When an id was seen, by user id and id.
        marks: Up to where it was delivered, by user id.
        count: How many messages and marks it is.

    """

    heads: dict[int, bytes] = field(default_factory=dict)
    blocks: dict[int, list[Place]] = field(default_factory=dict)
    ids: dict[tuple[int, str], float] = field(default_factory=dict)
    marks: dict[int, int] = field(default_factory=dict)
    count: int = 0

    def update(self, other: "Fresh") -> None:
        """Take in what another has, which is newer."""
        self.heads.update(other.heads)
        self.ids.update(other.ids)
        for user_id, places in other.blocks.items():
            self.blocks.setdefault(user_id, []).extend(places)
        for user_id, offset in other.marks.items():
            self.marks[user_id] = max(offset, self.marks.get(user_id, 0))
        self.count += other.count


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits for one user: the newest message, the ends of blocks, the mark."""

    head: Place
    blocks: Sequence[Place]
    delivered: int


@dataclass(frozen=True, slots=True)
class Piece:
    """
    Rows to be written together: values that stand one after the other.

    Attributes:
        heads: User id, offset and seq of the newest message, delivered mark.
        places: User id, offset, seq.
        seen: User id, message id, when.
        counts: How many rows that is.
        upto: If this ends a round: all messages up to this seq are indexed then, and
            all marks up to this row.

    """

    heads: Sequence[object]
    places: Sequence[object]
    seen: Sequence[object]
    counts: tuple[int, int, int]
    upto: tuple[int, int] | None


class Tail:
    """
    What waits. Changed by the writer's thread, after commits only.

    `of` may be called in any thread, and must be called before the snapshot is taken
    that it is used with: what has gone from here meanwhile is in the snapshot.
    """

    def __init__(self, *, round_entries: int) -> None:
        self.round_entries = round_entries
        self._new = Fresh()
        self._old = Fresh()  # what the round is about that goes on
        self._newest = (0, 0)  # seq and row of `marks`
        self._upto = (0, 0)
        # Of the round, what is not indexed yet, the lowest user last:
        self._heads: list[int] = []
        self._blocks: list[tuple[int, Place]] = []
        self._ids: list[tuple[int, str]] = []

    def load(self, connection: sqlite3.Connection, indexed_seq: int) -> int:
        """Read back what the file holds behind `indexed_seq`; return the newest seq."""
        # A start that failed later on may have been here.
        self._new, self._old = Fresh(), Fresh()
        self._newest = (indexed_seq, 0)
        for waiting in (self._heads, self._blocks, self._ids):
            waiting.clear()
        seq = indexed_seq
        fresh = Fresh()
        for user_id, offset, seq, message_id, seen_s in connection.execute(
            "SELECT user_id, offset, seq, message_id, seen_s FROM messages"
            " WHERE seq > ? ORDER BY seq",
            (indexed_seq,),
        ):
            fresh.heads[user_id] = HEAD.pack(user_id, 0, offset, seq)
            if not offset % BLOCK:
                fresh.blocks.setdefault(user_id, []).append((offset, seq))
            fresh.count += 1
            if message_id is not None:
                fresh.ids[user_id, message_id] = seen_s
        self.add(fresh, seq=seq)
        for marks_id, text in connection.execute("SELECT id, marks FROM marks"):
            fresh = Fresh(marks=dict(orjson.loads(text)))
            fresh.count = len(fresh.marks)
            self.add(fresh, seq=seq, marks_id=marks_id)
        return seq

    def of(self, user_id: int) -> Waiting:
        """Return what waits for one user."""
        # The newer first: what moves from there to the older in between is seen twice.
        new, old = self._new, self._old
        head = new.heads.get(user_id) or old.heads.get(user_id) or _NOWHERE
        return Waiting(
            HEAD.unpack(head)[2:],
            (*old.blocks.get(user_id, ()), *new.blocks.get(user_id, ())),
            max(new.marks.get(user_id, 0), old.marks.get(user_id, 0)),
        )

    def seen_s(self, user_id: int, message_id: str) -> float | None:
        """When this id of this user was seen, as far as it is known here."""
        key = (user_id, message_id)
        return self._new.ids.get(key) or self._old.ids.get(key)

    def add(self, fresh: Fresh, *, seq: int, marks_id: int = 0) -> None:
        """Take in what was committed, up to `seq` and the row `marks_id` of marks."""
        self._new.update(fresh)
        self._newest = (seq, max(marks_id, self._newest[1]))

    @property
    def count(self) -> int:
        """How many messages and marks wait."""
        return self._new.count + self._old.count

    @property
    def next_marks_id(self) -> int:
        """The number of the next row of marks."""
        return self._newest[1] + 1

    @property
    def _is_in_round(self) -> bool:
        return bool(self._heads or self._blocks or self._ids)

    def begin_round(self) -> None:
        """Let what waits now be indexed, if there is anything and no round goes on."""
        if self._is_in_round or not self._new.count:
            return
        # In this order: a reader finds it in at least one of them.
        old = self._old = self._new
        self._new = Fresh()
        self._upto = self._newest
        self._heads = sorted(old.heads.keys() | old.marks.keys(), reverse=True)
        self._blocks = [
            (user_id, place)
            for user_id in sorted(old.blocks, reverse=True)
            for place in reversed(old.blocks[user_id])
        ]
        self._ids = sorted(old.ids, key=_user_id, reverse=True)

    def next_piece(self, count: int) -> Piece | None:
        """Return at most `count` rows to be indexed; ``None`` = not yet."""
        if not self._is_in_round:
            if self._new.count < self.round_entries:
                return None
            self.begin_round()
        old = self._old
        heads = _last(self._heads, count)
        blocks = _last(self._blocks, count - len(heads))
        ids = _last(self._ids, count - len(heads) - len(blocks))
        counts = (len(heads), len(blocks), len(ids))
        left = len(self._heads) + len(self._blocks) + len(self._ids) - sum(counts)
        return Piece(
            heads=_head_rows(heads, old.heads, old.marks),
            places=[value for user_id, place in blocks for value in (user_id, *place)],
            seen=[value for key in ids for value in (*key, old.ids[key])],
            counts=counts,
            upto=None if left else self._upto,
        )

    def drop(self, piece: Piece) -> None:
        """Forget the rows of `piece`, which are indexed and committed."""
        waiting: tuple[list[Any], ...] = (self._heads, self._blocks, self._ids)
        for rows, count in zip(waiting, piece.counts, strict=True):
            del rows[len(rows) - count :]
        if piece.upto is not None:
            self._old = Fresh()


def _head_rows(
    user_ids: Sequence[int], heads: Mapping[int, bytes], marks: Mapping[int, int]
) -> list[object]:
    rows: list[object] = []
    unpack = HEAD.unpack
    for user_id in user_ids:
        _, _, last, seq = unpack(heads.get(user_id, _NOWHERE))
        rows += (user_id, last, seq, marks.get(user_id, 0))
    return rows


def _last(rows: list[Any], count: int) -> list[Any]:
    """Return the last `count` of `rows`, the last one first."""
    return rows[: -count - 1 : -1] if count > 0 else []


def _user_id(key: tuple[int, str]) -> int:
    return key[0]
