"""
Receipts and the event outbox in memory.

A receipt whose outcome is open is the stored message itself, because its options say what is
wanted. So a message that waits costs two references and no object.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from itertools import chain, islice, takewhile
from operator import attrgetter
from typing import Final

from bridge.clock import SteadyClock
from bridge.core.clock_reading import ClockReading
from bridge.core.message import Message, Stored
from bridge.core.message_options import MessageOptions, Tracking
from bridge.core.receipts import (
    Receipt,
    WorkerEvent,
    decide,
    due_s,
    duplicate_tracking,
)
from bridge.enums import ReceiptOutcome
from bridge.inbox.contract import EVENT_BYTES, Retention
from bridge.inbox.memory.user_log import UserLog
from bridge.inbox.worker_events import render_event

# The index of times is built again when more of its entries than these are not needed.
_STALE_MAX: Final = 1000
# The most that one call decides because of the time, which takes some milliseconds. It also ends
# when an event for each would have more data than `EVENT_BYTES`.
_STEP: Final = 1000
# A member of an enum is slow to look up.
_LATE: Final = ReceiptOutcome.UNDELIVERED
_REPLACED: Final = ReceiptOutcome.REPLACED
_TRIMMED: Final = ReceiptOutcome.TRIMMED
_OFFSET: Final = attrgetter("offset")


class MemoryReceipts:
    """
    The receipts of all users.

    Attributes:
        open: The tracked messages of each user whose outcome is open, in the order of their
            offsets. Duplicates of a message have its offset.

    """

    def __init__(
        self,
        logs: Mapping[str, UserLog],
        *,
        clock: SteadyClock,
        retention: Callable[[], Retention],
    ) -> None:
        self._logs = logs
        self._clock = clock
        self._retention = retention
        self.open: dict[str, list[Stored]] = {}
        # Added since the last look at the times. Most are delivered before the next one.
        self._new: list[Stored] = []
        # By the second in which time alone may decide about them. Some are closed already.
        self._due: dict[int, list[Stored]] = {}
        self._seconds: list[int] = []  # the keys of `_due`: a heap
        # Not due although their second has come. After a jump of the clock these may be more
        # than one call looks at, so they wait until the others were looked at.
        self._early: list[Stored] = []
        # The last event about each message that has an id, oldest first.
        self._concluded: dict[tuple[str, str | None], WorkerEvent] = {}
        self._events: dict[int, WorkerEvent] = {}  # by their identity
        self._wake: Callable[[], None] | None = None

    # --- the outbox

    def on_events(self, wake: Callable[[], None]) -> None:
        """Call `wake` after each event."""
        self._wake = wake

    def pending(self, limit: int | None = None) -> Sequence[WorkerEvent]:
        """Return the oldest events, at most `limit`."""
        return list(islice(self._events.values(), limit))

    def confirm(self, events: Iterable[WorkerEvent]) -> None:
        """Remove events."""
        for event in events:
            self._events.pop(id(event), None)

    def drop_presence(self, limit: int) -> int:
        """Remove the oldest events about presence."""
        events = self._events
        found = (key for key, event in events.items() if event.is_presence)
        keys = list(islice(found, limit))
        for key in keys:
            del events[key]
        return len(keys)

    def depth(self) -> tuple[int, float | None]:
        """Return the number of events, and the age of the oldest in seconds."""
        for oldest in self._events.values():
            return len(self._events), self._clock.read().now_s - oldest.at_s
        return 0, None

    def put(self, event: WorkerEvent) -> None:
        """Add an event."""
        self._events[id(event)] = event
        if self._wake is not None:
            self._wake()

    # --- receipts

    def open_of(self, user: str) -> Sequence[Receipt]:
        """Return the receipts of a user whose outcome is open."""
        return [_receipt(each) for each in self.open.get(user, ())]

    def add(self, stored: Stored) -> None:
        """Add the newest message of a user."""
        self.open.setdefault(stored.message.user, []).append(stored)
        self._new.append(stored)

    def _note_due(self, some: Iterable[Stored]) -> None:
        for stored in some:
            at_s = due_s(stored.message, _tracking(stored))
            if at_s is None:
                continue
            second = int(at_s)
            if second not in self._due:
                self._due[second] = []
                heappush(self._seconds, second)
            self._due[second].append(stored)

    def add_duplicate(self, message: Message) -> None:
        """Let the producer of a duplicate, if it is tracked, know the outcome too."""
        wanted = None if message.options is None else message.options.tracking
        if wanted is None:
            return
        receipts = self.open.get(message.user, [])
        known = [_receipt(each) for each in receipts if each.message.id == message.id]
        if known:
            tracking = duplicate_tracking((each.tracking for each in known), wanted)
            if tracking is not None:
                more = _stored(replace(known[0], tracking=tracking))
                receipts.insert(bisect_right(receipts, more.offset, key=_OFFSET), more)
                self._note_due([more])
            return
        concluded = self._concluded.get((message.user, message.id))
        if concluded is not None and wanted.wants_receipt:
            self.put(concluded.copy_for(wanted))

    def settle(self, user: str) -> None:
        """Decide about the messages of a user that were delivered or deleted."""
        receipts = self.open.get(user)
        if receipts is not None:
            log = self._logs[user]
            newest = max(log.delivered, log.first - 1)
            if receipts[0].offset <= newest:
                stop = bisect_right(receipts, newest, key=_OFFSET)
                self._decide(user, slice(stop), self._clock.read())

    def settle_replaced(self, old: Stored) -> None:
        """Decide about the message that a newer one has replaced."""
        if old.message.user in self.open:
            span = self._span(old.message.user, old.offset)
            self._decide(old.message.user, span, self._clock.read(), _REPLACED)

    def settle_due(self) -> bool:
        """
        Decide about some messages that are due by the passing of time.

        Returns:
            Whether there may be more.

        """
        at = self._clock.read()
        new, self._new = self._new, []
        self._note_due(each for each in new if each.message.user in self.open)
        found: dict[tuple[str, int], None] = {}  # duplicates are at one offset
        size_bytes, is_full = 0, False
        while self._seconds and self._seconds[0] <= at.now_s and not is_full:
            due = self._due[self._seconds[0]]
            taken = 0
            for each in due[:_STEP]:
                message = each.message
                found[message.user, each.offset] = None
                taken += 1
                if message.user in self.open:
                    size_bytes += len(message.data)
                is_full = len(found) >= _STEP or size_bytes > EVENT_BYTES
                if is_full:
                    break
            del due[:taken]
            if not due:
                del self._due[heappop(self._seconds)]
        for user, offset in found:
            if user in self.open:
                self._decide(user, self._span(user, offset), at)
            self._early += self.open.get(user, [])[self._span(user, offset)]
        if is_full:
            return True
        early, self._early = self._early, []
        self._note_due(early)
        return False

    def sweep(self, oldest_id_s: float) -> None:
        """Forget outcomes from before `oldest_id_s`, and times that are not needed."""
        old = takewhile(
            lambda item: item[1].at_s < oldest_id_s, self._concluded.items()
        )
        for key, _ in list(old):
            del self._concluded[key]
        noted, count = (sum(map(len, each.values())) for each in (self._due, self.open))
        if noted > 2 * count + _STALE_MAX:
            self._due.clear()
            self._seconds.clear()
            self._early.clear()
            self._new.clear()
            self._note_due(chain.from_iterable(self.open.values()))

    def _span(self, user: str, offset: int) -> slice:
        """Return where the receipts of one message are."""
        receipts = self.open.get(user, [])
        return slice(
            bisect_left(receipts, offset, key=_OFFSET),
            bisect_right(receipts, offset, key=_OFFSET),
        )

    def _decide(
        self,
        user: str,
        span: slice,
        at: ClockReading,
        absence: ReceiptOutcome | None = None,
    ) -> None:
        receipts, log = self.open[user], self._logs[user]
        oldest_s = at.ago(self._retention().max_age_s)
        rest: list[Stored] = []
        for stored in receipts[span]:
            message, receipt = stored.message, _receipt(stored)
            is_trimmed = stored.offset < log.first
            verdict = decide(
                receipt,
                delivered=log.delivered,
                at=at,
                oldest_s=oldest_s,
                absence=absence or (_TRIMMED if is_trimmed else None),
            )
            for outcome in verdict.outcomes:
                event = render_event(
                    receipt,
                    outcome,
                    at_s=at.now_s,
                    reason=verdict.reason,
                    data=message.data,
                )
                self.put(event)
                if message.id is not None and outcome is not _LATE:
                    self._concluded.pop((user, message.id), None)
                    self._concluded[user, message.id] = event
            if verdict.rest is not None:
                is_same = verdict.rest.tracking is receipt.tracking
                rest.append(stored if is_same else _stored(verdict.rest))
        receipts[span] = rest
        if not receipts:
            del self.open[user]


def _tracking(stored: Stored) -> Tracking:
    options = stored.message.options
    assert options is not None  # noqa: S101 - it is tracked
    assert options.tracking is not None  # noqa: S101 - it is tracked
    return options.tracking


def _receipt(stored: Stored) -> Receipt:
    return Receipt(stored.message, stored.offset, _tracking(stored))


def _stored(receipt: Receipt) -> Stored:
    options = MessageOptions(tracking=receipt.tracking)
    return Stored(replace(receipt.message, options=options), receipt.offset)
