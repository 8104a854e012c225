"""
What operators see of inboxes: facts that are read without any effect on them.

Every list comes in pages, and a search has an end, found or not: what was not looked at
is said, never passed over.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bridge.core.replay import InboxState


@dataclass(frozen=True, slots=True)
class UserInbox:
    """One user's inbox as a line in a list."""

    user: str
    state: InboxState

    @classmethod
    def of_nobody(cls, user: str) -> "UserInbox":
        """Return the inbox of a user that never had a message."""
        return cls(user, InboxState(epoch="", first=1, last=0, delivered=0))

    @property
    def depth(self) -> int:
        """How many messages are kept, delivered or not."""
        return self.state.last - self.state.first + 1

    @property
    def waiting(self) -> int:
        """How many of them the user has not had."""
        return self.state.last - max(self.state.delivered, self.state.first - 1)


@dataclass(frozen=True, slots=True)
class KeptMessage:
    """
    A message in an inbox, without its data unless that was asked for.

    Attributes:
        offset: Its place in the user's inbox.
        event: The name under which a page receives it.
        taken_s: Unix time at which the bridge took it from the broker.
        id: The producer's message id.
        deadline_s: Unix time after which it is not delivered any more.
        data_bytes: How large the data is.
        data: One JSON value in UTF-8; ``None`` if it was not asked for.

    """

    offset: int
    event: str
    taken_s: float
    id: str | None
    deadline_s: float | None
    data_bytes: int
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Sighting:
    """
    What an inbox knows of a message id.

    Attributes:
        user: Whose inbox it is.
        kept: The messages with that id, oldest first: more than one if it was published
            again after its window.
        seen_s: When the id was last stored, as far as that is remembered: publishing it
            again within the dedupe window stores nothing.

    """

    user: str
    kept: Sequence[KeptMessage]
    seen_s: float | None


@dataclass(frozen=True, slots=True)
class Search:
    """
    Where a message id was found.

    Attributes:
        sightings: By user; a user without any trace of the id is not in it.
        looked_at: How many messages were looked at.
        is_complete: Whether that was all of them; if not, the newest were looked at.

    """

    sightings: Sequence[Sighting]
    looked_at: int
    is_complete: bool
