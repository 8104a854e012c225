"""
The values that are copied between stores, and the protocol of a target.

An inbox is copied in parts. Each part repeats the numbers of its inbox and adds some of its
messages or ids. Writing a part twice has the same effect as once, because an interrupted
migration continues at the last recorded progress and repeats a little.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from operator import add
from typing import Protocol

from bridge.core.message import Stored
from bridge.core.receipts import Receipt, WorkerEvent
from bridge.core.revocation import Revocation
from bridge.enums import SyncReason


@dataclass(frozen=True, slots=True)
class InboxNumbers:
    """
    One user's inbox without its messages.

    Attributes:
        user: The user.
        first: The oldest kept offset; `last` + 1 if no message is kept. In a sparse inbox
            that is said of the dense part, which ends at `sparse_after`.
        last: The newest offset ever given; 0 if there was none.
        delivered: The delivered mark.
        trimmed_for: Why messages before `first` were deleted; ``None`` if none were.
        forgotten: See `InboxState`.
        sparse_after: See `InboxState`.
        gone: The newest offset above `sparse_after` that was deleted, but not replaced.
        sparse_count: The number of messages above `sparse_after`.
        retained: The number of retained keys. Their newest messages are copied with the
            others, also those that were deleted from the inbox.

    """

    user: str
    first: int
    last: int
    delivered: int
    trimmed_for: SyncReason | None
    forgotten: int = 0
    sparse_after: int | None = None
    gone: int = 0
    sparse_count: int = 0
    retained: int = 0

    @property
    def dense_last(self) -> int:
        """The newest offset of the dense part."""
        return self.last if self.sparse_after is None else self.sparse_after

    @property
    def is_empty(self) -> bool:
        """Whether it had messages, and all of them were deleted."""
        is_dense_empty = self.first > self.dense_last
        return is_dense_empty and not self.sparse_count and self.last > self.forgotten


@dataclass(frozen=True, slots=True)
class InboxPart:
    """
    A part of one inbox.

    Attributes:
        inbox: The numbers of the inbox, the same in each of its parts.
        messages: Some of its messages, oldest first.
        ids: Some of the message ids it remembers, and when each was stored.

    """

    inbox: InboxNumbers
    messages: Sequence[Stored] = ()
    ids: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True, slots=True)
class MigrationBatch:
    """
    Parts that are written together.

    Attributes:
        parts: The parts.
        upto: The source's number of the last user whose inbox is complete with them.

    """

    parts: Sequence[InboxPart]
    upto: int


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """
    What distinguishes one migration from another.

    Attributes:
        epoch: The epoch of the source, which the target takes over.
        contents: A fingerprint that changes with each message, mark and deletion.
        forgotten: The offset above which those of new users start.

    """

    epoch: str
    contents: str
    forgotten: int = 0


@dataclass(frozen=True, slots=True)
class MigrationTotals:
    """An amount of data; `bytes` counts the data of messages only."""

    users: int = 0
    messages: int = 0
    ids: int = 0
    bytes: int = 0

    def __add__(self, other: "MigrationTotals") -> "MigrationTotals":
        return MigrationTotals(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True, slots=True)
class InboxCount:
    """An inbox for the final comparison: its numbers, and the messages of its dense part."""

    inbox: InboxNumbers
    messages: int


class MigrationTarget(Protocol):
    """A store to copy into. Each call has its own timeout."""

    description: str

    async def open(self) -> None:
        """Connect to the store without writing."""

    async def close(self) -> None:
        """Close the connections."""

    async def progress(self, source: SourceIdentity) -> int | None:
        """
        Return the `upto` to continue after, 0 at the start; ``None`` if all is copied.

        Raises:
            MigrationRefusedError: If the store holds anything else.

        """

    async def begin(self, source: SourceIdentity) -> None:
        """Record that `source` is being copied; bridges wait from now on."""

    async def write(self, batch: MigrationBatch) -> None:
        """Write a batch and record the progress. Writing it again changes nothing."""

    async def counts(self, users: Sequence[str]) -> Sequence[InboxCount]:
        """Return the inboxes of `users` as the store holds them, in the same order."""

    async def write_revocations(self, revocations: Sequence[Revocation]) -> None:
        """Write all revocations. Writing them again changes nothing."""

    async def write_receipts(self, receipts: Sequence[Receipt]) -> None:
        """Write receipts whose outcome is open. Writing them again changes nothing."""

    async def write_events(self, events: Sequence[WorkerEvent]) -> None:
        """Write the event outbox. Writing it again changes nothing."""

    async def finish(self, source: SourceIdentity) -> None:
        """Record that all is copied; bridges may use the store from now on."""
