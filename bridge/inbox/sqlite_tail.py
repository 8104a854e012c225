"""
What is stored and not indexed yet, in memory.

Messages are stored in the order in which they arrive, whoever they are for, so that a
commit writes a few pages at the end of one table. An index by user cannot be so: each
entry belongs on another page, and to write it at once would cost five times the message
itself. So entries wait here, and are written in the order of users, a few with each
commit, when a whole round of them has gathered: many then share a page.

What waits is known from the file as well: it is what stands behind `indexed_seq`. So
nothing is lost with the memory, and opening reads it back.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# So many entries wait before a round begins: some 20 MB, twice that with ids. More would
# share pages better, and take longer to read back.
ROUND_ENTRIES: Final = 50_000


# One stored message: offset, seq, and its id and when that was seen, if it has one. A
# plain tuple: tens of thousands wait, and the garbage collector does not look at those.
Entry = tuple[int, int, str | None, float | None]


@dataclass(frozen=True, slots=True)
class Piece:
    """
    Entries to be indexed together.

    Attributes:
        entries: By user id, in order.
        indexed_seq: If this ends a round: everything up to it is indexed then.

    """

    entries: Sequence[tuple[int, Sequence[Entry]]]
    indexed_seq: int | None


class Tail:
    """
    The entries that wait, by user. Changed by the writer's thread, after commits only.

    `of` may be called in any thread, and must be called before the snapshot is taken
    that it is used with: an entry that has gone from here meanwhile is in the snapshot.
    """

    def __init__(self, *, round_entries: int) -> None:
        self.round_entries = round_entries
        self._waiting: dict[int, list[Entry]] = {}
        self._seen: dict[tuple[int, str], float] = {}
        self._count = 0
        self._newest_seq = 0
        self._round: list[int] = []  # user ids, the lowest last
        self._round_seq = 0

    def load(self, connection: sqlite3.Connection, indexed_seq: int) -> int:
        """Read back what the file holds behind `indexed_seq`; return the newest seq."""
        self._waiting.clear()  # a start that failed later on may have been here
        self._seen.clear()
        self._round.clear()
        self._count = 0
        self._newest_seq = indexed_seq
        rows = connection.execute(
            "SELECT user_id, offset, seq, message_id, seen_s FROM messages"
            " WHERE seq > ? ORDER BY seq",
            (indexed_seq,),
        )
        self.add([(user_id, (offset, *entry)) for user_id, offset, *entry in rows])
        return self._newest_seq

    def of(self, user_id: int) -> Sequence[Entry]:
        """Return what waits for one user, oldest first."""
        waiting = self._waiting.get(user_id)
        return tuple(waiting) if waiting else ()

    def seen_s(self, user_id: int, message_id: str) -> float | None:
        """When this id of this user was seen, as far as it is known here."""
        return self._seen.get((user_id, message_id))

    def add(self, stored: Sequence[tuple[int, Entry]]) -> None:
        """Take in what was committed: user ids and entries, in order."""
        if not stored:
            return
        all_waiting = self._waiting
        for user_id, entry in stored:
            waiting = all_waiting.get(user_id)
            if waiting is None:
                all_waiting[user_id] = [entry]
            else:
                waiting.append(entry)
            if entry[2] is not None and entry[3] is not None:
                self._seen[user_id, entry[2]] = entry[3]
        self._count += len(stored)
        self._newest_seq = stored[-1][1][1]

    def begin_round(self) -> None:
        """Let what waits now be indexed, if there is anything and no round goes on."""
        if not self._round:
            self._round = sorted(self._waiting, reverse=True)
            self._round_seq = self._newest_seq

    def next_piece(self, count: int) -> Piece | None:
        """Return `count` entries or a few less to be indexed; ``None`` = not yet."""
        if not self._round:
            if self._count < self.round_entries:
                return None
            self.begin_round()
        entries: list[tuple[int, Sequence[Entry]]] = []
        is_whole = True
        for user_id in reversed(self._round):
            waiting = self._waiting[user_id]
            is_whole = len(waiting) <= count
            entries.append((user_id, waiting if is_whole else waiting[:count]))
            count -= len(waiting)
            if count <= 0:
                break
        ends_round = is_whole and len(entries) == len(self._round)
        return Piece(entries, self._round_seq if ends_round else None)

    def drop(self, piece: Piece) -> None:
        """Forget the entries of `piece`, which are indexed and committed."""
        for user_id, entries in piece.entries:
            self._count -= len(entries)
            for _, _, message_id, seen_s in entries:
                # Unless it was seen anew meanwhile, after its window.
                if message_id and self._seen.get((user_id, message_id)) == seen_s:
                    del self._seen[user_id, message_id]
            waiting = self._waiting[user_id]
            if len(entries) == len(waiting):
                # Not emptied: a reader may be about to copy it.
                del self._waiting[user_id]
                self._round.pop()
            else:
                del waiting[: len(entries)]
