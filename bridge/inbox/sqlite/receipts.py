"""
Receipts and the event outbox in the file, written in the transactions of the writer.

A receipt is a row in the order of arrival, so a commit writes few pages. Which rows are those
of a user is kept in memory, 16 bytes for each, and read back when the file is opened: an
index on disk would cost a page for each user with every commit.

Delivered marks of users with receipts are kept with the time at which they moved, and are
decided on at the start of the next transaction. So a message that was delivered just before
it is deleted, or just before its time is over, counts as delivered.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from math import inf
from operator import attrgetter
from sqlite3 import Connection
from threading import Lock
from typing import Any, Final

import orjson

from bridge.clock import SteadyClock
from bridge.core.clock_reading import ClockReading
from bridge.core.message import Message
from bridge.core.message_options import Tracking
from bridge.core.receipts import (
    Receipt,
    WorkerEvent,
    decide,
    due_s,
    duplicate_tracking,
    fit_events,
    pack_receipt,
    unpack_event,
    unpack_receipt,
)
from bridge.enums import ReceiptOutcome
from bridge.inbox.contract import EVENT_BYTES, REFUSED, Retention
from bridge.inbox.sqlite.chain import MessageChain
from bridge.inbox.sqlite.statements import insert
from bridge.inbox.sqlite.unindexed import HEAD, UnindexedTail
from bridge.inbox.worker_events import render_event

_STEP: Final = 500
_ALL: Final = 1 << 62  # above all offsets
_OPTIONS: Final = attrgetter("options")
SELECT_RECEIPTS: Final = "SELECT receipts.id, user, offset, receipt FROM receipts JOIN users ON users.id = user_id"
# The ids in a JSON array: one call of SQLite for many rows (statements.py).
_LISTED: Final = "(SELECT value FROM json_each(?))"
# In place of the name of a message; `confirm` deletes these events, too.
PRESENCE: Final = ""
# Id, user, offset, packed receipt.
_Row = tuple[int, str, int, bytes]
# User, delivered mark, and when it moved.
_Mark = tuple[str, int, ClockReading]
_NOTHING: Final[Mapping[int, tuple[int, ClockReading]]] = {}


class SqliteReceipts:
    """
    The receipts of all users. Used in the writer's thread, except where noted.

    Attributes:
        open: Users with receipts whose outcome is open, and for each of these its offset and
            its row, the lowest offset first. Other threads may read whether a user is in it.
        pending: The number of events that are not confirmed. Other threads may read it.

    """

    def __init__(
        self,
        tail: UnindexedTail,
        *,
        head_of: Callable[[Connection, str], bytes | None],
        retention: Callable[[], Retention],
        clock: SteadyClock,
    ) -> None:
        self.open: dict[str, array[int]] = {}
        self.pending = 0
        self._tail = tail
        self._head_of = head_of
        self._retention = retention
        self._clock = clock
        # Users whose last receipt was decided on; a rollback opens it again.
        self._closing: set[str] = set()
        self._began = clock.read()  # the current transaction
        self._marks: list[_Mark] = []
        # Held while a thread reads the clock for marks, and adds or takes them.
        self._marking = Lock()
        self._decided_marks = 0  # of the current transaction
        self._is_loaded = False
        self._due_s = inf  # when time alone decides next, or earlier
        # Time and row of the last receipt that `settle_due` has looked at.
        self._due_after: tuple[float, int] = (0.0, 0)
        self._next_id = 1  # of both tables; never used twice, so a handle stays valid
        self._has_added = False  # in the current transaction
        self._has_news = False
        self._wake: Callable[[], None] | None = None

    # --- in the event loop

    def on_events(self, wake: Callable[[], None]) -> None:
        """Call `wake` after a transaction that added events."""
        self._wake = wake

    def notify(self) -> None:
        """Call `wake` if events were committed since the last call."""
        if self._has_news:
            self._has_news = False
            if self._wake is not None:
                self._wake()

    def note_mark(self, user: str, offset: int) -> bool:
        """Note that a delivered mark moves now; return whether a receipt may need it."""
        if user not in self.open and user not in self._closing:
            return False
        with self._marking:
            self._marks.append((user, offset, self._clock.read()))
        return True

    @property
    def is_due(self) -> bool:
        """Whether time alone may decide about a receipt now. Any thread may ask."""
        return self._clock.read().now_s >= self._due_s

    @property
    def has_marks(self) -> bool:
        """Whether marks wait for a transaction."""
        return bool(self._marks)

    # --- transactions

    def begin(self, connection: Connection) -> None:
        """Begin a transaction: what follows must see the marks that have moved before it."""
        if not self._is_loaded:
            self._load(connection)
        # Time decides as of now. A mark that has moved earlier is among those that are taken,
        # and one that moves during this transaction, in time, finds its receipt undecided.
        with self._marking:
            self._began = self._clock.read()
            marks = tuple(self._marks)
        if marks:
            self._decided_marks = len(marks)
            self._settle(connection, marks)

    def after_commit(self) -> None:
        """Forget the marks that were decided on, and let `notify` report new events."""
        del self._marks[: self._decided_marks]
        self._decided_marks = 0
        self._closing.clear()
        self._has_news = self._has_news or self._has_added
        self._has_added = False

    def after_rollback(self) -> None:
        """Read everything back from the file before the next transaction."""
        self._decided_marks = 0
        self._has_added = False
        self._is_loaded = False
        self._due_s = -inf

    def _load(self, connection: Connection) -> None:
        found: dict[str, array[int]] = {}
        for user, *place in connection.execute(
            "SELECT user, offset, receipts.id FROM receipts JOIN users"
            " ON users.id = user_id ORDER BY user_id, offset"
        ):
            found.setdefault(user, array("q")).extend(place)
        self.open = found  # in one step, because other threads read it
        self._closing.clear()
        self.pending, *newest = connection.execute(
            "SELECT (SELECT count(*) FROM events WHERE is_confirmed = 0),"
            " (SELECT max(id) FROM receipts), (SELECT max(id) FROM events)"
        ).fetchone()
        self._due_s = self._next_due_s(connection)
        self._next_id = max(self._next_id, *(each + 1 for each in newest if each), 1)
        self._has_news = self.pending > 0
        self._is_loaded = True

    # --- receipts

    def add(
        self,
        connection: Connection,
        messages: Sequence[Message],
        offsets: Sequence[int | None],
    ) -> None:
        """
        Add the tracked ones of `messages`, whose offsets are `offsets`.

        Called before those with keys are inserted: decides about what they replace.
        """
        if not any(map(_OPTIONS, messages)):
            return
        values: list[object] = []
        duplicates: list[Message] = []
        replaced: list[tuple[str, int]] = []
        keyed: dict[tuple[str, str, str], int] = {}  # of these messages
        for message, offset in zip(messages, offsets, strict=True):
            options = message.options
            if options is None or offset == REFUSED:
                continue
            if offset is None:
                duplicates.append(message)
                continue
            if options.tracking is not None:
                values += self._open(connection, message, offset, options.tracking)
            if options.key is not None and message.user in self.open:
                place = (message.user, message.event, options.key)
                old = keyed.get(place) or self._find(connection, *place)
                replaced.append((message.user, old))
                keyed[place] = offset
        insert(connection, "INSERT INTO receipts", values, columns=5)
        known: dict[str, dict[str | None, list[Receipt]]] = {}
        for message in duplicates:
            self._add_duplicate(connection, message, known)
        # Last, because it decides about duplicates, too.
        closed = [
            row_id
            for user, old in replaced
            for row_id in self._places(user, old, old + 1)
        ]
        if closed:
            rows = self._rows(connection, closed)
            self._decide(connection, rows, absence=ReceiptOutcome.REPLACED)

    def _open(
        self,
        connection: Connection,
        message: Message,
        offset: int,
        tracking: Tracking,
        stored_id: str = "",
    ) -> tuple[object, ...]:
        """Note a receipt; return its row."""
        user = message.user
        row_id, user_id = self._new_id(), self._head(connection, user)[0]
        places = self.open.get(user)
        if places is None:
            self.open[user] = array("q", (offset, row_id))
        elif offset >= places[-2]:
            places.append(offset)
            places.append(row_id)
        else:  # a duplicate
            at = 2 * _count_below(places, offset + 1)
            places[at:at] = array("q", (offset, row_id))
        # The module sqlite3 binds a bytearray faster than bytes (statements.py).
        packed = bytearray(pack_receipt(message, tracking, stored_id))
        at_s = due_s(message, tracking)
        if at_s is not None and at_s < self._due_s:
            self._due_s = at_s
        return row_id, user_id, offset, at_s, packed

    def _find(self, connection: Connection, user: str, event: str, key: str) -> int:
        """Return the offset of the message with a key; 0 if there is none."""
        user_id = self._head(connection, user)[0]
        row = connection.execute(
            "SELECT offset FROM sparse WHERE (user_id, event, key) = (?, ?, ?)",
            (user_id, event, key),
        ).fetchone()
        return row[0] if row else 0

    def _places(self, user: str, low: int, high: int) -> Sequence[int]:
        """Return the rows of the receipts of a user from the offset `low` to below `high`."""
        places = self.open.get(user)
        if places is None or places[0] >= high:
            return ()
        start, stop = (2 * _count_below(places, each) for each in (low, high))
        return places[start + 1 : stop : 2]

    def _add_duplicate(
        self,
        connection: Connection,
        message: Message,
        known: dict[str, dict[str | None, list[Receipt]]],
    ) -> None:
        """Note a duplicate; `known` keeps the receipts of each user by the ids of messages."""
        wanted = None if message.options is None else message.options.tracking
        if wanted is None:
            return
        if message.user not in known:
            known[message.user] = self._receipts_by_id(connection, message.user)
        found = known[message.user].get(message.id)
        if found:
            first = found[0]
            tracking = duplicate_tracking((each.tracking for each in found), wanted)
            if tracking is not None:
                place = (first.message, first.offset)
                row = self._open(connection, *place, tracking, first.stored_id)
                insert(connection, "INSERT INTO receipts", row, columns=5)
                found.append(replace(first, tracking=tracking))
            return
        event = connection.execute(
            "SELECT event FROM events WHERE message = ? ORDER BY id DESC LIMIT 1",
            (_name(message),),
        ).fetchone()
        if event is not None and wanted.wants_receipt:
            copy = unpack_event(event[0], key=None).copy_for(wanted)
            self.put(connection, [(copy, None)])

    def _receipts_by_id(
        self, connection: Connection, user: str
    ) -> dict[str | None, list[Receipt]]:
        found: dict[str | None, list[Receipt]] = {}
        rows = self._rows(connection, self._places(user, 0, _ALL))
        for _, _, offset, packed in rows:
            receipt = unpack_receipt(packed, user=user, offset=offset)
            found.setdefault(receipt.message.id, []).append(receipt)
        return found

    def push_out(self, connection: Connection, users: Iterable[str]) -> None:
        """Decide about messages of `users` that are over the limit, before their deletion."""
        pushed: list[int] = []
        for user in users:
            places = self.open.get(user)
            if places is not None:
                last = self._head(connection, user)[2]
                if places[0] <= last - self._retention().max_messages:
                    first = self._first(connection, user)
                    pushed += self._places(user, 0, first)
        if pushed:
            self._decide(connection, self._rows(connection, pushed))

    def _settle(self, connection: Connection, marks: Iterable[_Mark]) -> None:
        """Decide about what was delivered."""
        chosen: dict[int, tuple[int, ClockReading]] = {}
        for user, delivered, at in marks:
            for row_id in self._places(user, 0, delivered + 1):
                chosen.setdefault(row_id, (delivered, at))  # the first mark decides
        if chosen:
            self._decide(connection, self._rows(connection, list(chosen)), chosen)

    def settle_due(self, connection: Connection) -> bool:
        """
        Decide about the next receipts that are due by the passing of time.

        After a jump of the clock some only seem due. They are checked again after all others.

        Returns:
            Whether there may be more.

        """
        rows: list[Any] = connection.execute(
            f"{SELECT_RECEIPTS} WHERE due_s <= ? AND (due_s, receipts.id) > (?, ?)"
            " ORDER BY due_s, receipts.id LIMIT ?",
            (self._began.now_s, *self._due_after, _STEP),
        ).fetchall()
        count = self._decide(connection, rows, max_bytes=EVENT_BYTES)
        has_more = count == _STEP or count < len(rows)
        self._due_after = (0.0, 0)
        if has_more:
            row_id, user, offset, packed = rows[count - 1]
            receipt = unpack_receipt(packed, user=user, offset=offset)
            at_s = due_s(receipt.message, receipt.tracking)
            self._due_after = (at_s or 0.0, row_id)
        self._due_s = self._next_due_s(connection)
        return has_more

    def _next_due_s(self, connection: Connection) -> float:
        row = connection.execute(
            "SELECT due_s FROM receipts WHERE due_s IS NOT NULL ORDER BY due_s LIMIT 1"
        ).fetchone()
        return inf if row is None else float(row[0])

    def sweep(self, connection: Connection) -> bool:
        """
        Decide about messages that are too old, and forget old outcomes.

        Returns:
            Whether there may be more.

        """
        at, retention = self._clock.read(), self._retention()
        oldest_s = at.ago(retention.max_age_s)
        rows = connection.execute(
            f"{SELECT_RECEIPTS} ORDER BY receipts.id LIMIT ?", (_STEP,)
        )
        old: list[_Row] = []
        for row in rows.fetchall():
            receipt = unpack_receipt(row[3], user=row[1], offset=row[2])
            if receipt.message.taken_s >= oldest_s:
                break
            old.append(row)
        count = self._decide(connection, old, max_bytes=EVENT_BYTES)
        deleted = connection.execute(
            "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE is_confirmed = 1"
            " AND id < coalesce((SELECT id FROM events WHERE at_s >= ? ORDER BY id"
            " LIMIT 1), ?) ORDER BY id LIMIT ?)",
            (at.ago(retention.dedupe_s), self._next_id, _STEP),
        ).rowcount
        return _STEP in (count, deleted) or count < len(old)

    def _rows(self, connection: Connection, row_ids: Sequence[int]) -> list[_Row]:
        return connection.execute(
            f"{SELECT_RECEIPTS} WHERE receipts.id IN {_LISTED} ORDER BY offset, receipts.id",
            (_list(row_ids),),
        ).fetchall()

    def _decide(
        self,
        connection: Connection,
        rows: Iterable[_Row],
        marks: Mapping[int, tuple[int, ClockReading]] = _NOTHING,
        *,
        absence: ReceiptOutcome | None = None,
        max_bytes: float = inf,
    ) -> int:
        """
        Decide about `rows` by the delivered mark and the time that `marks` has for each.

        Returns:
            About how many of them: it ends when the events have more than `max_bytes` of data.

        """
        now, max_age_s = (0, self._began), self._retention().max_age_s
        firsts: dict[str, int] = {}
        events: list[tuple[WorkerEvent, str | None]] = []
        decided: list[int] = []
        count = size_bytes = 0
        for row_id, user, offset, packed in rows:
            if size_bytes > max_bytes:
                break
            count += 1
            why = absence
            if why is None:
                if user not in firsts:
                    firsts[user] = self._first(connection, user)
                why = ReceiptOutcome.TRIMMED if offset < firsts[user] else None
            receipt = unpack_receipt(packed, user=user, offset=offset)
            delivered, at = marks.get(row_id, now)
            verdict = decide(
                receipt,
                delivered=delivered,
                at=at,
                oldest_s=at.ago(max_age_s),
                absence=why,
            )
            for outcome in verdict.outcomes:
                is_late = outcome is ReceiptOutcome.UNDELIVERED
                data = self._data(connection, user, offset) if is_late else None
                size_bytes += len(data or b"")
                event = render_event(
                    receipt, outcome, at_s=at.now_s, reason=verdict.reason, data=data
                )
                events.append((event, None if is_late else _name(receipt.message)))
            rest = verdict.rest
            if rest is None:
                decided.append(row_id)
                self._forget(user, offset, row_id)
            elif rest != receipt:
                message, tracking = rest.message, rest.tracking
                values = (
                    due_s(message, tracking),
                    pack_receipt(message, tracking, rest.stored_id),
                )
                connection.execute(
                    "UPDATE receipts SET due_s = ?, receipt = ? WHERE id = ?",
                    (*values, row_id),
                )
        self.put(connection, events)
        connection.execute(
            f"DELETE FROM receipts WHERE id IN {_LISTED}",  # noqa: S608 - no input
            (_list(decided),),
        )
        return count

    def _forget(self, user: str, offset: int, row_id: int) -> None:
        places = self.open[user]
        at = 0 if places[1] == row_id else 2 * _count_below(places, offset)
        while places[at + 1] != row_id:
            at += 2
        del places[at : at + 2]
        if not places:
            self._closing.add(user)  # first, because other threads look at both
            del self.open[user]

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    # --- the inbox

    def _head(self, connection: Connection, user: str) -> tuple[int, int, int, int]:
        head = self._head_of(connection, user)
        assert head is not None  # noqa: S101 - a user with receipts is not forgotten
        user_id, first, last, seq = HEAD.unpack(head)
        return user_id, first, last, seq

    def _first(self, connection: Connection, user: str) -> int:
        """Return the lowest offset that is not deleted or over the limit; holes are ignored."""
        user_id, first, last, _ = self._head(connection, user)
        most = self._retention().max_messages
        if first >= 0:
            return max(first, last - most + 1)
        first, sparse_after, gone = connection.execute(
            "SELECT first, sparse_after, gone FROM users WHERE id = ?", (user_id,)
        ).fetchone()
        count, lowest = connection.execute(
            "SELECT count(*), min(offset) FROM (SELECT offset FROM sparse WHERE user_id = ?"
            " AND offset > ? ORDER BY offset DESC LIMIT ?)",
            (user_id, gone, most),
        ).fetchone()
        if count == most:
            return int(lowest)
        return int(max(first, sparse_after - (most - count) + 1, gone + 1))

    def _data(self, connection: Connection, user: str, offset: int) -> bytes | None:
        """Return the data of a message that the tables still hold."""
        user_id, _, _, seq = self._head(connection, user)
        row = connection.execute(
            "SELECT data FROM sparse WHERE user_id = ? AND offset = ?",
            (user_id, offset),
        ).fetchone()
        if row is None:
            chain = MessageChain(connection, user_id, seq, self._tail.of(user_id))
            with closing(chain.above(offset - 1, "data")) as rows:
                row = next((data for at, *data in rows if at == offset), None)
        return None if row is None else row[0]

    # --- the outbox

    def put(
        self, connection: Connection, events: Sequence[tuple[WorkerEvent, str | None]]
    ) -> None:
        """Add events, each with the name of the message whose outcome it is, or `PRESENCE`."""
        values: list[object] = []
        for event, message in events:
            packed = bytearray(event.pack())
            values += (self._new_id(), event.at_s, 0, message, packed)
        insert(connection, "INSERT INTO events", values, columns=5)
        self.pending += len(events)
        self._has_added = self._has_added or bool(events)

    def confirm(self, connection: Connection, row_ids: Sequence[int]) -> None:
        """Delete events, or keep them for duplicates."""
        which, ids = f"is_confirmed = 0 AND id IN {_LISTED}", (_list(row_ids),)
        for statement in (
            f"DELETE FROM events WHERE ifnull(message, '') = '' AND {which}",  # noqa: S608 - no input
            f"UPDATE events SET is_confirmed = 1 WHERE {which}",  # noqa: S608 - no input
        ):
            self.pending -= connection.execute(statement, ids).rowcount


def read_events(
    connection: Connection, *, limit: int, max_bytes: int
) -> list[WorkerEvent]:
    """Return the oldest events that are not confirmed. Used in the reader's thread."""
    rows = connection.execute(
        "SELECT id, event FROM events WHERE is_confirmed = 0 ORDER BY id LIMIT ?",
        (limit,),
    )
    with closing(rows):
        events = (unpack_event(packed, key=row_id) for row_id, packed in rows)
        return fit_events(events, max_bytes=max_bytes)


def _list(row_ids: Sequence[int]) -> str:
    return orjson.dumps(list(row_ids)).decode()


def _count_below(places: Sequence[int], offset: int) -> int:
    """Return how many receipts have a lower offset."""
    numbers = range(len(places) // 2)
    return bisect_left(numbers, offset, key=lambda number: places[2 * number])


def _name(message: Message) -> str | None:
    """Return the name of a message that its duplicates have too."""
    return None if message.id is None else f"{message.user}\0{message.id}"
