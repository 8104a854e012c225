"""
Inboxes in the memory of the process: fast, and gone when it stops.

Its epoch is new at each start, so a page's position from before is recognised, and the
page is told that something may be missing.
"""

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from time import time
from typing import Final

from bridge.core.message import Message, Stored
from bridge.core.replay import InboxState, Page
from bridge.enums import SyncReason
from bridge.inbox.contract import EpochListener, Retention, StoredListener
from bridge.inbox.memory.admin_queries import MemoryAdminQueries


@dataclass(slots=True)
class _Log:
    kept: deque[Stored] = field(default_factory=deque)
    last: int = 0
    delivered: int = 0
    trimmed_for: SyncReason | None = None

    @property
    def first(self) -> int:
        return self.last - len(self.kept) + 1

    def trim(self, retention: Retention, now_s: float) -> None:
        kept = self.kept
        while len(kept) > retention.max_messages:
            kept.popleft()
            self.trimmed_for = SyncReason.LIMIT
        oldest_s = now_s - retention.max_age_s
        while kept and kept[0].message.taken_s < oldest_s:
            kept.popleft()
            self.trimmed_for = SyncReason.EXPIRED


class MemoryInbox:
    """
    All users' inboxes in one process.

    What a user's counters need stays as long as the process lives, some hundred bytes a
    user; messages go by `Retention`. Why it must stay: see sqlite_format.
    """

    description: Final = "memory:"
    problem: str | None = None  # memory can always be written

    def __init__(
        self, retention: Retention, *, now: Callable[[], float] = time
    ) -> None:
        self.retention = retention  # may be replaced while running
        self.epoch = secrets.token_hex(5)
        self._now = now
        self._logs: dict[str, _Log] = {}
        self._seen: dict[tuple[str, str], float] = {}
        self._followed: set[str] = set()
        self._on_stored: StoredListener | None = None
        self.admin: Final = MemoryAdminQueries(
            self._logs, self._seen, state=self._state
        )

    async def exists(self) -> bool:
        """Return true: memory needs no preparation."""
        return True

    async def open(self) -> None:
        """Do nothing: memory is always there."""

    async def close(self) -> None:
        """Do nothing: what is here goes with the process."""

    async def check(self) -> None:
        """Do nothing: memory can always be written."""

    async def usage(self) -> None:
        """Return that it takes nothing on any disk."""

    def subscribe(
        self,
        on_stored: StoredListener,
        on_epoch_changed: EpochListener | None = None,
    ) -> None:
        """Publish stored messages; the epoch never changes while the process runs."""
        del on_epoch_changed
        self._on_stored = on_stored

    async def follow(self, user: str) -> None:
        """Let the listener hear of `user`. What is stored after this returns, it hears."""
        self._followed.add(user)

    def unfollow(self, user: str) -> None:
        """Let the listener hear of `user` no more."""
        self._followed.discard(user)

    async def append(self, messages: Sequence[Message]) -> list[int | None]:
        """
        Store `messages` in order, all or none.

        Returns:
            The offset of each; ``None`` for one whose id its user has had within the
            dedupe window.

        Raises:
            StoreUnavailableError: Never here; a store that can be away raises it.

        """
        now_s = self._now()
        fresh: list[Stored] = []
        offsets: list[int | None] = []
        touched: set[str] = set()
        for message in messages:
            if message.id is not None and self._was_seen(
                message.user, message.id, now_s
            ):
                offsets.append(None)
                continue
            log = self._logs.get(message.user)
            if log is None:
                log = self._logs[message.user] = _Log()
            log.last += 1
            stored = Stored(message, log.last)
            log.kept.append(stored)
            touched.add(message.user)
            offsets.append(log.last)
            if message.user in self._followed:
                fresh.append(stored)
        for user in touched:
            self._logs[user].trim(self.retention, now_s)
        if fresh and self._on_stored is not None:
            self._on_stored(fresh)
        return offsets

    async def state(self, user: str) -> InboxState:
        """Return where the inbox of `user` begins, ends, and is delivered up to."""
        return self._state(user)

    def _state(self, user: str) -> InboxState:
        log = self._logs.get(user)
        if log is None:
            return InboxState(epoch=self.epoch, first=1, last=0, delivered=0)
        log.trim(self.retention, self._now())
        return InboxState(
            epoch=self.epoch,
            first=log.first,
            last=log.last,
            delivered=log.delivered,
            trimmed_for=log.trimmed_for,
        )

    async def read(
        self, user: str, *, after: int, max_messages: int, max_bytes: int
    ) -> Page:
        """
        Read on behind the offset `after`.

        At least one message comes if there is any, however large it is.
        """
        log = self._logs.get(user)
        if log is None:
            return Page(messages=(), next_after=after, expired=0, gone=0, last=0)
        now_s = self._now()
        found: list[Stored] = []
        expired = 0
        size_bytes = 0
        gone = max(0, log.first - 1 - after)
        next_after = after + gone
        for stored in islice(log.kept, next_after - log.first + 1, None):
            if stored.is_expired(now_s):
                expired += 1
            else:
                size_bytes += len(stored.message.data)
                if found and (len(found) >= max_messages or size_bytes > max_bytes):
                    break
                found.append(stored)
            next_after = stored.offset
        return Page(found, next_after, expired=expired, gone=gone, last=log.last)

    async def count_expired(self, user: str, *, after: int) -> int:
        """Count what is kept behind the offset `after` and is past its deadline."""
        log = self._logs.get(user)
        now_s = self._now()
        return sum(
            stored.offset > after and stored.is_expired(now_s)
            for stored in (log.kept if log is not None else ())
        )

    def mark_delivered(self, user: str, offset: int) -> None:
        """Move the delivered mark of `user` forward to `offset`; backwards is ignored."""
        log = self._logs.get(user)
        if log is not None and offset > log.delivered:
            log.delivered = min(offset, log.last)

    async def note_trial(self, key: bytes) -> int:
        """
        Note that the message with this key is in hand alone; returns which trial this is.

        A memory that dies with the process cannot remember what killed it: always 1. With
        this store a message that makes the process die is not set aside.
        """
        del key
        return 1

    def forget_trial(self, key: bytes) -> None:
        """Forget it: the message was settled, or the process lives."""

    async def sweep(self) -> None:
        """Forget what is over its age, also for users that nobody asks about."""
        now_s = self._now()
        for log in self._logs.values():
            log.trim(self.retention, now_s)
        self._forget_ids(now_s)

    def _was_seen(self, user: str, message_id: str, now_s: float) -> bool:
        key = (user, message_id)
        seen_s = self._seen.get(key)
        if seen_s is not None and now_s - seen_s <= self.retention.dedupe_s:
            return True
        self._seen.pop(key, None)  # to the end: the oldest stand first
        self._seen[key] = now_s
        return False

    def _forget_ids(self, now_s: float) -> None:
        oldest_s = now_s - self.retention.dedupe_s
        while self._seen:
            key = next(iter(self._seen))
            if self._seen[key] >= oldest_s:
                return
            del self._seen[key]
