"""
What a window that has just connected gets from its user's inbox, and what it misses.

Offsets have no holes, so what lies between a window's place and the oldest message that
is still kept is exactly what is gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bridge.core.message import Stored
from bridge.core.position import Position
from bridge.enums import SyncReason


@dataclass(frozen=True, slots=True)
class InboxState:
    """
    One user's inbox at an instant.

    Attributes:
        epoch: The store's.
        first: Offset of the oldest message that is kept; `last` + 1 if none is.
        last: Offset of the newest message ever stored; 0 if there was none.
        delivered: The delivered mark: everything up to it has reached the user.
        trimmed_for: Why the messages before `first` are gone; ``None`` if none are.

    """

    epoch: str
    first: int
    last: int
    delivered: int
    trimmed_for: SyncReason | None = None


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """
    What a window that has just connected will get.

    Attributes:
        after: Replay starts behind this offset.
        missed: How many messages are gone; ``None`` if nobody can know.
        reason: Why something is gone; ``None`` if nothing is.

    """

    after: int
    missed: int | None = 0
    reason: SyncReason | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the window misses nothing."""
        return self.reason is None


def plan_replay(wanted: Position | None, state: InboxState) -> ReplayPlan:
    """
    Decide where the replay for a window starts, and what it misses.

    Args:
        wanted: Where the window says it is; ``None`` for a fresh page, which gets
            what its user has not had.
        state: The user's inbox now.

    """
    if wanted is None:
        after = state.delivered
    elif wanted.epoch != state.epoch or wanted.offset > state.last:
        # Another store's position, or one from the future of this one (the store was
        # put back to an older state): nothing can be said about what lies between.
        return ReplayPlan(
            after=max(state.delivered, state.first - 1),
            missed=None,
            reason=SyncReason.RESET,
        )
    else:
        after = wanted.offset
    missed = max(0, state.first - 1 - after)
    if not missed:
        return ReplayPlan(after=after)
    return ReplayPlan(
        after=after + missed,
        missed=missed,
        reason=state.trimmed_for or SyncReason.LIMIT,
    )


@dataclass(frozen=True, slots=True)
class Page:
    """
    A piece of an inbox, in order.

    Attributes:
        messages: What is to be delivered.
        next_after: Where the next page starts; everything up to it was looked at.
        expired: How many on the way were past their deadline and left out.
        gone: How many on the way are not kept any more.
        last: The newest offset of the inbox when the page was read.

    """

    messages: Sequence[Stored]
    next_after: int
    expired: int
    gone: int
    last: int
