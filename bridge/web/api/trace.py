"""`GET /api/trace/{message_id}`: asks every source about one message, and tells its story."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import time
from typing import Final, Protocol

from bridge.core.contracts.operator.operation import NoBody
from bridge.core.contracts.operator.trace import (
    GET_TRACE,
    Trace,
    TraceQuery,
    TraceStep,
)
from bridge.core.fleet import ALONE, Reach, Seen
from bridge.core.journal import Journal
from bridge.core.letters import Count, Letter
from bridge.core.looking import Search, Sighting, UserInbox
from bridge.core.story import DeadFact, Facts, Story, tell_story
from bridge.errors import BrokerUnavailableError
from bridge.web.api.frame import Api, Asked

# Letters that are looked at for one trace, and how long that may take.
_LETTERS_MAX: Final = 100_000
_LETTERS_WITHIN_S: Final = 15.0
_FOUND_MAX: Final = 100


class Searching(Protocol):
    """Where messages are looked for (the room `inbox`)."""

    async def user(self, user: str) -> UserInbox | None:
        """Return one user's inbox."""

    async def find(self, message_id: str, *, user: str | None = None) -> Search:
        """Find the messages with this id."""


class DeadLetters(Protocol):
    """The dead letters (the room `broker`)."""

    async def look(self, begin: Callable[[], Callable[[Letter], bool]]) -> Count:
        """Show letters, oldest first, until one has enough; says how many of all."""


@dataclass(frozen=True, slots=True)
class _Found:
    """Dead letters with an id, oldest first, and whether all letters were looked at."""

    letters: Sequence[DeadFact]
    is_complete: bool


_NOBODY: Final = Seen((), None, ALONE)
_NOTHING_FOUND: Final = _Found((), is_complete=False)


class Windows(Protocol):
    """Who is connected, to this bridge and to those that share our inboxes."""

    async def windows_of(self, user: str) -> Seen:
        """Return the windows of `user`."""


class Tracer:
    """Gathers what the sources know of a message."""

    def __init__(
        self,
        *,
        inboxes: Searching,
        dead: DeadLetters,
        windows: Windows,
        journal: Journal,
    ) -> None:
        self._inboxes = inboxes
        self._dead = dead
        self._windows = windows
        self._journal = journal

    def add_routes(self, api: Api) -> None:
        """Serve traces."""
        api.add(GET_TRACE, self.trace)

    async def trace(self, asked: Asked[TraceQuery, NoBody]) -> Trace:
        """Answer one request."""
        message_id, wanted = asked.path["message_id"], asked.query.user
        search = await self._inboxes.find(message_id, user=wanted)
        silent = []
        if not search.is_complete:
            silent.append(
                f"only the newest {search.looked_at} messages were looked at: name the "
                "user to look at all of one inbox"
            )
        dead = await self._dead_letters(message_id, wanted, silent)
        users = self._users(message_id, wanted, search.sightings, dead.letters)
        user = users[0] if users else wanted or ""
        story = await self._story(message_id, user, search.sightings, dead, silent)
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
                )
                for step in story.steps
            ],
            fate=story.fate,
            verdict=story.verdict,
            journal_since_s=self._journal.begins_s,
            looked_at=search.looked_at,
            silent=list(story.silent),
        )

    async def _dead_letters(
        self, message_id: str, user: str | None, silent: list[str]
    ) -> _Found:
        found: list[DeadFact] = []
        shown = 0

        def begin() -> Callable[[Letter], bool]:
            nonlocal shown
            shown = 0
            found.clear()
            return take

        def take(letter: Letter) -> bool:
            nonlocal shown
            shown += 1
            if letter.message_id == message_id and user in {None, letter.user}:
                found.append(_dead_fact(letter))
            return shown < _LETTERS_MAX and len(found) < _FOUND_MAX

        try:
            async with asyncio.timeout(_LETTERS_WITHIN_S):
                count = await self._dead.look(begin)
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

    def _users(
        self,
        message_id: str,
        wanted: str | None,
        sightings: Sequence[Sighting],
        dead: Sequence[DeadFact],
    ) -> list[str]:
        """Return who has a trace of the id; whose message is still there comes first."""
        users = {
            *(sighting.user for sighting in sightings),
            *(letter.user for letter in dead),
            *self._journal.users_of(message_id),
        }
        if wanted is not None:
            users &= {wanted}
        kept = {sighting.user for sighting in sightings if sighting.kept}
        return sorted(users, key=lambda user: (user not in kept, user))

    async def _story(
        self,
        message_id: str,
        user: str,
        sightings: Sequence[Sighting],
        dead: _Found,
        silent: Sequence[str],
    ) -> Story:
        sighting = next((each for each in sightings if each.user == user), None)
        offsets = [message.offset for message in sighting.kept] if sighting else []
        happenings = self._journal.of(user, message_id, offsets=offsets)
        seen = await self._windows.windows_of(user) if user else _NOBODY
        return tell_story(
            Facts(
                user=user,
                inbox=await self._inboxes.user(user) if user else None,
                sighting=sighting,
                happenings=happenings,
                dead=[letter for letter in dead.letters if letter.user == user],
                is_dead_complete=dead.is_complete,
                windows=seen.facts,
                last_connect_s=seen.last_connect_s,
                journal_begins_s=self._journal.begins_s,
                now_s=time(),
                silent=[*silent, *_unheard(seen.reach)],
            )
        )


def _unheard(reach: Reach) -> list[str]:
    if reach.silent == 0:
        return []
    who = "the others" if reach.silent is None else str(reach.silent)
    known = f"windows of {reach.bridges} of the bridges were looked at"
    return [f"{known}, {who} did not answer"]


def _dead_fact(letter: Letter) -> DeadFact:
    return DeadFact(
        at_s=letter.dead_s,
        user=letter.user,
        reason=letter.reason,
        explanation=letter.reason.explanation,
        error=letter.error,
        attempts=letter.attempts,
        redrives=letter.redrives,
    )
