"""
Cache the descriptions at the head of the dead-letter queue, for the next page.

Browsing has to take every message that an earlier session has returned (browser.py), and
RabbitMQ reads each of their bodies from its log: 3 s of its CPU for 100,000 messages, however
few are wanted. So pages are answered from the cache while the head of the queue is unchanged.

The depth of the queue shows that. Messages arrive at the end and leave by an ack: while the
queue is never shorter than before and this bridge acked nothing, its head is unchanged. The
depth does not reveal one case: another client takes some and at least as many arrive between
two requests. A page may then show removed messages until `KEPT_S` is over. Only lists use
the cache; a redrive or discard reads the queue itself.
"""

import time
from collections.abc import Callable, Sequence
from sys import getsizeof
from typing import Final

from bridge.core.dead_letter import StoredDeadLetter

KEPT_S: Final = 600.0
# About 100,000 messages of 1,000 users. Messages beyond that are not cached.
_MAX_BYTES: Final = 32 << 20
# A session reads on to the next multiple: RabbitMQ has delivered these messages anyway, and
# they are the next pages.
_BLOCK: Final = 1000
_ENTRY_BYTES: Final = 160  # the object, its numbers and its place in the list


class CacheRecording:
    """Descriptions in the order of the queue, limited by their size in bytes."""

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self.entries: list[StoredDeadLetter] = []
        self._free_bytes = max_bytes
        self._shared: set[int] = set()  # strings that many entries share, counted once

    def add(self, stored: StoredDeadLetter) -> None:
        """Keep `stored`; once the limit is reached, ignore it and all later ones."""
        if self._free_bytes <= 0:
            return
        size_bytes = _ENTRY_BYTES + getsizeof(stored.id) + getsizeof(stored.message_id)
        for text in (
            stored.user,
            stored.event,
            stored.error,
            stored.origin_exchange,
            stored.origin_queue,
        ):
            if id(text) not in self._shared:
                self._shared.add(id(text))
                size_bytes += getsizeof(text)
        self._free_bytes -= size_bytes
        if self._free_bytes > 0:
            self.entries.append(stored)

    @property
    def is_block_complete(self) -> bool:
        """Whether reading may stop here without leaving a partial block."""
        return self._free_bytes <= 0 or len(self.entries) % _BLOCK == 0


class DeadLetterCache:
    """The descriptions at the head of the queue, as far as they are known."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._entries: Sequence[StoredDeadLetter] = ()
        self._depth = 0
        self._until_s = float("-inf")

    @property
    def is_empty(self) -> bool:
        """Whether there is no valid entry; expired entries are dropped."""
        if self._now() >= self._until_s:
            self.clear()
        return not self._entries

    def fill(self, recording: CacheRecording, depth: int) -> None:
        """Keep what a session read while `depth` messages were in the queue."""
        self._entries = recording.entries
        self._depth = depth
        self._until_s = self._now() + KEPT_S

    def clear(self) -> None:
        """Drop all entries, because messages were acked or the queue has changed."""
        self._entries = ()

    def head(self, depth: int) -> Sequence[StoredDeadLetter]:
        """Return the known head of the queue, now that it holds `depth` messages."""
        if self.is_empty or depth < self._depth:
            self.clear()
        self._depth = depth
        return self._entries
