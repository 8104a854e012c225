"""`GET /api/trace/{message_id}`: asks every source about one message, and tells its story."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import time
from typing import Final, Protocol

from bridge.core.admin_views import InboxMatch
from bridge.core.contracts.operator.operation import NoBody
from bridge.core.contracts.operator.trace import (
    GET_TRACE,
    Trace,
    TraceQuery,
    TraceStep,
)
from bridge.core.dead_letter import DeadLetterCount, StoredDeadLetter
from bridge.core.fleet import ALONE, Reach, Seen
from bridge.core.trace import DeadFact, Facts, Story, tell_story
from bridge.errors import BrokerUnavailableError
from bridge.http.api.endpoint import Api, ApiRequest
from bridge.http.journals import Remembered
from bridge.inbox.contract import AdminQueries

# Letters that are looked at for one trace, and how long that may take.
_LETTERS_MAX: Final = 100_000
_LETTERS_WITHIN_S: Final = 15.0
_FOUND_MAX: Final = 100


class DeadLetters(Protocol):
    """The dead letters (the room `broker`)."""

    async def browse(
        self, begin: Callable[[], Callable[[StoredDeadLetter], bool]]
    ) -> DeadLetterCount:
        """Show letters, oldest first, until one has enough; says how many of all."""


@dataclass(frozen=True, slots=True)
class _Found:
    """Dead letters with an id, oldest first, and whether all letters were looked at."""

    letters: Sequence[DeadFact]
    is_complete: bool


@dataclass(frozen=True, slots=True)
class _Known:
    """What inbox, windows and journals know of one user's message."""

    sighting: InboxMatch | None
    seen: Seen
    remembered: Remembered


_NOBODY: Final = Seen((), None, ALONE)
_NOTHING_FOUND: Final = _Found((), is_complete=False)


class Windows(Protocol):
    """Who is connected, to this bridge and to those that share our inboxes."""

    async def windows_of(self, user: str) -> Seen:
        """Return the windows of `user`."""


class Remembering(Protocol):
    """The journals of this bridge and of those that share our inboxes."""

    @property
    def begins_s(self) -> float:
        """Since when this bridge remembers everything."""

    async def users_of(self, message_id: str) -> set[str]:
        """Return whose messages with this id somebody remembers."""

    async def of(
        self, user: str, message_id: str, *, offsets: Sequence[int]
    ) -> Remembered:
        """Return what is remembered of a message."""


class Tracer:
    """Gathers what the sources know of a message."""

    def __init__(
        self,
        *,
        inboxes: AdminQueries,
        dead: DeadLetters,
        windows: Windows,
        memories: Remembering,
    ) -> None:
        self._inboxes = inboxes
        self._dead = dead
        self._windows = windows
        self._memories = memories

    def add_routes(self, api: Api) -> None:
        """Serve traces."""
        api.add(GET_TRACE, self.trace)

    async def trace(self, request: ApiRequest[TraceQuery, NoBody]) -> Trace:
        """Answer one request."""
        message_id, wanted = request.path["message_id"], request.query.user
        search = await self._inboxes.find(message_id, user=wanted)
        silent = []
        if not search.is_complete:
            silent.append(
                f"only the newest {search.scanned} messages were looked at: name the "
                "user to look at all of one inbox"
            )
        dead = await self._dead_letters(message_id, wanted, silent)
        users = await self._users(message_id, wanted, search.matches, dead.letters)
        user = users[0] if users else wanted or ""
        known = await self._known(message_id, user, search.matches)
        story = await self._story(user, known, dead, silent)
        return Trace(
            message_id=message_id,
            user=user if users else wanted,
            others=users[1:],
            story=[
                TraceStep(
                    at_s=step.at_s,
                    stage=step.stage,
                    text=step.text,
                    position=step.position,
                    windows=step.windows,
                    bridge=step.bridge,
                )
                for step in story.steps
            ],
            fate=story.fate,
            verdict=story.verdict,
            journal_since_s=known.remembered.begins_s,
            looked_at=search.scanned,
            silent=list(story.silent),
        )

    async def _dead_letters(
        self, message_id: str, user: str | None, silent: list[str]
    ) -> _Found:
        found: list[DeadFact] = []
        shown = 0

        def begin() -> Callable[[StoredDeadLetter], bool]:
            nonlocal shown
            shown = 0
            found.clear()
            return take

        def take(letter: StoredDeadLetter) -> bool:
            nonlocal shown
            shown += 1
            if letter.message_id == message_id and user in {None, letter.user}:
                found.append(_dead_fact(letter))
            return shown < _LETTERS_MAX and len(found) < _FOUND_MAX

        try:
            async with asyncio.timeout(_LETTERS_WITHIN_S):
                count = await self._dead.browse(begin)
        except BrokerUnavailableError as exc:
            silent.append(f"the dead letters cannot be looked at: {exc}")
            return _NOTHING_FOUND
        except TimeoutError:
            silent.append("looking at the dead letters took too long")
            return _NOTHING_FOUND
        if shown < count.depth:
            silent.append(
                f"only {shown} of {count.depth} dead letters were looked at, the oldest"
            )
        return _Found(found, is_complete=shown >= count.depth)

    async def _users(
        self,
        message_id: str,
        wanted: str | None,
        sightings: Sequence[InboxMatch],
        dead: Sequence[DeadFact],
    ) -> list[str]:
        """Return who has a trace of the id; whose message is still there comes first."""
        users = {
            *(sighting.user for sighting in sightings),
            *(letter.user for letter in dead),
            *await self._memories.users_of(message_id),
        }
        if wanted is not None:
            users &= {wanted}
        kept = {sighting.user for sighting in sightings if sighting.kept}
        return sorted(users, key=lambda user: (user not in kept, user))

    async def _known(
        self, message_id: str, user: str, sightings: Sequence[InboxMatch]
    ) -> _Known:
        """Ask all bridges for the user's windows, and for what they remember."""
        sighting = next((each for each in sightings if each.user == user), None)
        if not user:
            nothing = Remembered((), self._memories.begins_s, ALONE)
            return _Known(sighting, _NOBODY, nothing)
        offsets = [message.offset for message in sighting.kept] if sighting else []
        async with asyncio.TaskGroup() as tasks:
            seen = tasks.create_task(self._windows.windows_of(user), name="windows")
            remembered = tasks.create_task(
                self._memories.of(user, message_id, offsets=offsets), name="memories"
            )
        return _Known(sighting, seen.result(), remembered.result())

    async def _story(
        self, user: str, known: _Known, dead: _Found, silent: Sequence[str]
    ) -> Story:
        seen, remembered = known.seen, known.remembered
        return tell_story(
            Facts(
                user=user,
                inbox=await self._inboxes.user(user) if user else None,
                sighting=known.sighting,
                happenings=remembered.happenings,
                dead=[letter for letter in dead.letters if letter.user == user],
                is_dead_complete=dead.is_complete,
                windows=seen.facts,
                last_connect_s=seen.last_connect_s,
                journal_begins_s=remembered.begins_s,
                now_s=time(),
                silent=[*silent, *_unheard(seen.reach, remembered.reach)],
            )
        )


def _unheard(windows: Reach, journals: Reach) -> Iterator[str]:
    asked = {"windows and journals": windows}
    if windows != journals:  # one of a version that does not tell of its journal
        asked = {"windows": windows, "journals": journals}
    for what, reach in asked.items():
        if reach.silent != 0:
            who = "the others" if reach.silent is None else str(reach.silent)
            known = f"{what} of {reach.bridges} of the bridges were looked at"
            yield f"{known}, {who} did not answer"


def _dead_fact(letter: StoredDeadLetter) -> DeadFact:
    return DeadFact(
        at_s=letter.dead_s,
        user=letter.user,
        reason=letter.reason,
        explanation=letter.reason.explanation,
        error=letter.error,
        attempts=letter.attempts,
        redrives=letter.redrives,
    )
