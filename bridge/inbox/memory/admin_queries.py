"""What operators see of inboxes in memory, read in pieces that let the bridge work on."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from time import monotonic
from typing import Final, Protocol

from bridge.core.admin_views import InboxMatch, InboxSummary, KeptMessage, SearchResult
from bridge.core.message import Stored
from bridge.core.replay import InboxState

# So many messages are looked at before others have their turn: well below a millisecond.
_PIECE: Final = 5000
_SIGHTINGS_MAX: Final = 100


class Log(Protocol):
    """One user's messages, as this needs them."""

    @property
    def kept(self) -> Sequence[Stored]:
        """What is kept, oldest first."""


class MemoryAdminQueries:
    """A view of all inboxes, as they are at the moment of each call."""

    def __init__(
        self,
        logs: Mapping[str, Log],
        seen: Mapping[tuple[str, str], float],
        *,
        state: Callable[[str], InboxState],
        search_within_s: float = 5.0,
    ) -> None:
        """
        Look at `logs` and `seen`, which others change.

        Args:
            logs: By user.
            seen: When an id of a user was stored.
            state: Tells the state of one inbox, trimmed by today's rules.
            search_within_s: How long a search without a user may take.

        """
        self._logs = logs
        self._seen = seen
        self._state = state
        self._search_within_s = search_within_s

    async def users(
        self, *, prefix: str = "", after: str = "", limit: int
    ) -> Sequence[InboxSummary]:
        """Return up to `limit` users behind `after`, by name; all begin with `prefix`."""
        # The names are copied in one step; sorting many takes long enough for a thread.
        names = await asyncio.to_thread(
            _page_of_names, list(self._logs), prefix=prefix, after=after, limit=limit
        )
        return [InboxSummary(name, self._state(name)) for name in names]

    async def user(self, user: str) -> InboxSummary | None:
        """Return the inbox of `user`; ``None`` if there never was a message."""
        return InboxSummary(user, self._state(user)) if user in self._logs else None

    async def messages(
        self, user: str, *, before: int | None = None, limit: int, max_bytes: int = 0
    ) -> Sequence[KeptMessage]:
        """
        Return up to `limit` messages of `user`, newest first.

        Args:
            user: Whose.
            before: Only those with a smaller offset; ``None`` = from the newest on.
            limit: At most so many.
            max_bytes: How much data may come with them, but one message's at least;
                0 = none.

        """
        if user not in self._logs:
            return ()
        first = self._state(user).first  # trims
        kept = self._logs[user].kept
        skipped = 0 if before is None else max(0, first + len(kept) - before)
        found: list[KeptMessage] = []
        size_bytes = 0
        for stored in islice(reversed(kept), skipped, None):
            size_bytes += len(stored.message.data)
            if len(found) >= limit or (found and 0 < max_bytes < size_bytes):
                break
            found.append(_kept(stored, with_data=max_bytes > 0))
        return found

    async def find(self, message_id: str, *, user: str | None = None) -> SearchResult:
        """
        Find the messages with this id, of one user or of all.

        A search of all looks at every message, and ends early when it has taken too long.
        """
        if user is not None:
            names = [user] if user in self._logs else []
        else:
            names = list(self._logs)
        until_s = monotonic() + self._search_within_s
        sightings: list[InboxMatch] = []
        looked_at = since_pause = 0
        for name in names:
            self._state(name)  # trims
            kept = self._logs[name].kept
            looked_at += len(kept)
            since_pause += len(kept) + 1
            found = list(_with_id(kept, message_id))
            seen_s = self._seen.get((name, message_id))
            if found or seen_s is not None:
                sightings.append(InboxMatch(name, found, seen_s))
            if since_pause >= _PIECE:
                since_pause = 0
                if monotonic() > until_s or len(sightings) >= _SIGHTINGS_MAX:
                    return SearchResult(sightings, looked_at, is_complete=False)
                await asyncio.sleep(0)
        return SearchResult(sightings, looked_at, is_complete=True)


def _page_of_names(
    names: list[str], *, prefix: str, after: str, limit: int
) -> Sequence[str]:
    return sorted(name for name in names if name > after and name.startswith(prefix))[
        :limit
    ]


def _with_id(kept: Sequence[Stored], message_id: str) -> Iterator[KeptMessage]:
    return (_kept(s, with_data=False) for s in kept if s.message.id == message_id)


def _kept(stored: Stored, *, with_data: bool) -> KeptMessage:
    message = stored.message
    return KeptMessage(
        offset=stored.offset,
        event=message.event,
        taken_s=message.taken_s,
        id=message.id,
        deadline_s=message.deadline_s,
        data_bytes=len(message.data),
        data=message.data if with_data else None,
    )
