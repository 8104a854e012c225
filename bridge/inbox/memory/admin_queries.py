"""Queries of operators on inboxes in memory, in steps that let other tasks run."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Final

from bridge.core.admin_views import (
    InboxMatch,
    InboxSummary,
    KeptMessage,
    SearchResult,
    WaitingEvent,
    WaitingEvents,
    page_of_names,
)
from bridge.core.message import Stored
from bridge.core.receipts import Receipt, WorkerEvent
from bridge.core.replay import InboxState
from bridge.inbox.memory.user_log import UserLog

# Messages or events examined before other tasks may run: well below a millisecond.
_STEP: Final = 5000
_MATCHES_MAX: Final = 100
_SEARCH_S: Final = 5.0


class MemoryAdminQueries:
    """Queries on all inboxes as they are at the moment of each call."""

    def __init__(
        self,
        logs: Mapping[str, UserLog],
        seen: Mapping[tuple[str, str], float],
        state: Callable[[str], InboxState],
        receipts: Callable[[str], Sequence[Receipt]],
        events: Callable[[], Sequence[WorkerEvent]],
    ) -> None:
        """
        Query `logs` and `seen`, which the store modifies.

        Args:
            logs: The inbox of each user.
            seen: When an id of a user was last stored.
            state: Trims an inbox by the current retention and returns its state.
            receipts: Returns the receipts of a user whose outcome is open.
            events: Returns all events that wait to be published.

        """
        self._logs = logs
        self._seen = seen
        self._state = state
        self._receipts = receipts
        self._events = events

    async def users(
        self, *, prefix: str = "", after: str = "", limit: int
    ) -> Sequence[InboxSummary]:
        """Return up to `limit` users with this prefix, by name, from `after` on."""
        # The names are copied in one step. Sorting many takes long enough for a thread.
        names = await asyncio.to_thread(
            page_of_names, list(self._logs), prefix=prefix, after=after, limit=limit
        )
        return [InboxSummary(name, self._state(name)) for name in names]

    async def user(self, user: str) -> InboxSummary | None:
        """Return the inbox of `user`; ``None`` if the user never had a message."""
        return InboxSummary(user, self._state(user)) if user in self._logs else None

    async def messages(
        self, user: str, *, before: int | None = None, limit: int, max_bytes: int = 0
    ) -> Sequence[KeptMessage]:
        """Return up to `limit` messages of `user`, newest first."""
        if user not in self._logs:
            return ()
        last = self._state(user).last  # trims
        found: list[KeptMessage] = []
        size_bytes = 0
        for stored in self._logs[user].below(before or last + 1):
            size_bytes += len(stored.message.data)
            if len(found) >= limit or (found and 0 < max_bytes < size_bytes):
                break
            found.append(_kept_message(stored, with_data=max_bytes > 0))
        return found

    async def find(self, message_id: str, *, user: str | None = None) -> SearchResult:
        """Find the messages with this id, of one user or of all users."""
        if user is not None:
            names = [user] if user in self._logs else []
        else:
            names = list(self._logs)
        until_s = monotonic() + _SEARCH_S
        matches: list[InboxMatch] = []
        scanned = since_pause = 0
        for name in names:
            self._state(name)  # trims
            log = self._logs[name]
            scanned += log.depth
            since_pause += log.depth + 1
            found = [
                _kept_message(stored, with_data=False)
                for stored in log.above(0)
                if stored.message.id == message_id
            ]
            seen_s = self._seen.get((name, message_id))
            if found or seen_s is not None:
                matches.append(InboxMatch(name, found, seen_s))
            if since_pause >= _STEP:
                since_pause = 0
                if monotonic() > until_s or len(matches) >= _MATCHES_MAX:
                    return SearchResult(matches, scanned, is_complete=False)
                await asyncio.sleep(0)
        return SearchResult(matches, scanned, is_complete=True)

    async def open_receipts(self, user: str, message_id: str) -> Sequence[Receipt]:
        """Return the receipts of messages with this id whose outcome is not decided yet."""
        found = self._receipts(user)
        return [each for each in found if each.message.id == message_id]

    async def waiting_events(self, user: str, message_id: str) -> WaitingEvents:
        """Return the events about messages with this id that wait to be published."""
        found: list[WaitingEvent] = []
        for number, event in enumerate(self._events(), 1):
            if event.user == user and event.message_id == message_id:
                found.append(WaitingEvent(event.routing_key, event.at_s))
            if number % _STEP == 0:
                await asyncio.sleep(0)
        return WaitingEvents(found, is_complete=True)


def _kept_message(stored: Stored, *, with_data: bool) -> KeptMessage:
    message = stored.message
    return KeptMessage(
        offset=stored.offset,
        event=message.event,
        taken_s=message.taken_s,
        id=message.id,
        deadline_s=message.deadline_s,
        data_bytes=len(message.data),
        data=message.data if with_data else None,
        key=message.key,
    )
