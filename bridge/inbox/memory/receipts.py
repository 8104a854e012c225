"""Receipts and the event outbox in memory."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush
from itertools import islice, takewhile
from typing import Final

from bridge.core.clock_reading import ClockReading
from bridge.core.message import Message
from bridge.core.message_options import Tracking
from bridge.core.receipts import (
    Receipt,
    WorkerEvent,
    decide,
    duplicate_tracking,
    tracked_of,
)
from bridge.enums import ReceiptOutcome
from bridge.inbox.memory.user_log import UserLog
from bridge.inbox.worker_events import render_event

# The index of times is built again when more of its entries than these are not needed.
_STALE_MAX: Final = 1000
_LATE: Final = ReceiptOutcome.UNDELIVERED


class MemoryReceipts:
    """
    The receipts of all users.

    Attributes:
        open: Those whose outcome is open: of each user by offset, in order. Duplicates of a
            message are at its offset.

    """

    def __init__(self) -> None:
        self.open: dict[str, dict[int, list[Receipt]]] = {}
        self._due: list[tuple[float, str, int]] = []  # time, user, offset: a heap
        # The last event about each message that has an id, oldest first.
        self._concluded: dict[tuple[str, str | None], WorkerEvent] = {}
        self._events: dict[int, WorkerEvent] = {}
        self._next_key = 0
        self._wake: Callable[[], None] | None = None

    # --- the outbox

    def on_events(self, wake: Callable[[], None]) -> None:
        """Call `wake` after each event."""
        self._wake = wake

    def pending(self, limit: int) -> Sequence[WorkerEvent]:
        """Return the oldest events."""
        found = islice(self._events.items(), limit)
        return [replace(event, key=key) for key, event in found]

    def confirm(self, events: Iterable[WorkerEvent]) -> None:
        """Remove events."""
        for event in events:
            if isinstance(event.key, int):
                self._events.pop(event.key, None)

    def depth(self, now_s: float) -> tuple[int, float | None]:
        """Return the number of events, and the age of the oldest."""
        oldest = next(iter(self._events.values()), None)
        return len(self._events), None if oldest is None else now_s - oldest.at_s

    def put(self, event: WorkerEvent) -> None:
        """Add an event."""
        self._events[self._next_key] = event
        self._next_key += 1
        if self._wake is not None:
            self._wake()

    # --- receipts

    def add(self, messages: Sequence[Message], offsets: Sequence[int | None]) -> None:
        """Add the tracked ones of `messages`, which were stored at `offsets`."""
        for message, offset, tracking in tracked_of(messages, offsets):
            if offset is None:
                self._add_duplicate(message, tracking)
            else:
                self._open(Receipt(message, offset, tracking))

    def _add_duplicate(self, message: Message, tracking: Tracking) -> None:
        for receipts in self.open.get(message.user, {}).values():
            if receipts[0].message.id == message.id:
                known = (each.tracking for each in receipts)
                wanted = duplicate_tracking(known, tracking)
                if wanted is not None:
                    self._open(replace(receipts[0], tracking=wanted))
                return
        concluded = self._concluded.get((message.user, message.id))
        if concluded is not None and tracking.wants_receipt:
            self.put(concluded.copy_for(tracking))

    def _open(self, receipt: Receipt) -> None:
        user, offset = receipt.message.user, receipt.offset
        self.open.setdefault(user, {}).setdefault(offset, []).append(receipt)
        due_s = receipt.due_s
        if due_s is not None:
            heappush(self._due, (due_s, user, offset))

    def settle(
        self, user: str, log: UserLog, *, at: ClockReading, oldest_s: float
    ) -> None:
        """Decide about messages that were delivered, deleted or replaced."""
        receipts = self.open[user]
        newest = max(log.delivered, log.first - 1)
        decided = list(takewhile(newest.__ge__, receipts))
        if log.sparse is not None:
            decided = [each for each in receipts if each <= newest or log.absence(each)]
        for offset in decided:
            self._decide(log, receipts, offset, at=at, oldest_s=oldest_s)
        if not receipts:
            del self.open[user]

    def settle_due(
        self, logs: dict[str, UserLog], *, at: ClockReading, oldest_s: float
    ) -> None:
        """Decide what became due by the passing of time."""
        later: list[tuple[float, str, int]] = []
        while self._due and self._due[0][0] <= at.now_s:
            _, user, offset = heappop(self._due)
            receipts = self.open.get(user, {})
            if offset not in receipts:
                continue
            self._decide(logs[user], receipts, offset, at=at, oldest_s=oldest_s)
            later += [
                (each.due_s, user, offset)
                for each in receipts.get(offset, ())
                if each.due_s is not None
            ]
            if not receipts:
                del self.open[user]
        for each in later:
            heappush(self._due, each)

    def sweep(self, oldest_id_s: float) -> None:
        """Forget outcomes from before `oldest_id_s`, and times that are not needed."""
        old = takewhile(
            lambda item: item[1].at_s < oldest_id_s, self._concluded.items()
        )
        for key, _ in list(old):
            del self._concluded[key]
        needed = [each for each in self._due if each[2] in self.open.get(each[1], ())]
        if len(self._due) - len(needed) > _STALE_MAX:
            heapify(needed)
            self._due = needed

    def _decide(
        self,
        log: UserLog,
        receipts: dict[int, list[Receipt]],
        offset: int,
        *,
        at: ClockReading,
        oldest_s: float,
    ) -> None:
        rest: list[Receipt] = []
        for receipt in receipts[offset]:
            message = receipt.message
            verdict = decide(
                receipt,
                delivered=log.delivered,
                at=at,
                oldest_s=oldest_s,
                absence=log.absence(offset),
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
                    self._concluded.pop((message.user, message.id), None)
                    self._concluded[message.user, message.id] = event
            if verdict.rest is not None:
                rest.append(verdict.rest)
        if rest:
            receipts[offset] = rest
        else:
            del receipts[offset]
