"""
Receipts and the event outbox in the file, written in the transactions of the writer.

A receipt is a row in the order of arrival, so a commit writes few pages. Which rows are those
of a user is kept in memory and read back when the file is opened: an index on disk would
cost a page for each user with every commit.

Delivered marks of users with receipts are kept with the time at which they moved, and are
decided on at the start of the next transaction. So a message that was delivered just before
it is deleted, or just before its time is over, counts as delivered.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from operator import attrgetter
from sqlite3 import Connection
from struct import Struct
from typing import Any, Final

import orjson

from bridge.clock import SteadyClock
from bridge.core.clock_reading import ClockReading
from bridge.core.message import Message
from bridge.core.receipts import (
    Receipt,
    WorkerEvent,
    decide,
    due_s,
    duplicate_tracking,
    fit_events,
    tracked_of,
    unpack_event,
    unpack_receipt,
)
from bridge.enums import ReceiptOutcome
from bridge.inbox.contract import Retention
from bridge.inbox.sqlite.chain import MessageChain
from bridge.inbox.sqlite.statements import insert
from bridge.inbox.sqlite.unindexed import HEAD, UnindexedTail
from bridge.inbox.worker_events import render_event

# An offset, and the id of the row with its receipt.
_PLACE: Final = Struct("<2q")
_STEP: Final = 500
_OPTIONS: Final = attrgetter("options")
SELECT_RECEIPTS: Final = "SELECT receipts.id, user, offset, receipt FROM receipts JOIN users ON users.id = user_id"
# Id, user, offset, packed receipt.
_Row = tuple[int, str, int, bytes]
# User, delivered mark, and when it moved.
_Mark = tuple[str, int, ClockReading]
_NOTHING: Final[Mapping[int, tuple[int, ClockReading]]] = {}
# Why a message is not in the inbox; ``None`` if it is.
_Absence = Callable[[int], ReceiptOutcome | None]


class SqliteReceipts:
    """
    The receipts of all users. Used in the writer's thread, except where noted.

    Attributes:
        open: Users with receipts whose outcome is open, and the packed places of these, the
            lowest offset first. Other threads may read whether a user is in it.
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
        self.open: dict[str, bytes] = {}
        self.pending = 0
        self._tail = tail
        self._head_of = head_of
        self._retention = retention
        self._clock = clock
        # Users whose last receipt was decided on; a rollback opens it again.
        self._closing: set[str] = set()
        self._marks: list[_Mark] = []
        self._decided_marks = 0  # of the current transaction
        self._is_loaded = False
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
        self._marks.append((user, offset, self._clock.read()))
        return True

    @property
    def has_marks(self) -> bool:
        """Whether marks wait for a transaction."""
        return bool(self._marks)

    # --- transactions

    def begin(self, connection: Connection) -> None:
        """Begin a transaction: what follows must see the marks that have moved before it."""
        if not self._is_loaded:
            self._load(connection)
        if self._marks:
            marks = tuple(self._marks)
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

    def _load(self, connection: Connection) -> None:
        found: dict[str, bytearray] = {}
        for user, *place in connection.execute(
            "SELECT user, offset, receipts.id FROM receipts JOIN users"
            " ON users.id = user_id ORDER BY user_id, offset"
        ):
            found.setdefault(user, bytearray()).extend(_PLACE.pack(*place))
        # Replaced in one step, because other threads read it.
        self.open = {user: bytes(places) for user, places in found.items()}
        self._closing.clear()
        self.pending, *newest = connection.execute(
            "SELECT (SELECT count(*) FROM events WHERE is_confirmed = 0),"
            " (SELECT max(id) FROM receipts), (SELECT max(id) FROM events)"
        ).fetchone()
        self._next_id = max(self._next_id, *(each + 1 for each in newest if each), 1)
        self._has_news = self.pending > 0
        self._is_loaded = True

    # --- receipts

    def appended(
        self,
        connection: Connection,
        messages: Sequence[Message],
        offsets: Sequence[int | None],
    ) -> None:
        """
        Add the tracked ones of `messages`, which were stored at `offsets`.

        Then decide about older messages that they have replaced or pushed out.
        """
        if any(map(_OPTIONS, messages)):
            self._add(connection, messages, offsets)
        if self.open:
            at = self._clock.read()
            users = self.open.keys() & {each.user for each in messages}
            self._settle(connection, [(user, 0, at) for user in users])

    def _add(
        self,
        connection: Connection,
        messages: Sequence[Message],
        offsets: Sequence[int | None],
    ) -> None:
        duplicates: list[Receipt] = []
        fresh: list[Receipt] = []
        for message, offset, tracking in tracked_of(messages, offsets):
            receipt = Receipt(message, offset or 0, tracking)
            (duplicates if offset is None else fresh).append(receipt)
        self._insert(connection, fresh)
        for receipt in duplicates:
            self._add_duplicate(connection, receipt)

    def _insert(self, connection: Connection, receipts: Iterable[Receipt]) -> None:
        values: list[object] = []
        for receipt in receipts:
            user, row_id = receipt.message.user, self._new_id()
            user_id = HEAD.unpack(self._head_of(connection, user) or b"")[0]
            values += (
                row_id,
                user_id,
                receipt.offset,
                due_s(receipt.message, receipt.tracking),
                receipt.pack(),
            )
            place = _PLACE.pack(receipt.offset, row_id)
            self.open[user] = self.open.get(user, b"") + place
        insert(connection, "INSERT INTO receipts", values, columns=5)

    def _add_duplicate(self, connection: Connection, duplicate: Receipt) -> None:
        message, wanted = duplicate.message, duplicate.tracking
        places = _PLACE.iter_unpack(self.open.get(message.user, b""))
        rows = self._rows(connection, [row_id for _, row_id in places])
        found = [
            receipt
            for _, user, offset, packed in rows
            if (receipt := unpack_receipt(packed, user=user, offset=offset)).message.id
            == message.id
        ]
        if found:
            known = (each.tracking for each in found)
            tracking = duplicate_tracking(known, wanted)
            if tracking is not None:
                first = found[0]
                more = Receipt(first.message, first.offset, tracking)
                self._insert(connection, [more])
            return
        row = connection.execute(
            "SELECT event FROM events WHERE message = ? ORDER BY id DESC LIMIT 1",
            (_name(message),),
        ).fetchone()
        if row is not None and wanted.wants_receipt:
            event = unpack_event(row[0], key=None)
            self.put(connection, [(event.copy_for(wanted), None)])

    def _settle(self, connection: Connection, marks: Iterable[_Mark]) -> None:
        """Decide about what was delivered, pushed out or replaced."""
        chosen: dict[int, tuple[int, ClockReading]] = {}
        for user, delivered, at in marks:
            if user in self.open:
                for row_id in self._choose(connection, user, delivered):
                    chosen.setdefault(row_id, (delivered, at))  # the first mark decides
        if chosen:
            self._decide(connection, self._rows(connection, list(chosen)), chosen)

    def _choose(
        self, connection: Connection, user: str, delivered: int
    ) -> Sequence[int]:
        """Return the rows of receipts that a mark, a deletion or a replacement decides."""
        places = self.open[user]
        lowest = _PLACE.unpack_from(places)[0]
        _, first, last, _ = HEAD.unpack(self._head_of(connection, user) or b"")
        oldest_kept = last - self._retention().max_messages + 1
        if first >= 0 and lowest >= oldest_kept:  # nothing was pushed out or replaced
            if lowest > delivered:
                return ()
            return [
                row for offset, row in _PLACE.iter_unpack(places) if offset <= delivered
            ]
        absence = self._absence(connection, user)
        return [
            row_id
            for offset, row_id in _PLACE.iter_unpack(places)
            if offset <= delivered or absence(offset)
        ]

    def settle_due(
        self, connection: Connection, after: tuple[float, int]
    ) -> tuple[float, int] | None:
        """
        Decide about some receipts above `after` that are due by the passing of time.

        Returns:
            Time and row of the last one, the next `after`; ``None`` if no more are due.

        """
        at = self._clock.read()
        rows: list[Any] = connection.execute(
            f"{SELECT_RECEIPTS} WHERE due_s <= ? AND (due_s, receipts.id) > (?, ?)"
            " ORDER BY due_s, receipts.id LIMIT ?",
            (at.now_s, *after, _STEP),
        ).fetchall()
        following = None
        if len(rows) == _STEP:
            row_id = rows[-1][0]
            due_s = connection.execute(
                "SELECT due_s FROM receipts WHERE id = ?", (row_id,)
            ).fetchone()[0]
            following = (due_s, row_id)
        self._decide(connection, rows)
        return following

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
        self._decide(connection, old)
        deleted = connection.execute(
            "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE is_confirmed = 1"
            " AND id < coalesce((SELECT id FROM events WHERE at_s >= ? ORDER BY id"
            " LIMIT 1), ?) ORDER BY id LIMIT ?)",
            (at.ago(retention.dedupe_s), self._next_id, _STEP),
        ).rowcount
        return _STEP in (len(old), deleted)

    def _rows(self, connection: Connection, row_ids: Sequence[int]) -> list[_Row]:
        return connection.execute(
            f"{SELECT_RECEIPTS} WHERE receipts.id IN (SELECT value FROM json_each(?))"  # noqa: S608 - no input
            " ORDER BY offset, receipts.id",
            (orjson.dumps(row_ids).decode(),),
        ).fetchall()

    def _decide(
        self,
        connection: Connection,
        rows: Iterable[_Row],
        chosen: Mapping[int, tuple[int, ClockReading]] = _NOTHING,
    ) -> None:
        """Decide about `rows` by the delivered mark and the time that `chosen` has for each."""
        now, max_age_s = (0, self._clock.read()), self._retention().max_age_s
        absences: dict[str, _Absence] = {}
        events: list[tuple[WorkerEvent, str | None]] = []
        final: dict[str, set[int]] = {}
        for row_id, user, offset, packed in rows:
            if user not in absences:
                absences[user] = self._absence(connection, user)
            receipt = unpack_receipt(packed, user=user, offset=offset)
            delivered, at = chosen.get(row_id, now)
            verdict = decide(
                receipt,
                delivered=delivered,
                at=at,
                oldest_s=at.ago(max_age_s),
                absence=absences[user](offset),
            )
            for outcome in verdict.outcomes:
                is_late = outcome is ReceiptOutcome.UNDELIVERED
                data = self._data(connection, user, offset) if is_late else None
                event = render_event(
                    receipt, outcome, at_s=at.now_s, reason=verdict.reason, data=data
                )
                events.append((event, None if is_late else _name(receipt.message)))
            rest = verdict.rest
            if rest is None:
                final.setdefault(user, set()).add(row_id)
            elif rest != receipt:
                connection.execute(
                    "UPDATE receipts SET due_s = ?, receipt = ? WHERE id = ?",
                    (due_s(rest.message, rest.tracking), rest.pack(), row_id),
                )
        self.put(connection, events)
        row_ids = [row_id for each in final.values() for row_id in each]
        connection.executemany(
            "DELETE FROM receipts WHERE id = ?", [(row_id,) for row_id in row_ids]
        )
        for user, decided in final.items():
            self._forget(user, decided)

    def _forget(self, user: str, row_ids: set[int]) -> None:
        places = b"".join(
            _PLACE.pack(*place)
            for place in _PLACE.iter_unpack(self.open[user])
            if place[1] not in row_ids
        )
        if places:
            self.open[user] = places
        else:
            self._closing.add(user)  # first, because other threads look at both
            del self.open[user]

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    # --- the inbox

    def _absence(self, connection: Connection, user: str) -> _Absence:
        """Return what tells why a message is not in the inbox of `user`."""
        head = self._head_of(connection, user)
        assert head is not None  # noqa: S101 - a user with receipts is not forgotten
        user_id, first, last, _ = HEAD.unpack(head)
        most = self._retention().max_messages
        kept: set[int] = set()
        gone = sparse_after = last
        if first < 0:
            first, sparse_after, gone = connection.execute(
                "SELECT first, sparse_after, gone FROM users WHERE id = ?", (user_id,)
            ).fetchone()
            offsets = connection.execute(
                "SELECT offset FROM sparse WHERE user_id = ? AND offset > ?"
                " ORDER BY offset DESC LIMIT ?",
                (user_id, gone, most + 1),
            ).fetchall()
            if len(offsets) > most:
                gone = max(gone, offsets.pop()[0])
            kept = {offset for (offset,) in offsets}
        first = max(first, sparse_after - (most - len(kept)) + 1)

        def absence(offset: int) -> ReceiptOutcome | None:
            if offset <= sparse_after:
                return ReceiptOutcome.TRIMMED if offset < first else None
            if offset in kept:
                return None
            # One that was replaced was decided on when that happened.
            is_gone = offset <= gone
            return ReceiptOutcome.TRIMMED if is_gone else ReceiptOutcome.REPLACED

        return absence

    def _data(self, connection: Connection, user: str, offset: int) -> bytes | None:
        """Return the data of a message that the tables still hold."""
        user_id, _, _, seq = HEAD.unpack(self._head_of(connection, user) or b"")
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
        """Add events, each with the name of the message whose outcome it is, if any."""
        values: list[object] = []
        for event, message in events:
            values += (self._new_id(), event.at_s, 0, message, event.pack())
        insert(connection, "INSERT INTO events", values, columns=5)
        self.pending += len(events)
        self._has_added = self._has_added or bool(events)

    def confirm(self, connection: Connection, row_ids: Sequence[int]) -> None:
        """Delete events, or keep them for duplicates."""
        keys = [(row_id,) for row_id in row_ids]
        deleted = connection.executemany(
            "DELETE FROM events WHERE id = ? AND is_confirmed = 0 AND message IS NULL",
            keys,
        ).rowcount
        kept = connection.executemany(
            "UPDATE events SET is_confirmed = 1 WHERE id = ? AND is_confirmed = 0", keys
        ).rowcount
        self.pending -= deleted + kept


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


def _name(message: Message) -> str | None:
    """Return the name of a message that its duplicates have too."""
    return None if message.id is None else f"{message.user}\0{message.id}"
