"""
Which messages of a user are held back, because their keys are throttled.

A message with `x-bridge-throttle` is written at once if none of its key was written within
the interval. Otherwise it is held back: until the interval ends, or a newer message of its
key replaces it. All windows of a room receive the same messages, so this is decided once for
all of them. What is held back is in the inbox, too.
"""

from collections.abc import Sequence
from math import inf
from typing import Final

from bridge.core.message import Message, Stored
from bridge.core.position import HELD_MAX

# An event and a key.
_Place = tuple[str, str]

_ALL_USERS_MAX_BYTES: Final = 64 << 20
# About what a message takes besides its data.
_OVERHEAD_BYTES: Final = 500


class HeldBudget:
    """The memory that is left for messages held back, for all users together."""

    __slots__ = ("left_bytes",)

    def __init__(self, bytes_max: int = _ALL_USERS_MAX_BYTES) -> None:
        self.left_bytes = bytes_max


class HeldValues:
    """
    The throttled keys of one user, at most `HELD_MAX`; others are written at once.

    Times are seconds of one monotonic clock.
    """

    __slots__ = ("_budget", "_due_s", "_held", "_left_bytes")

    def __init__(self, *, bytes_max: int, budget: HeldBudget) -> None:
        """
        Hold back nothing yet.

        Args:
            bytes_max: The most bytes of data that will be held back. What does not fit is
                written at once.
            budget: The same for all users.

        """
        self._left_bytes = bytes_max
        self._budget = budget
        self._due_s: dict[_Place, float] = {}  # when the next one may be written
        self._held: dict[_Place, Stored] = {}  # oldest first

    def __len__(self) -> int:
        """Return how many messages are held back."""
        return len(self._held)

    @property
    def offsets(self) -> Sequence[int]:
        """The offsets of the messages that are held back, in order."""
        return [stored.offset for stored in self._held.values()]

    @property
    def next_due_s(self) -> float:
        """When the next message is due; infinite if none is held back."""
        return min([self._due_s[place] for place in self._held], default=inf)

    def is_idle(self, now_s: float) -> bool:
        """Return whether nothing is held back, and nothing would be."""
        return not self._held and all(due_s <= now_s for due_s in self._due_s.values())

    def take(
        self, messages: Sequence[Stored], *, now_s: float, above: int
    ) -> Sequence[Stored]:
        """
        Return the messages to write now, and hold the others back.

        Args:
            messages: The newest messages of the user, in order.
            now_s: The time.
            above: Some windows have received messages up to this offset from the inbox;
                those are not held back.

        """
        taken: list[Stored] = []
        for stored in messages:
            options = stored.message.options
            if options is None or options.key is None:
                taken.append(stored)
                continue
            place = (stored.message.event, options.key)
            replaced = self._held.pop(place, None)
            if replaced is not None:
                self._take_memory(replaced, times=-1)
            if (
                options.throttle_s is not None
                and stored.offset > above
                and now_s < self._due_s.get(place, 0)
                and self._has_room_for(stored.message)
            ):
                self._held[place] = stored
                self._take_memory(stored)
                continue
            taken.append(stored)
            if options.throttle_s is not None:
                self._note_written(place, now_s, options.throttle_s)
        return taken

    def _has_room_for(self, message: Message) -> bool:
        size = len(message.data)
        return (
            size <= self._left_bytes
            and size + _OVERHEAD_BYTES <= self._budget.left_bytes
        )

    def _take_memory(self, stored: Stored, *, times: int = 1) -> None:
        """Take the memory for a message from what is left, or return it (-1 times)."""
        size = times * len(stored.message.data)
        self._left_bytes -= size
        self._budget.left_bytes -= size + times * _OVERHEAD_BYTES

    def drop(self) -> None:
        """Hold nothing back any more."""
        for stored in self._held.values():
            self._take_memory(stored, times=-1)
        self._held.clear()

    def _note_written(self, place: _Place, now_s: float, throttle_s: float) -> None:
        if len(self._due_s) >= HELD_MAX and place not in self._due_s:
            self._due_s = {
                other: due_s
                for other, due_s in self._due_s.items()
                if other in self._held or due_s > now_s
            }
            if len(self._due_s) >= HELD_MAX:
                return
        self._due_s[place] = now_s + throttle_s

    def start_writing(self, now_s: float) -> Sequence[Stored]:
        """Return the messages that are due, oldest first; `finish_writing` must follow."""
        due: list[Stored] = []
        for place, stored in self._held.items():
            options = stored.message.options
            if self._due_s[place] <= now_s and options is not None:
                self._due_s[place] = now_s + (options.throttle_s or 0)
                due.append(stored)
        return due

    def finish_writing(self, stored: Stored) -> None:
        """Hold a message back no longer."""
        options = stored.message.options
        if options is not None and options.key is not None:
            del self._held[stored.message.event, options.key]
            self._take_memory(stored, times=-1)

    def between(self, after: int, upto: int) -> Sequence[Stored]:
        """Return the messages held back with these offsets, oldest first."""
        return [each for each in self._held.values() if after < each.offset <= upto]
