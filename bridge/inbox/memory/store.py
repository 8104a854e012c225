"""
Inboxes in the memory of the process: fast, and lost when the process ends.

The epoch is new at each start. So positions from before a restart are recognized, and
clients learn that messages may be missing.
"""

import asyncio
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import takewhile
from operator import attrgetter
from typing import Final

from bridge.clock import SteadyClock
from bridge.core.clock_reading import ClockReading
from bridge.core.identity import Identity
from bridge.core.message import Message, Stored
from bridge.core.receipts import WorkerEvent, fit_events
from bridge.core.replay import (
    InboxPage,
    InboxState,
    count_gone,
    fit,
    forgotten_above,
)
from bridge.core.revocation import Revocation, RevocationIndex
from bridge.inbox.contract import (
    EVENT_BYTES,
    REFUSED,
    AnnouncedListener,
    EpochListener,
    Retention,
    RevokedListener,
    StoredListener,
)
from bridge.inbox.lone_presence import LonePresence
from bridge.inbox.memory.admin_queries import MemoryAdminQueries
from bridge.inbox.memory.receipts import MemoryReceipts
from bridge.inbox.memory.user_log import UserLog

# The most users that one sweep forgets, which takes some milliseconds.
_FORGET_MAX: Final = 10_000
# Steps of 1,000 messages that seem due, although most may be delivered already, in one call.
_DUE_STEPS: Final = 20


class MemoryInbox:
    """
    The inboxes of all users in one process.

    Messages are deleted by `Retention`. A user without messages and windows is forgotten.
    """

    description: Final = "memory:"
    problem: str | None = None  # memory can always be written

    def __init__(
        self, retention: Retention, *, clock: SteadyClock | None = None
    ) -> None:
        self.retention = retention
        self.trimmed = 0
        self.epoch = secrets.token_hex(5)
        self._clock = clock or SteadyClock()
        self._logs: dict[str, UserLog] = {}
        # When an id of a user was last stored, oldest first.
        self._seen: dict[tuple[str, str], float] = {}
        self._followed: set[str] = set()
        self._forgotten = 0
        self._receipts = MemoryReceipts(
            self._logs, clock=self._clock, retention=lambda: self.retention
        )
        self._presence = LonePresence()
        self._revocations = RevocationIndex()
        self._on_stored: StoredListener | None = None
        self._on_announced: AnnouncedListener | None = None
        self.admin: Final = MemoryAdminQueries(
            self._logs,
            self._seen,
            self._state,
            self._receipts.open_of,
            self._receipts.pending,
        )

    async def exists(self) -> bool:
        """Return true: memory needs no preparation."""
        return True

    async def open(self) -> None:
        """Do nothing: memory needs no opening."""

    async def close(self) -> None:
        """Do nothing: the messages are lost when the process ends."""

    async def check(self) -> None:
        """Do nothing: memory can always be written."""

    async def usage(self) -> None:
        """Return ``None``: memory has no limit of its own."""

    def subscribe(
        self,
        on_stored: StoredListener,
        on_epoch_changed: EpochListener | None = None,
        on_announced: AnnouncedListener | None = None,
        on_revoked: RevokedListener | None = None,
    ) -> None:
        """Publish messages and revocations; the epoch never changes in a process."""
        del on_epoch_changed
        self._on_stored = on_stored
        self._on_announced = on_announced
        self._revocations.subscribe(on_revoked)

    async def follow(self, user: str) -> None:
        """Include `user` in the feed."""
        self._followed.add(user)

    def unfollow(self, user: str) -> None:
        """Exclude `user` from the feed."""
        self._followed.discard(user)

    async def announce(self, messages: Sequence[Message]) -> None:
        """Publish ephemeral messages of followed users, without storing them."""
        announced = [each for each in messages if each.user in self._followed]
        if announced and self._on_announced is not None:
            self._on_announced(announced)

    async def append(self, messages: Sequence[Message]) -> list[int | None]:
        """Store `messages`; return the offset of each, ``None`` for a duplicate."""
        now = self._clock.read()
        now_s, logs, followed = now.now_s, self._logs, self._followed
        fresh: list[Stored] = []
        offsets: list[int | None] = []
        touched: set[str] = set()
        for message in messages:
            user, options = message.user, message.options
            if message.id is not None and self._was_seen(user, message.id, now):
                offsets.append(None)
                self._receipts.add_duplicate(message)
                continue
            log = logs.get(user) or self._new_log(user)
            log.appended_s = now_s
            if log.sparse is None and (options is None or options.key is None):
                log.last += 1
                stored = Stored(message, log.last)
                log.kept.append(stored)
            elif log.may_retain(message, self.retention):
                stored, replaced = log.add_sparse(message)
                if replaced is not None:
                    self._receipts.settle_replaced(replaced)
            else:
                if message.id is not None:
                    del self._seen[user, message.id]
                offsets.append(REFUSED)
                continue
            touched.add(user)
            offsets.append(log.last)
            if options is not None and options.tracking is not None:
                self._receipts.add(stored)
            if user in followed:
                fresh.append(stored)
        self._trim(touched, now)
        if fresh and self._on_stored is not None:
            self._on_stored(fresh)
        return offsets

    def _new_log(self, user: str) -> UserLog:
        floor = self._forgotten
        log = UserLog(last=floor, delivered=floor, forgotten=floor)
        self._logs[user] = log
        return log

    def _trim(self, users: Iterable[str], now: ClockReading) -> None:
        most, oldest_s = self._limits(now)
        for user in users:
            trimmed = self._logs[user].trim(most, oldest_s)
            if trimmed:  # a sweep decides about those that were too old
                self.trimmed += trimmed
                self._receipts.settle(user)

    def _limits(self, now: ClockReading) -> tuple[int, float]:
        return self.retention.max_messages, now.ago(self.retention.max_age_s)

    async def state(self, user: str) -> InboxState:
        """Return the first, last and delivered offsets of the inbox of `user`."""
        return self._state(user)

    def _state(self, user: str) -> InboxState:
        log = self._logs.get(user)
        if log is None:
            return InboxState.empty(self.epoch, self._forgotten)
        log.trim(*self._limits(self._clock.read()))
        return InboxState(
            epoch=self.epoch,
            first=log.first,
            last=log.last,
            delivered=log.delivered,
            trimmed_for=log.trimmed_for,
            forgotten=log.forgotten,
            sparse_after=log.sparse_after,
            holes=log.last - log.first + 1 - log.depth,
            retained=len(log.retained),
        )

    async def read(
        self, user: str, *, after: int, max_messages: int, max_bytes: int
    ) -> InboxPage:
        """Read messages with offsets above `after`, oldest first."""
        log = self._logs.get(user)
        if log is None:
            return InboxPage.empty(after, self._forgotten)
        now = self._clock.read()
        found: list[Stored] = []
        expired = 0
        size_bytes = 0
        known = max(after, log.forgotten)
        gone = count_gone(known, log.first, log.sparse_after)
        next_after = max(after, log.first - 1)
        for stored in log.above(next_after):
            if stored.message.is_expired(now):
                expired += 1
            else:
                size_bytes += len(stored.message.data)
                if found and (len(found) >= max_messages or size_bytes > max_bytes):
                    break
                found.append(stored)
            next_after = stored.offset
        else:
            next_after = max(next_after, log.last)  # the newest may be a hole
        return InboxPage(found, next_after, expired=expired, gone=gone, last=log.last)

    async def read_retained(
        self, user: str, *, after: int, upto: int, max_bytes: int
    ) -> Sequence[Stored]:
        """Read the newest message of each retained key; see `InboxReader`."""
        log, now = self._logs.get(user), self._clock.read()
        found = [
            stored
            for stored in (log.retained.values() if log is not None else ())
            if after < stored.offset <= upto and not stored.message.is_expired(now)
        ]
        return fit(sorted(found, key=attrgetter("offset")), max_bytes=max_bytes)

    async def count_expired(self, user: str, *, after: int) -> int:
        """Count the messages above the offset `after` that are past their deadline."""
        log = self._logs.get(user)
        now = self._clock.read()
        return sum(
            stored.message.is_expired(now)
            for stored in (log.above(after) if log is not None else ())
        )

    async def revoke(self, revocation: Revocation) -> None:
        """Remember a revocation until the process ends, and pass it to the subscriber."""
        self._revocations.check_room()
        self._revocations.add(revocation)

    def is_revoked(self, identity: Identity) -> bool:
        """Return whether a revocation in force covers the token of `identity`."""
        return self._revocations.is_revoked(identity, self._clock.read())

    def revocations(self, user: str) -> Sequence[Revocation]:
        """Return the revocations of `user` that are in force."""
        return self._revocations.of(user, self._clock.read())

    def all_revocations(self) -> Sequence[Revocation]:
        """Return the revocations of all users that are in force."""
        return self._revocations.all(self._clock.read())

    def mark_delivered(self, user: str, offset: int) -> None:
        """Move the delivered mark of `user` forward to `offset`."""
        log = self._logs.get(user)
        if log is not None and offset > log.delivered:
            log.delivered = min(offset, log.last)
            self._receipts.settle(user)

    # --- receipts

    @property
    def tracked(self) -> Collection[str]:
        """The users who have receipts whose outcome is open."""
        return self._receipts.open.keys()

    def on_events(self, wake: Callable[[], None]) -> None:
        """Call `wake` when there is an event to publish."""
        self._receipts.on_events(wake)

    async def pending_events(
        self, limit: int, *, max_bytes: int = EVENT_BYTES
    ) -> Sequence[WorkerEvent]:
        """Decide what is due, and return the oldest events."""
        for _ in range(_DUE_STEPS):
            if not self._receipts.settle_due():
                break
            await asyncio.sleep(0)
        return fit_events(self._receipts.pending(limit), max_bytes=max_bytes)

    async def confirm_events(self, events: Sequence[WorkerEvent]) -> None:
        """Delete events that were published."""
        self._receipts.confirm(events)

    async def add_event(self, event: WorkerEvent) -> None:
        """Add an event."""
        self._receipts.put(event)

    async def drop_presence_events(self, limit: int) -> int:
        """Delete the oldest events about presence."""
        return self._receipts.drop_presence(limit)

    async def events_depth(self) -> tuple[int, float | None]:
        """Return the number of events, and the age of the oldest in seconds."""
        return self._receipts.depth()

    async def note_presence(
        self, windows: Mapping[str, int], *, debounce_s: float
    ) -> None:
        """Note windows, and decide who is online; nothing survives the process."""
        decision = self._presence.decide(
            windows,
            debounce_s=debounce_s,
            real_s=self._clock.real_s(),
            now_s=self._clock.wall_s(),
        )
        for event in decision.events:
            self._receipts.put(event)
        self._presence.apply(decision)

    async def note_trials(self, keys: Sequence[bytes]) -> list[int]:
        """
        Return 1 for each: memory does not survive a crash, so it cannot count crashes.

        With this store, a message that crashes the process is never dead-lettered for it.
        """
        return [1] * len(keys)

    def forget_trial(self, key: bytes) -> None:
        """Do nothing: no trial was recorded."""

    async def sweep(self) -> None:
        """Delete messages and ids that are too old, and forget idle users."""
        now = self._clock.read()
        self._revocations.drop_over(now)
        oldest_s = now.ago(self.retention.dedupe_s)
        limits = self._limits(now)
        idle: list[str] = []
        for user, log in self._logs.items():
            log.trim(*limits)
            log.drop_expired(now)
            self._receipts.settle(user)
            if (
                not (log.depth or log.retained)
                and log.appended_s < oldest_s
                and user not in self._followed
            ):
                idle.append(user)
        for user in idle[:_FORGET_MAX]:
            last = self._logs.pop(user).last
            self._forgotten = max(self._forgotten, forgotten_above(last))
        self._receipts.sweep(oldest_s)
        # Collected first: a dict that is emptied from the front is slow to iterate.
        old = takewhile(lambda item: item[1] < oldest_s, self._seen.items())
        for key, _ in list(old):
            del self._seen[key]

    def _was_seen(self, user: str, message_id: str, now: ClockReading) -> bool:
        """Return whether the id is a duplicate; if not, remember it."""
        key = (user, message_id)
        seen_s = self._seen.get(key)
        if seen_s is not None and seen_s >= now.ago(self.retention.dedupe_s):
            return True
        self._seen.pop(key, None)  # reinsert at the end: the dict is ordered by time
        self._seen[key] = now.now_s
        return False
