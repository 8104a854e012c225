"""
Results of the queries that operators run on inboxes.

Lists come in pages. A search may stop early, and then reports that it is incomplete.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bridge.core.replay import InboxState


@dataclass(frozen=True, slots=True)
class InboxSummary:
    """One user's inbox in a list."""

    user: str
    state: InboxState

    @classmethod
    def empty(cls, user: str) -> "InboxSummary":
        """Return the inbox of a user who never had a message."""
        return cls(user, InboxState(epoch="", first=1, last=0, delivered=0))

    @property
    def depth(self) -> int:
        """Number of kept messages, delivered or not."""
        return self.state.last - self.state.first + 1 - self.state.holes

    @property
    def waiting(self) -> int:
        """Number of kept messages that the user has not received; at most, if sparse."""
        waiting = self.state.last - max(self.state.delivered, self.state.first - 1)
        return min(waiting, self.depth)


@dataclass(frozen=True, slots=True)
class KeptMessage:
    """
    A message in an inbox, with or without its data.

    Attributes:
        offset: Its offset in the user's inbox.
        event: The event name under which clients receive it.
        taken_s: Unix time at which the bridge received it from the broker.
        id: The producer's message id.
        deadline_s: Unix time after which it is no longer delivered.
        data_bytes: The size of the data.
        data: One JSON value in UTF-8; ``None`` if the query did not include data.
        key: The producer's key.

    """

    offset: int
    event: str
    taken_s: float
    id: str | None
    deadline_s: float | None
    data_bytes: int
    data: bytes | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class InboxMatch:
    """
    A trace of a message id in one inbox.

    Attributes:
        user: The user whose inbox it is.
        kept: The kept messages with that id, oldest first. There can be several if the
            id was published again after the dedupe window.
        seen_s: Unix time at which the id was last stored; ``None`` if the store does not
            remember the id any more.

    """

    user: str
    kept: Sequence[KeptMessage]
    seen_s: float | None


@dataclass(frozen=True, slots=True)
class WaitingEvent:
    """An event that waits to be published, and the Unix time at which it was decided."""

    routing_key: str
    at_s: float


@dataclass(frozen=True, slots=True)
class WaitingEvents:
    """The events about one message that were found, and whether all events were examined."""

    found: Sequence[WaitingEvent]
    is_complete: bool


@dataclass(frozen=True, slots=True)
class SearchResult:
    """
    The inboxes in which a message id was found.

    Attributes:
        matches: One entry for each user with a trace of the id.
        scanned: How many messages were examined.
        is_complete: Whether all messages were examined; if not, only the newest were.

    """

    matches: Sequence[InboxMatch]
    scanned: int
    is_complete: bool


def page_of_names(
    names: Iterable[str], *, prefix: str, after: str, limit: int
) -> list[str]:
    """Return the first `limit` names with this prefix after `after`, in order."""
    return sorted(name for name in names if name > after and name.startswith(prefix))[
        :limit
    ]
