"""`GET /api/trace/{message_id}`: ask every source about one message and build its story."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import time
from typing import Final

from bridge.amqp.dead_letters.operations import DeadLetterQueue
from bridge.core.admin_views import InboxMatch, WaitingEvent
from bridge.core.contracts.operator.trace import GET_TRACE, Trace, TraceQuery
from bridge.core.dead_letter import StoredDeadLetter
from bridge.core.fleet import THIS_BRIDGE, Coverage, UserWindows
from bridge.core.trace import TraceFacts, build_story
from bridge.errors import BrokerUnavailableError
from bridge.http.api.endpoint import Api, ApiRequest
from bridge.http.fleet import FleetView, MessageJournal
from bridge.inbox.contract import AdminQueries

# Dead letters that are read for one trace, and the time limit for reading them.
_LETTERS_MAX: Final = 100_000
_LETTERS_WITHIN_S: Final = 15.0
_FOUND_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class _FoundLetters:
    """Dead letters with the id, oldest first, and whether all dead letters were read."""

    letters: Sequence[StoredDeadLetter]
    is_complete: bool


_NO_WINDOWS: Final = UserWindows((), None, THIS_BRIDGE)
_NO_LETTERS: Final = _FoundLetters((), is_complete=False)


def add_trace_routes(
    api: Api,
    *,
    inboxes: AdminQueries,
    dead_letters: DeadLetterQueue,
    fleet: FleetView,
    letters_max: int = _LETTERS_MAX,
) -> None:
    """Serve traces; at most `letters_max` dead letters are read for one of them."""
    tracer = _Tracer(inboxes, dead_letters, fleet, letters_max)
    api.add(GET_TRACE, tracer.trace)


class _Tracer:
    def __init__(
        self,
        inboxes: AdminQueries,
        dead_letters: DeadLetterQueue,
        fleet: FleetView,
        letters_max: int,
    ) -> None:
        self._inboxes = inboxes
        self._dead_letters = dead_letters
        self._fleet = fleet
        self._letters_max = letters_max

    async def trace(self, request: ApiRequest[TraceQuery]) -> Trace:
        message_id, wanted = request.path["message_id"], request.query.user
        search = await self._inboxes.find(message_id, user=wanted)
        gaps = []
        if not search.is_complete:
            gaps.append(
                f"only the newest {search.scanned} messages were searched: name the user "
                "to search all of one inbox"
            )
        dead = await self._find_letters(message_id, wanted, gaps)
        users = await self._users(message_id, wanted, search.matches, dead.letters)
        user = users[0] if users else wanted or ""
        match = next((each for each in search.matches if each.user == user), None)
        windows, journal = await self._ask_fleet(message_id, user, match)
        receipts = await self._inboxes.open_receipts(user, message_id) if user else ()
        events = await self._find_events(message_id, user, gaps)
        gaps += _missing_bridges(windows.coverage, journal.coverage)
        story = build_story(
            TraceFacts(
                user=user,
                inbox=await self._inboxes.user(user) if user else None,
                inbox_match=match,
                entries=journal.entries,
                dead=[letter for letter in dead.letters if letter.user == user],
                is_dead_complete=dead.is_complete,
                windows=windows.windows,
                last_connect_s=windows.last_connect_s,
                journal_begins_s=journal.begins_s,
                now_s=time(),
                receipts=receipts,
                events=events,
                gaps=gaps,
            )
        )
        return Trace(
            message_id=message_id,
            user=user if users else wanted,
            others=users[1:],
            story=list(story.steps),
            fate=story.fate,
            verdict=story.verdict,
            journal_since_s=journal.begins_s,
            looked_at=search.scanned,
            silent=list(story.gaps),
        )

    async def _find_events(
        self, message_id: str, user: str, gaps: list[str]
    ) -> Sequence[WaitingEvent]:
        if not user:
            return ()
        events = await self._inboxes.waiting_events(user, message_id)
        if not events.is_complete:
            gaps.append(
                "only the oldest of the events that wait to be published were searched"
            )
        return events.found

    async def _find_letters(
        self, message_id: str, user: str | None, gaps: list[str]
    ) -> _FoundLetters:
        found: list[StoredDeadLetter] = []
        shown = 0

        def begin() -> Callable[[StoredDeadLetter], bool]:
            # Called a second time if the cached head of the queue was not enough.
            nonlocal shown
            shown = 0
            found.clear()
            return take

        def take(letter: StoredDeadLetter) -> bool:
            nonlocal shown
            shown += 1
            if letter.message_id == message_id and user in {None, letter.user}:
                found.append(letter)
            return shown < self._letters_max and len(found) < _FOUND_MAX

        try:
            async with asyncio.timeout(_LETTERS_WITHIN_S):
                count = await self._dead_letters.browse(begin)
        except BrokerUnavailableError as exc:
            gaps.append(f"the dead letters cannot be read: {exc}")
            return _NO_LETTERS
        except TimeoutError:
            gaps.append("reading the dead letters took too long")
            return _NO_LETTERS
        if shown < count.depth:
            gaps.append(
                f"only the oldest {shown} of {count.depth} dead letters were read"
            )
        return _FoundLetters(found, is_complete=shown >= count.depth)

    async def _users(
        self,
        message_id: str,
        wanted: str | None,
        matches: Sequence[InboxMatch],
        dead: Sequence[StoredDeadLetter],
    ) -> list[str]:
        """Return the users with a trace of the id, those who still have a message first."""
        users = {
            *(match.user for match in matches),
            *(letter.user for letter in dead),
            *await self._fleet.message_users(message_id),
        }
        if wanted is not None:
            users &= {wanted}
        kept = {match.user for match in matches if match.kept}
        return sorted(users, key=lambda user: (user not in kept, user))

    async def _ask_fleet(
        self, message_id: str, user: str, match: InboxMatch | None
    ) -> tuple[UserWindows, MessageJournal]:
        if not user:
            begins_s = self._fleet.journal_begins_s
            return _NO_WINDOWS, MessageJournal((), begins_s, THIS_BRIDGE)
        offsets = [message.offset for message in match.kept] if match else []
        async with asyncio.TaskGroup() as tasks:
            windows = tasks.create_task(self._fleet.windows_of(user), name="windows")
            journal = tasks.create_task(
                self._fleet.message_journal(user, message_id, offsets=offsets),
                name="journals",
            )
        return windows.result(), journal.result()


def _missing_bridges(windows: Coverage, journals: Coverage) -> Iterator[str]:
    asked = {"windows and journals": windows}
    if windows != journals:  # an older version answers about windows, not its journal
        asked = {"windows": windows, "journals": journals}
    for what, coverage in asked.items():
        if coverage.silent != 0:
            who = "the others" if coverage.silent is None else str(coverage.silent)
            known = f"{what} of {coverage.bridges} of the bridges are known"
            yield f"{known}, {who} did not answer"
