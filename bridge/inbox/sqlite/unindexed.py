"""
The messages, ids and delivered marks that are stored but not indexed yet, in memory.

Messages are stored in the order in which they arrive, for all users, and each names the
previous message of its user. So a commit writes a few pages at the end of one table. A
user's messages are found through a row per user for the newest message and a row per
block of messages. Each of these rows is on a different page, and writing them with every
commit would cost more than the messages. So they are collected here, as delivered marks
and message ids are. When enough have been collected, an indexing round writes them in the
order of users, a few with each commit: then many rows share a page, and a user who
received many messages has one row.

Nothing is lost with the memory, because the file holds the same: the messages above
`indexed_seq` and the table `marks`, which also describes the messages of sparse inboxes. Opening the file reads them back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from sqlite3 import Connection
from struct import Struct
from typing import Any, Final

import orjson

# Messages and marks that are collected before a round starts: some 20 MB, more with ids.
# With more of them, more rows would share a page, but reading them back would take longer.
ROUND_ENTRIES: Final = 100_000
# A user's messages are indexed in blocks of this many.
BLOCK: Final = 16

# One user: id, `first` (-1 if the inbox is sparse), the offset of the newest message, and the
# seq of the newest one in the table `messages` (0 if there is none).
# Packed into bytes because there are a hundred thousand of them: as tuples, each change
# made the garbage collector traverse them all, at one microsecond per message.
HEAD: Final = Struct("<4q")
# An offset and its seq.
Place = tuple[int, int]
_NO_HEAD: Final = HEAD.pack(0, 0, 0, 0)


@dataclass(slots=True)
class UnindexedEntries:
    """
    Entries that are not indexed, those of one transaction or of many.

    Attributes:
        heads: The user packed as `HEAD`, by user id.
        blocks: The messages that end a block, by user id.
        ids: When an id was stored, by user id and message id.
        marks: Delivered marks, by user id.
        count: The number of messages and marks.

    """

    heads: dict[int, bytes] = field(default_factory=dict)
    blocks: dict[int, list[Place]] = field(default_factory=dict)
    ids: dict[tuple[int, str], float] = field(default_factory=dict)
    marks: dict[int, int] = field(default_factory=dict)
    count: int = 0

    def update(self, newer: "UnindexedEntries") -> None:
        """Add the entries of `newer`."""
        self.heads.update(newer.heads)
        self.ids.update(newer.ids)
        for user_id, places in newer.blocks.items():
            self.blocks.setdefault(user_id, []).extend(places)
        for user_id, offset in newer.marks.items():
            self.marks[user_id] = max(offset, self.marks.get(user_id, 0))
        self.count += newer.count


@dataclass(frozen=True, slots=True)
class UserTail:
    """One user's unindexed entries: newest message, ends of blocks, delivered mark."""

    head: Place = (0, 0)
    blocks: Sequence[Place] = ()
    delivered: int = 0


@dataclass(frozen=True, slots=True)
class IndexBatch:
    """
    Index rows that one transaction writes; the values of all rows in one flat sequence.

    Attributes:
        heads: User id, offset and seq of the newest message, delivered mark.
        places: User id, offset, seq.
        seen: User id, message id, time.
        counts: The number of rows of each kind.
        upto: Set on the last batch of a round: all messages up to this seq are indexed,
            and all marks up to this row.

    """

    heads: Sequence[object]
    places: Sequence[object]
    seen: Sequence[object]
    counts: tuple[int, int, int]
    upto: tuple[int, int] | None


class UnindexedTail:
    """
    All unindexed entries. Modified in the writer's thread, after commits only.

    `of` may be called in any thread. It must be called before the snapshot of the file is
    taken that it is combined with: entries that are removed in between are in the snapshot.
    """

    def __init__(self, *, round_entries: int) -> None:
        self.round_entries = round_entries
        self._new = UnindexedEntries()
        self._old = UnindexedEntries()  # the entries of the current round
        self._newest = (0, 0)  # seq and row of `marks`
        self._upto = (0, 0)
        # The rows of the current round that are not written yet, the lowest user last:
        self._heads: list[int] = []
        self._blocks: list[tuple[int, Place]] = []
        self._ids: list[tuple[int, str]] = []

    def load(self, connection: Connection, indexed_seq: int) -> int:
        """Read back the entries above `indexed_seq`; return the newest seq."""
        # A previous attempt to open the file may have loaded entries and failed later.
        self._new, self._old = UnindexedEntries(), UnindexedEntries()
        self._newest = (indexed_seq, 0)
        for rows in (self._heads, self._blocks, self._ids):
            rows.clear()
        seq = indexed_seq
        entries = UnindexedEntries()
        for user_id, offset, seq, message_id, seen_s in connection.execute(
            "SELECT user_id, offset, seq, message_id, seen_s FROM messages"
            " WHERE seq > ? ORDER BY seq",
            (indexed_seq,),
        ):
            entries.heads[user_id] = HEAD.pack(user_id, 0, offset, seq)
            if not offset % BLOCK:
                entries.blocks.setdefault(user_id, []).append((offset, seq))
            entries.count += 1
            if message_id is not None:
                entries.ids[user_id, message_id] = seen_s
        self.add(entries, seq=seq)
        for marks_id, text, sparse in connection.execute(
            "SELECT id, marks, sparse FROM marks ORDER BY id"
        ):
            entries = UnindexedEntries(marks=dict(orjson.loads(text)))
            entries.count = len(entries.marks)
            if sparse is not None:
                seen_s, messages = orjson.loads(sparse)
                for user_id, offset, seq_before, message_id in messages:
                    head = HEAD.pack(user_id, 0, offset, seq_before)
                    entries.heads[user_id] = head
                    if message_id is not None:
                        entries.ids[user_id, message_id] = seen_s
                entries.count += len(messages)
            self.add(entries, seq=seq, marks_id=marks_id)
        return seq

    def of(self, user_id: int) -> UserTail:
        """Return the entries of one user."""
        # Read the newer entries first: entries that move from `_new` to `_old` in between
        # are then seen twice instead of not at all.
        new, old = self._new, self._old
        head = new.heads.get(user_id) or old.heads.get(user_id) or _NO_HEAD
        return UserTail(
            HEAD.unpack(head)[2:],
            (*old.blocks.get(user_id, ()), *new.blocks.get(user_id, ())),
            max(new.marks.get(user_id, 0), old.marks.get(user_id, 0)),
        )

    def seen_s(self, user_id: int, message_id: str) -> float | None:
        """Return when this id was last stored; ``None`` if the entries do not hold it."""
        key = (user_id, message_id)
        return self._new.ids.get(key) or self._old.ids.get(key)

    def users_with(self, message_id: str) -> Sequence[int]:
        """Return the ids of users who stored this id, as far as the entries hold it."""
        # A list of the keys is one step for the interpreter: the writer adds some meanwhile.
        keys = list(self._new.ids) + list(self._old.ids)
        return [user_id for user_id, each in keys if each == message_id]

    def add(self, entries: UnindexedEntries, *, seq: int, marks_id: int = 0) -> None:
        """Add what was committed, up to `seq` and the row `marks_id` of marks."""
        self._new.update(entries)
        self._newest = (seq, max(marks_id, self._newest[1]))

    @property
    def count(self) -> int:
        """The number of unindexed messages and marks."""
        return self._new.count + self._old.count

    @property
    def next_marks_id(self) -> int:
        """The id of the next row of marks."""
        return self._newest[1] + 1

    @property
    def _is_in_round(self) -> bool:
        return bool(self._heads or self._blocks or self._ids)

    def begin_round(self) -> None:
        """Start a round with all current entries, unless one is running."""
        if self._is_in_round or not self._new.count:
            return
        # In this order, so that a reader finds each entry in at least one of the two.
        old = self._old = self._new
        self._new = UnindexedEntries()
        self._upto = self._newest
        self._heads = sorted(old.heads.keys() | old.marks.keys(), reverse=True)
        self._blocks = [
            (user_id, place)
            for user_id in sorted(old.blocks, reverse=True)
            for place in reversed(old.blocks[user_id])
        ]
        self._ids = sorted(old.ids, key=_user_id, reverse=True)

    def next_batch(self, count: int) -> IndexBatch | None:
        """Return at most `count` rows to write; ``None`` if no round is due."""
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
        return IndexBatch(
            heads=_head_rows(heads, old.heads, old.marks),
            places=[value for user_id, place in blocks for value in (user_id, *place)],
            seen=[value for key in ids for value in (*key, old.ids[key])],
            counts=counts,
            upto=None if left else self._upto,
        )

    def remove(self, batch: IndexBatch) -> None:
        """Remove the rows of `batch`, which were committed."""
        all_rows: tuple[list[Any], ...] = (self._heads, self._blocks, self._ids)
        for rows, count in zip(all_rows, batch.counts, strict=True):
            del rows[len(rows) - count :]
        if batch.upto is not None:
            self._old = UnindexedEntries()


def _head_rows(
    user_ids: Sequence[int], heads: Mapping[int, bytes], marks: Mapping[int, int]
) -> list[object]:
    rows: list[object] = []
    for user_id in user_ids:
        _, _, last, seq = HEAD.unpack(heads.get(user_id, _NO_HEAD))
        rows += (user_id, last, seq, marks.get(user_id, 0))
    return rows


def _last(rows: list[Any], count: int) -> list[Any]:
    """Return the last `count` of `rows` in reverse order."""
    return rows[: -count - 1 : -1] if count > 0 else []


def _user_id(key: tuple[int, str]) -> int:
    return key[0]
