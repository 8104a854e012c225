"""The messages and counters of one user in memory."""

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from math import inf

from bridge.core.clock_reading import ClockReading
from bridge.core.message import Message, Stored
from bridge.enums import SyncReason
from bridge.inbox.contract import Retention

# Event and key.
Place = tuple[str, str | None]


@dataclass(slots=True)
class SparseLog:
    """
    The newer messages of an inbox that has had a key, with holes where one was replaced.

    Attributes:
        after: The newest offset before them.
        gone: The newest offset that was deleted, but not replaced.
        messages: By offset, oldest first.
        keys: The offset of the message with this event and key.
        retained: The newest message of each retained key. It may have been deleted from
            `messages`.

    """

    after: int
    gone: int = 0
    messages: OrderedDict[int, Stored] = field(default_factory=OrderedDict)
    keys: dict[Place, int] = field(default_factory=dict)
    retained: dict[Place, Stored] = field(default_factory=dict)

    def add(self, stored: Stored) -> Stored | None:
        """Add the newest message; return the older one with the same key, which it replaces."""
        message, offset = stored.message, stored.offset
        options, replaced = message.options, None
        if options is not None and options.key is not None:
            place = (message.event, options.key)
            old = self.keys.get(place)
            if old is not None:
                replaced = self.messages.pop(old)
            self.keys[place] = offset
            if options.is_cleared:
                self.retained.pop(place, None)
            elif options.is_retained or (self.retained and place in self.retained):
                self.retained[place] = stored
        self.messages[offset] = stored
        return replaced

    @property
    def oldest_s(self) -> float:
        """When the oldest message was taken; infinite if there is none."""
        oldest = next(iter(self.messages.values()), None)
        return inf if oldest is None else oldest.message.taken_s

    def delete_oldest(self) -> None:
        """Delete the oldest message."""
        self.gone, stored = self.messages.popitem(last=False)
        message = stored.message
        if message.options is not None and message.options.key is not None:
            del self.keys[message.event, message.options.key]


@dataclass(slots=True)
class UserLog:
    """
    One user's inbox.

    Attributes:
        kept: The kept messages, oldest first; their offsets are consecutive.
        sparse: The messages since the first one with a key; ``None`` if there was none.
        last: The newest offset ever given; 0 if there was none.
        delivered: The delivered mark.
        trimmed_for: Why the newest deleted message was deleted.
        forgotten: See `InboxState`; also the initial `last` and `delivered`.
        appended_s: Unix time at which the newest message was stored.

    """

    kept: deque[Stored] = field(default_factory=deque)
    sparse: SparseLog | None = None
    last: int = 0
    delivered: int = 0
    trimmed_for: SyncReason | None = None
    forgotten: int = 0
    appended_s: float = 0.0

    @property
    def first(self) -> int:
        """The offset after the newest deleted one; `last` + 1 if no message is kept."""
        if self.sparse is None:
            return self.last - len(self.kept) + 1
        return max(self.sparse.after - len(self.kept), self.sparse.gone) + 1

    @property
    def sparse_after(self) -> int | None:
        """See `InboxState`."""
        return None if self.sparse is None else self.sparse.after

    @property
    def depth(self) -> int:
        """The number of kept messages."""
        return len(self.kept) + (len(self.sparse.messages) if self.sparse else 0)

    @property
    def retained(self) -> dict[Place, Stored]:
        """The newest message of each retained key."""
        return {} if self.sparse is None else self.sparse.retained

    def may_retain(self, message: Message, retention: Retention) -> bool:
        """Return whether `message` does not retain one key too many."""
        options = message.options
        if options is None or not options.is_retained:
            return True
        retained = self.retained
        return (
            len(retained) < retention.max_retained
            or (message.event, options.key) in retained
        )

    def drop_expired(self, now: ClockReading) -> None:
        """Retain nothing that is past its deadline."""
        for place, stored in tuple(self.retained.items()):
            if stored.message.is_expired(now):
                del self.retained[place]

    def add_sparse(self, message: Message) -> tuple[Stored, Stored | None]:
        """
        Add the newest message; the inbox is sparse from now on.

        Returns:
            The message, and the one that it replaces, if any.

        """
        sparse = self.sparse
        if sparse is None:
            sparse = self.sparse = SparseLog(after=self.last)
        self.last += 1
        stored = Stored(message, self.last)
        return stored, sparse.add(stored)

    def above(self, offset: int) -> Iterator[Stored]:
        """Yield the kept messages above `offset`, oldest first."""
        end = self.last if self.sparse is None else self.sparse.after
        dense = islice(self.kept, max(0, offset + len(self.kept) - end), None)
        if self.sparse is None:
            return dense
        found = (each for each in self.sparse.messages.values() if each.offset > offset)
        return chain(dense, found)

    def below(self, offset: int) -> Iterator[Stored]:
        """Yield the kept messages below `offset`, newest first."""
        sparse = reversed(self.sparse.messages.values()) if self.sparse else ()
        return (
            each for each in chain(sparse, reversed(self.kept)) if each.offset < offset
        )

    def trim(self, most: int, oldest_s: float) -> int:
        """
        Delete messages above the newest `most`, or taken before the Unix time `oldest_s`.

        Returns:
            How many were above the limit.

        """
        kept = self.kept
        trimmed = 0
        if self.sparse is not None:
            most -= len(self.sparse.messages)
            if most < 0 or self.sparse.oldest_s < oldest_s:
                self._trim_sparse(self.sparse, -most, oldest_s)
                trimmed = max(0, -most)
        while kept and len(kept) > most:
            kept.popleft()
            trimmed += 1
            self.trimmed_for = SyncReason.LIMIT
        while kept and kept[0].message.taken_s < oldest_s:
            kept.popleft()
            self.trimmed_for = SyncReason.EXPIRED
        return trimmed

    def _trim_sparse(self, sparse: SparseLog, excess: int, oldest_s: float) -> None:
        for _ in range(excess):
            sparse.delete_oldest()
            self.trimmed_for = SyncReason.LIMIT
        while sparse.oldest_s < oldest_s:
            sparse.delete_oldest()
            self.trimmed_for = SyncReason.EXPIRED
