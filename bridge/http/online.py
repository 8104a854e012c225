"""
Who is connected: what operators see of windows, and may do to them.

Of this bridge, and of all that share its inboxes, where there are such. Each bridge knows
its own windows alone; the others are asked when an operator asks, so nothing has to be
kept in step.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from bridge.core.contracts.operator.users import WindowFacts
from bridge.core.fleet import ALONE, Heard, OnlineUser, Reach, Seen
from bridge.core.journal import Journal
from bridge.http.journals import answer_from
from bridge.logging import user_hash
from bridge.sockets.server import BridgeServer

log = structlog.get_logger(__name__)

AnswerT = TypeVar("AnswerT", bound=BaseModel)
Question = Mapping[str, Any]

_NOBODY_ELSE: Final = Heard((), ALONE.silent)


class Fleet(Protocol):
    """The other bridges that share our inboxes (the room `inbox`)."""

    def serve(self, answer: Callable[[Question], Awaitable[object]]) -> None:
        """Answer the others' questions by `answer`."""

    async def ask(self, question: Question) -> Heard:
        """Ask all others; waits for a moment, and never raises."""


class _Users(BaseModel):
    users: list[tuple[str, int, float | None]]


class _Windows(BaseModel):
    windows: list[WindowFacts]
    last_connect_s: float | None


class _Kicked(BaseModel):
    kicked: int


class Online:
    """The windows of all bridges, as the groups of users and of traces ask for them."""

    def __init__(
        self,
        sockets: BridgeServer,
        journal: Journal,
        *,
        name: str = "",
        fleet: Fleet | None = None,
    ) -> None:
        self._sockets = sockets
        self._journal = journal
        self._name = name
        self._fleet = fleet
        if fleet is not None:
            fleet.serve(self.answer)

    # --- for operators

    async def users_online(
        self, *, prefix: str, after: str, limit: int
    ) -> tuple[dict[str, OnlineUser], Reach]:
        """Return the first `limit` users by name who have a window, and from whom."""
        asked = {"do": "users", "prefix": prefix, "after": after, "limit": limit}
        own = await self._users(prefix, after, limit)
        others, reach = await self.ask(asked, _Users)
        return _first([own, *others], limit), reach

    async def windows_of(self, user: str) -> Seen:
        """Return the windows of `user` wherever they are."""
        own = self._windows(user)
        others, reach = await self.ask({"do": "windows", "user": user}, _Windows)
        windows = [window for each in (own, *others) for window in each.windows]
        windows.sort(key=lambda window: window.connected_s)
        times = [each.last_connect_s for each in (own, *others)]
        return Seen(windows, _latest(times), reach)

    def last_connect_s(self, user: str) -> float | None:
        """When a window of `user` was let in here last; ``None`` if not since the start."""
        return self._journal.last_connect_s(user)

    async def kick(self, user: str) -> tuple[int, Reach]:
        """Close all windows of `user` wherever they are; returns how many there were."""
        own = self._sockets.kick(user)
        others, reach = await self.ask({"do": "kick", "user": user}, _Kicked)
        return own + sum(each.kicked for each in others), reach

    # --- for the other bridges

    async def answer(self, question: Question) -> object:
        """
        Answer what another bridge asks, of our own windows and our own journal alone.

        Returns:
            ``None`` for a question that a later version may understand.

        """
        match question:
            case {
                "do": "users",
                "prefix": str(prefix),
                "after": str(after),
                "limit": int(limit),
            }:
                return (await self._users(prefix, after, limit)).model_dump()
            case {"do": "windows", "user": str(user)}:
                return self._windows(user).model_dump()
            case {"do": "kick", "user": str(user)}:
                kicked = self._sockets.kick(user)
                log.info("fleet.kicked", user=user_hash(user), windows=kicked)
                return {"kicked": kicked}
            case _:
                return answer_from(self._journal, question)

    # --- ours

    async def _users(self, prefix: str, after: str, limit: int) -> _Users:
        rooms = self._sockets.rooms
        # Copied here, sorted in a thread: there may be very many.
        names = await asyncio.to_thread(
            _page_of_names, list(rooms.users), prefix=prefix, after=after, limit=limit
        )
        return _Users(
            users=[
                (name, len(rooms.windows_of(name)), self._journal.last_connect_s(name))
                for name in names
            ]
        )

    def _windows(self, user: str) -> _Windows:
        facts = [
            WindowFacts(
                bridge=self._name,
                sid_short=window.id,
                transport="polling" if window.transport == "polling" else "websocket",
                address=window.address,
                connected_s=window.connected_s,
                offset=window.offset,
                acks="manual" if window.has_manual_acks else "auto",
                live=window.is_live,
                waiting_bytes=window.waiting_bytes,
            )
            for window in self._sockets.windows_of(user)
        ]
        return _Windows(
            windows=facts, last_connect_s=self._journal.last_connect_s(user)
        )

    async def ask(
        self, question: Question, model: type[AnswerT]
    ) -> tuple[list[AnswerT], Reach]:
        """Ask all other bridges; answers that are no `model` count as silence."""
        heard = _NOBODY_ELSE if self._fleet is None else await self._fleet.ask(question)
        answers = []
        for answer in heard.answers:
            try:
                answers.append(model.model_validate(answer))
            except ValidationError:  # another version, which does not know the question
                log.debug("fleet.not_understood", asked=question["do"])
        return answers, heard.reach.without(len(heard.answers) - len(answers))


def _page_of_names(
    names: list[str], *, prefix: str, after: str, limit: int
) -> list[str]:
    return sorted(name for name in names if name > after and name.startswith(prefix))[
        :limit
    ]


def _first(told: Sequence[_Users], limit: int) -> dict[str, OnlineUser]:
    """Merge first pages into one: nobody of it can have been behind anybody's page."""
    merged: dict[str, OnlineUser] = {}
    for users in told:
        for name, windows, last_connect_s in users.users:
            known = merged.get(name, OnlineUser(0, None))
            merged[name] = OnlineUser(
                known.windows + windows,
                _latest((known.last_connect_s, last_connect_s)),
            )
    return {name: merged[name] for name in sorted(merged)[:limit]}


def _latest(times: Iterable[float | None]) -> float | None:
    return max((each for each in times if each is not None), default=None)
