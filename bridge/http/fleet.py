"""
Windows and journals of all bridges that share this bridge's inboxes.

Each bridge knows only its own windows and remembers only its own part of a message: one
bridge takes it, others write it to their windows. The others are asked when an operator
asks, so nothing has to be kept in sync. A bridge that shares no inbox answers alone.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from bridge.core.admin_views import page_of_names
from bridge.core.contracts.operator.users import (
    PRESENCE_STEPS_MAX,
    PresenceStep,
    WindowFacts,
)
from bridge.core.fleet import (
    THIS_BRIDGE,
    Coverage,
    FleetAnswers,
    OnlineUser,
    UserWindows,
)
from bridge.core.journal import Journal, JournalEntry
from bridge.logging import user_hash
from bridge.sockets.server import SocketIOServer

log = structlog.get_logger(__name__)

AnswerT = TypeVar("AnswerT", bound=BaseModel)
FleetQuestion = Mapping[str, Any]

# Enough characters of a window's id to distinguish the windows of a user.
_SHORT_ID_CHARACTERS: Final = 8
_NO_ANSWERS: Final = FleetAnswers((), THIS_BRIDGE.silent)


class Fleet(Protocol):
    """The other bridges that share the inboxes; the store decides how to reach them."""

    def serve(self, answer: Callable[[FleetQuestion], Awaitable[object]]) -> None:
        """Answer the other bridges' questions with `answer`."""

    async def ask(self, question: FleetQuestion) -> FleetAnswers:
        """Ask all other bridges; wait for a bounded time, and never raise."""


# The answers on the wire, as JSON.


class _UsersAnswer(BaseModel):
    users: list[tuple[str, int, float | None]]


class _WindowsAnswer(BaseModel):
    windows: list[WindowFacts]
    last_connect_s: float | None
    presence: list[PresenceStep] = []  # missing in answers of earlier versions


class _PresenceAnswer(BaseModel):
    windows: dict[str, int]


class _KickAnswer(BaseModel):
    kicked: int


class _MessageUsersAnswer(BaseModel):
    users: list[str]


class _JournalAnswer(BaseModel):
    begins_s: float
    happenings: list[JournalEntry]


@dataclass(frozen=True, slots=True)
class MessageJournal:
    """
    The journal entries of one message, from all bridges.

    Attributes:
        entries: In order of time, by the clocks of the bridges that wrote them.
        begins_s: Unix time since which all of the journals are complete.
        coverage: The bridges that answered.

    """

    entries: Sequence[JournalEntry]
    begins_s: float
    coverage: Coverage


class FleetView:
    """Answers operators' questions about windows and messages for all bridges."""

    def __init__(
        self,
        sockets: SocketIOServer,
        journal: Journal,
        *,
        name: str = "",
        fleet: Fleet | None = None,
    ) -> None:
        """
        Start answering the other bridges' questions.

        Args:
            sockets: This bridge's windows.
            journal: This bridge's journal.
            name: This bridge's name in answers.
            fleet: The other bridges; ``None`` if the store cannot be shared.

        """
        self._sockets = sockets
        self._journal = journal
        self._name = name
        self._fleet = fleet
        if fleet is not None:
            fleet.serve(self.answer)

    # --- windows

    async def users_online(
        self, *, prefix: str, after: str, limit: int
    ) -> tuple[dict[str, OnlineUser], Coverage]:
        """Return the first `limit` users after `after`, by name, who have a window."""
        question = {"do": "users", "prefix": prefix, "after": after, "limit": limit}
        own = await self._own_users(prefix, after, limit)
        others, coverage = await self._ask(question, _UsersAnswer)
        return _merge_users([own, *others], limit), coverage

    async def window_counts(
        self, users: Sequence[str]
    ) -> tuple[Mapping[str, int], Coverage]:
        """Return how many windows each of `users` has; those without one may be missing."""
        others, coverage = await self._ask(
            {"do": "presence", "users": users}, _PresenceAnswer
        )
        counts = Counter(self._own_counts(users))
        for each in others:
            counts.update(each.windows)
        return counts, coverage

    async def windows_of(self, user: str) -> UserWindows:
        """Return the windows of `user` on all bridges."""
        question = {"do": "windows", "user": user}
        others, coverage = await self._ask(question, _WindowsAnswer)
        answers = [self._own_windows(user), *others]
        windows = [window for each in answers for window in each.windows]
        windows.sort(key=lambda window: window.connected_s)
        last_s = _latest(each.last_connect_s for each in answers)
        steps = [step for each in answers for step in each.presence]
        steps.sort(key=lambda step: -step.at_s)
        return UserWindows(windows, last_s, coverage, steps[:PRESENCE_STEPS_MAX])

    def last_connect_s(self, user: str) -> float | None:
        """Return when a window of `user` last connected to this bridge; ``None`` if never."""
        return self._journal.last_connect_s(user)

    async def kick(
        self, user: str, *, reason: str | None = None
    ) -> tuple[int, Coverage]:
        """
        Close all windows of `user` on all bridges, and return how many there were.

        The pages receive `reason`, if there is one, instead of the usual text.
        """
        own = self._sockets.kick(user, reason=reason)
        question = {"do": "kick", "user": user, "reason": reason}
        others, coverage = await self._ask(question, _KickAnswer)
        return own + sum(each.kicked for each in others), coverage

    # --- journals

    @property
    def journal_begins_s(self) -> float:
        """Unix time since which this bridge's own journal is complete."""
        return self._journal.begins_s

    async def message_users(self, message_id: str) -> set[str]:
        """Return the users in whose journal entries this message id appears."""
        question = {"do": "users of", "message_id": message_id}
        others, _ = await self._ask(question, _MessageUsersAnswer)
        own = self._journal.users_of(message_id)
        return own.union(*(each.users for each in others))

    async def message_journal(
        self, user: str, message_id: str, *, offsets: Sequence[int]
    ) -> MessageJournal:
        """Return all journal entries of a message; arguments as for `Journal.of`."""
        own = self._journal.of(user, message_id, offsets=offsets)
        # Bridges that wrote the message to windows know its offset but not its id. The
        # offset may be in this bridge's journal, if this bridge stored the message.
        known = sorted({*offsets, *(each.offset for each in own if each.offset)})
        question = {
            "do": "remember",
            "user": user,
            "message_id": message_id,
            "offsets": known,
        }
        others, coverage = await self._ask(question, _JournalAnswer)
        entries = [*own, *(entry for each in others for entry in each.happenings)]
        entries.sort(key=lambda entry: entry.at_s)
        begins_s = max([self._journal.begins_s, *(each.begins_s for each in others)])
        return MessageJournal(entries, begins_s, coverage)

    # --- questions of other bridges

    async def answer(self, question: FleetQuestion) -> object:
        """
        Answer another bridge's question from this bridge's own windows and journal.

        Returns:
            ``None`` for a question that this version does not know.

        """
        answer: BaseModel
        match question:
            case {
                "do": "users",
                "prefix": str(prefix),
                "after": str(after),
                "limit": int(limit),
            }:
                answer = await self._own_users(prefix, after, limit)
            case {"do": "presence", "users": list(users)} if all(
                isinstance(user, str) for user in users
            ):
                answer = _PresenceAnswer(windows=self._own_counts(users))
            case {"do": "windows", "user": str(user)}:
                answer = self._own_windows(user)
            case {"do": "kick", "user": str(user)}:
                reason = question.get("reason")
                text = reason if isinstance(reason, str) else None
                kicked = self._sockets.kick(user, reason=text)
                log.info("fleet.kicked", user=user_hash(user), windows=kicked)
                answer = _KickAnswer(kicked=kicked)
            case {"do": "users of", "message_id": str(message_id)}:
                users = sorted(self._journal.users_of(message_id))
                answer = _MessageUsersAnswer(users=users)
            case {
                "do": "remember",
                "user": str(user),
                "message_id": str(message_id),
                "offsets": list(offsets),
            } if all(isinstance(offset, int) for offset in offsets):
                answer = _JournalAnswer(
                    begins_s=self._journal.begins_s,
                    happenings=self._journal.of(user, message_id, offsets=offsets),
                )
            case _:
                return None
        return answer.model_dump()

    async def _ask(
        self, question: FleetQuestion, model: type[AnswerT]
    ) -> tuple[list[AnswerT], Coverage]:
        """Ask all other bridges; an answer that is not a valid `model` counts as silence."""
        found = _NO_ANSWERS if self._fleet is None else await self._fleet.ask(question)
        answers = []
        for answer in found.answers:
            try:
                answers.append(model.model_validate(answer))
            except ValidationError:  # from a version that does not know the question
                log.debug("fleet.answer_invalid", question=question["do"])
        return answers, found.coverage.without(len(found.answers) - len(answers))

    # --- this bridge

    async def _own_users(self, prefix: str, after: str, limit: int) -> _UsersAnswer:
        rooms = self._sockets.rooms
        # Copied in the event loop, sorted in a thread: there may be very many users.
        names = await asyncio.to_thread(
            page_of_names, rooms.users, prefix=prefix, after=after, limit=limit
        )
        return _UsersAnswer(
            users=[
                (name, len(rooms.windows_of(name)), self.last_connect_s(name))
                for name in names
            ]
        )

    def _own_counts(self, users: Iterable[str]) -> dict[str, int]:
        rooms = self._sockets.rooms
        return {user: n for user in users if (n := len(rooms.windows_of(user)))}

    def _own_windows(self, user: str) -> _WindowsAnswer:
        facts = [
            WindowFacts(
                bridge=self._name,
                sid_short=window.sid[:_SHORT_ID_CHARACTERS],
                transport=window.session.transport_name,
                address=window.session.address,
                connected_s=window.connected_s,
                offset=window.offset,
                acks="manual" if window.has_manual_acks else "auto",
                live=window.is_live,
                waiting_bytes=window.session.waiting_bytes,
            )
            for window in self._sockets.rooms.windows_of(user)
        ]
        changes = self._journal.presence_of(user, limit=PRESENCE_STEPS_MAX)
        return _WindowsAnswer(
            windows=facts,
            last_connect_s=self.last_connect_s(user),
            presence=[
                PresenceStep(at_s=at_s, change=change, bridge=self._name)
                for at_s, change in changes
            ],
        )


def _merge_users(pages: Sequence[_UsersAnswer], limit: int) -> dict[str, OnlineUser]:
    """Merge the first pages of all bridges; a name in the result is on its bridge's page."""
    merged: dict[str, OnlineUser] = {}
    for page in pages:
        for name, windows, last_connect_s in page.users:
            known = merged.get(name, OnlineUser(0, None))
            merged[name] = OnlineUser(
                known.windows + windows,
                _latest((known.last_connect_s, last_connect_s)),
            )
    return {name: merged[name] for name in sorted(merged)[:limit]}


def _latest(times: Iterable[float | None]) -> float | None:
    return max((each for each in times if each is not None), default=None)
