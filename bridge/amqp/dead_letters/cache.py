"""
What the last look found at the head of the dead letter queue, kept for the next page.

A look has to take everything that looks before it gave back (letter_session.py), and the
broker reads each of those bodies from its log: 3 s of its CPU for 100,000 letters, however
few are wanted. So pages are answered from here while the head of the queue is as it was.

That is known by counting. Letters come at the end and leave by an ack: while the queue is
no shorter than it ever was since the look, and this bridge acked none, the head is
the same. The one thing that does not show: somebody else takes some, and at least as many
come, between two questions; a page may then show, until `KEPT_S` is over, letters that are
gone. Only lists are answered from here; what is done is done to what is there.
"""

import time
from collections.abc import Callable, Sequence
from sys import getsizeof
from typing import Final

from bridge.core.dead_letter import Letter

KEPT_S: Final = 600.0
# About 100,000 letters of 1,000 users; of those behind it nothing is kept.
_MAX_BYTES: Final = 32 << 20
# A look reads on to the next multiple: these were taken anyway, and are the next pages.
_ROUND: Final = 1000
_LETTER_BYTES: Final = 160  # the object, its numbers, its place in the list


class Recording:
    """Letters as they are read, oldest first, up to a number of bytes."""

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self.letters: list[Letter] = []
        self._left_bytes = max_bytes
        self._shared: set[int] = set()  # texts that many letters share, counted once

    def add(self, letter: Letter) -> None:
        """Keep `letter`, or nothing from here on if there is no room."""
        if self._left_bytes <= 0:
            return
        size_bytes = _LETTER_BYTES + getsizeof(letter.id) + getsizeof(letter.message_id)
        for text in (
            letter.user,
            letter.event,
            letter.error,
            letter.origin_exchange,
            letter.origin_queue,
        ):
            if id(text) not in self._shared:
                self._shared.add(id(text))
                size_bytes += getsizeof(text)
        self._left_bytes -= size_bytes
        if self._left_bytes > 0:
            self.letters.append(letter)

    @property
    def is_round(self) -> bool:
        """Whether this is a good place to end."""
        return self._left_bytes <= 0 or len(self.letters) % _ROUND == 0


class LetterIndex:
    """The letters at the head of the queue, as far as they are known."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._letters: Sequence[Letter] = ()
        self._depth = 0
        self._until_s = float("-inf")

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to answer from; then it takes no memory either."""
        if self._now() >= self._until_s:
            self.forget()
        return not self._letters

    def keep(self, recording: Recording, depth: int) -> None:
        """Keep what a look found when `depth` letters were there."""
        self._letters = recording.letters
        self._depth = depth
        self._until_s = self._now() + KEPT_S

    def forget(self) -> None:
        """Letters were acked, or the queue is another one."""
        self._letters = ()

    def known(self, depth: int) -> Sequence[Letter]:
        """Return the letters at the head, now that `depth` are there; all, or the first."""
        if self.is_empty or depth < self._depth:
            self.forget()
        self._depth = depth
        return self._letters
