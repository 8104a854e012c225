"""
What is carried from one store into another: words for both sides, of no store's own.

An inbox travels in portions, each of which says all that is known of its user beside some
of the messages or ids. A portion may be put twice, to the same effect: what was
interrupted is begun again where it was last noted, and repeats a little.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from bridge.core.message import Stored
from bridge.enums import SyncReason


@dataclass(frozen=True, slots=True)
class CarriedInbox:
    """
    One user's inbox without its messages.

    Attributes:
        user: Whose.
        first: The oldest offset that is kept; `last` + 1 if none is.
        last: The newest offset ever given; 0 if there was none.
        delivered: The delivered mark.
        trimmed_for: Why what stood before `first` is gone; ``None`` if nothing is.

    """

    user: str
    first: int
    last: int
    delivered: int
    trimmed_for: SyncReason | None


@dataclass(frozen=True, slots=True)
class Portion:
    """
    A part of one inbox, in order.

    Attributes:
        inbox: Whose, and all its numbers; the same in each portion of it.
        messages: Some of its messages, oldest first.
        ids: Some of the message ids it has had, and when.

    """

    inbox: CarriedInbox
    messages: Sequence[Stored] = ()
    ids: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True, slots=True)
class Load:
    """
    Portions that are put together.

    Attributes:
        portions: What to put.
        upto: The source's number of the last user who is complete with it.

    """

    portions: Sequence[Portion]
    upto: int


@dataclass(frozen=True, slots=True)
class Waybill:
    """
    What tells one carry from another.

    Attributes:
        epoch: The life of the store that is carried; the target takes it over.
        contents: Changes with anything that is stored, marked or deleted there.

    """

    epoch: str
    contents: str


@dataclass(frozen=True, slots=True)
class Amount:
    """How much something is. `bytes` are those of the messages' data."""

    users: int = 0
    messages: int = 0
    ids: int = 0
    bytes: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(
            self.users + other.users,
            self.messages + other.messages,
            self.ids + other.ids,
            self.bytes + other.bytes,
        )


@dataclass(frozen=True, slots=True)
class Held:
    """An inbox as a store has it, to be compared: its numbers, and how many messages."""

    inbox: CarriedInbox
    messages: int


class Source(Protocol):
    """A store that is carried. All calls block, and are made in one and the same thread."""

    description: str

    def open(self) -> Waybill:
        """Take the store, so that no bridge has it meanwhile."""

    def close(self) -> None:
        """Let go of it."""

    def amount(self) -> Amount:
        """Count what is there; takes as long as reading an index does."""

    def loads(self, *, after: int) -> Iterator[Load]:
        """Yield what is to be put, for all users behind the number `after`."""

    def held(self) -> Iterator[Sequence[Held]]:
        """Yield all inboxes again, some at a time, to be compared."""


class Target(Protocol):
    """A store that is carried into. Each call has a deadline of its own."""

    description: str

    async def open(self) -> None:
        """Reach the store; nothing is written yet."""

    async def close(self) -> None:
        """Let go of it."""

    async def look(self, waybill: Waybill) -> int | None:
        """
        Say where to go on, 0 for the beginning; ``None`` if this very carry is done.

        Raises:
            MigrationRefusedError: If anything else is there already.

        """

    async def begin(self, waybill: Waybill) -> None:
        """Write down that `waybill` is being carried, which keeps bridges out."""

    async def put(self, load: Load) -> None:
        """Put a load and note how far that is. Doing it again changes nothing."""

    async def held(self, users: Sequence[str]) -> Sequence[Held]:
        """Say what is there for `users`, in their order."""

    async def finish(self, waybill: Waybill) -> None:
        """Write down that it is done, which lets bridges in."""
