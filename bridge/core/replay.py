"""
Where the replay for a connecting window starts, and which messages it has missed.

The offsets of an inbox have no gaps. So the messages between a window's position and the
oldest message that is still kept are exactly those that were deleted.

An inbox that has had a message with a key is sparse from there on: where a newer message of
the same key has replaced one, its offset is a hole, and nothing is missing there. Only what
was deleted for another reason is missing. Such deletions are always at the beginning: `first`
is after the newest of them. So whether a window has missed something is known exactly; how
much is known only up to the offset at which the holes begin.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from bridge.core.message import Stored
from bridge.core.position import Position
from bridge.enums import SyncReason


@dataclass(frozen=True, slots=True)
class InboxState:
    """
    One user's inbox at an instant.

    Attributes:
        epoch: The epoch of the store.
        first: Offset of the oldest kept message; `last` + 1 if none is kept.
        last: Offset of the newest message ever stored; 0 if there was none.
        delivered: The delivered mark: the user has received everything up to it.
        trimmed_for: Why messages before `first` were deleted; ``None`` if none were.
        sparse_after: Offsets above it may be holes; ``None`` if there never was a key.
        holes: How many offsets from `first` to `last` are holes.
        retained: How many keys are retained.
        forgotten: Lower offsets may be those of an earlier inbox of this user, which the
            store has forgotten. The first message has the offset `forgotten` + 1.

    """

    epoch: str
    first: int
    last: int
    delivered: int
    trimmed_for: SyncReason | None = None
    forgotten: int = 0
    sparse_after: int | None = None
    holes: int = 0
    retained: int = 0

    @property
    def had_messages(self) -> bool:
        """Whether the store knows that the user has had a message."""
        return self.last > self.forgotten

    @classmethod
    def empty(cls, epoch: str, forgotten: int) -> "InboxState":
        """Return the state of a user without messages, who may have been forgotten."""
        return cls(epoch, forgotten + 1, forgotten, forgotten, forgotten=forgotten)


# Offsets of new inboxes start after a multiple of this step, so `InboxState.forgotten`
# changes rarely.
FORGOTTEN_STEP: Final = 1024


def forgotten_above(last: int) -> int:
    """Return the least `InboxState.forgotten` after an inbox that ended at `last`."""
    return last - last % FORGOTTEN_STEP + FORGOTTEN_STEP


def count_gone(after: int, first: int, sparse_after: int | None) -> int | None:
    """
    Return how many messages above `after` were deleted; ``None`` if some, but unknown.

    Args:
        after: What a window has.
        first: See `InboxState`.
        sparse_after: See `InboxState`.

    """
    gone = max(0, first - 1 - after)
    if gone and sparse_after is not None and first - 1 > sparse_after:
        return None
    return gone


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """
    The replay that a connecting window will receive.

    Attributes:
        after: Replay starts above this offset.
        missed: How many messages the window has missed; ``None`` if that is unknown.
        reason: Why messages are missing; ``None`` if none are.
        is_start_known: Whether the window has everything up to `after`. A window without
            a position may be new, or an old one that lost messages in transit.
        had: The position of the window, if it has messages above `after`.
        sends_retained: Whether the retained messages up to `after` come first.

    """

    after: int
    missed: int | None = 0
    reason: SyncReason | None = None
    is_start_known: bool = True
    sends_retained: bool = False
    had: Position | None = None

    def position(self, epoch: str, offset: int) -> Position:
        """Return the position after the message with this offset was written."""
        had = self.had
        if had is None or offset > had.newest:
            return Position(epoch, offset)
        late = [each for each in had.late if each > offset]
        return Position.with_late(epoch, had.newest, late)

    def lacks(self, offset: int) -> bool:
        """Return whether the window has not received a message above `after`."""
        had = self.had
        return had is None or offset > had.newest or offset in had.late

    @property
    def is_complete(self) -> bool:
        """Whether the window is known to have missed nothing."""
        return self.reason is None and self.is_start_known


def plan_replay(
    wanted: Position | None, state: InboxState, *, epoch: str | None = None
) -> ReplayPlan:
    """
    Decide where the replay for a window starts, and how much the window has missed.

    Args:
        wanted: The position that the window sent; ``None`` for a new window, which
            receives the messages that its user has not received yet.
        state: The state of the user's inbox.
        epoch: The epoch of the user's positions if it is not that of the store.

    """
    if wanted is None:
        if state.trimmed_for is SyncReason.RESET and (
            max(state.delivered, state.first - 1) == state.forgotten
        ):
            # The store lost its data and does not know how far the user had received it.
            return ReplayPlan(
                after=state.forgotten, missed=None, reason=SyncReason.RESET
            )
        after = state.delivered
    elif wanted.epoch != (epoch or state.epoch) or not (
        state.forgotten <= wanted.offset <= wanted.newest <= state.last
    ):
        # A position of another store, or of an inbox that was forgotten, or one above the
        # newest offset because the store was restored from a backup: the number of missed
        # messages is unknown.
        return ReplayPlan(
            after=max(state.delivered, state.first - 1),
            missed=None,
            reason=SyncReason.RESET,
        )
    else:
        after = wanted.offset
    had = wanted if wanted is not None and wanted.late else None
    missed = count_gone(after, state.first, state.sparse_after)
    if missed == 0:
        # A replay of all messages leaves nothing to miss.
        is_start_known = wanted is not None or not after
        return ReplayPlan(after, is_start_known=is_start_known, had=had)
    return ReplayPlan(
        after=state.first - 1,
        missed=missed,
        reason=state.trimmed_for or SyncReason.LIMIT,
        had=had,
    )


@dataclass(frozen=True, slots=True)
class InboxPage:
    """
    Consecutive messages of an inbox, without those that were replaced.

    Attributes:
        messages: The messages to deliver, oldest first.
        next_after: The offset after which the next page starts.
        expired: How many messages up to `next_after` were skipped as past their deadline.
        gone: How many messages up to `next_after` are no longer kept; ``None`` if some,
            but their number is unknown.
        last: The newest offset of the inbox when the page was read.

    """

    messages: Sequence[Stored]
    next_after: int
    expired: int
    gone: int | None
    last: int

    @classmethod
    def empty(cls, after: int, forgotten: int) -> "InboxPage":
        """Return the page of a user without messages, who may have been forgotten."""
        return cls((), max(after, forgotten), expired=0, gone=0, last=forgotten)


def fit(messages: Iterable[Stored], *, max_bytes: int) -> Sequence[Stored]:
    """Return the first of `messages`, at least one, with at most `max_bytes` of data."""
    found: list[Stored] = []
    size_bytes = 0
    for stored in messages:
        size_bytes += len(stored.message.data)
        if found and size_bytes > max_bytes:
            break
        found.append(stored)
    return found
