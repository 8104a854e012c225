"""
What the journals remember of a message: this bridge's own, and those of all that share
our inboxes, where there are such.

One bridge takes a message and others write it to their windows; each remembers its own part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from bridge.core.fleet import Reach
from bridge.core.journal import Journal, JournalEntry

AnswerT = TypeVar("AnswerT", bound=BaseModel)
Question = Mapping[str, Any]


class Others(Protocol):
    """The other bridges."""

    async def ask(
        self, question: Question, model: type[AnswerT]
    ) -> tuple[list[AnswerT], Reach]:
        """Ask them; answers that are no `model` count as silence."""


class _Users(BaseModel):
    users: list[str]


class _Memory(BaseModel):
    begins_s: float
    happenings: list[JournalEntry]


@dataclass(frozen=True, slots=True)
class Remembered:
    """
    What is remembered of one message.

    Attributes:
        happenings: In order of time, by the clocks of the bridges that tell of them.
        begins_s: Since when all of them remember everything.
        reach: How many they are.

    """

    happenings: Sequence[JournalEntry]
    begins_s: float
    reach: Reach


class Memories:
    """All journals there are."""

    def __init__(self, journal: Journal, others: Others) -> None:
        self._journal = journal
        self._others = others

    @property
    def begins_s(self) -> float:
        """Since when this bridge remembers everything."""
        return self._journal.begins_s

    async def users_of(self, message_id: str) -> set[str]:
        """Return whose messages with this id somebody remembers."""
        question = {"do": "users of", "message_id": message_id}
        told, _ = await self._others.ask(question, _Users)
        own = self._journal.users_of(message_id)
        return own.union(*(each.users for each in told))

    async def of(
        self, user: str, message_id: str, *, offsets: Sequence[int]
    ) -> Remembered:
        """Return what is remembered of a message; arguments as `Journal.of` has them."""
        own = self._journal.of(user, message_id, offsets=offsets)
        # Who wrote it to windows knows its place alone, and whoever stored it that.
        places = sorted({*offsets, *(each.offset for each in own if each.offset)})
        question = {
            "do": "remember",
            "user": user,
            "message_id": message_id,
            "offsets": places,
        }
        told, reach = await self._others.ask(question, _Memory)
        happenings = [*own, *(each for memory in told for each in memory.happenings)]
        happenings.sort(key=lambda happening: happening.at_s)
        begins_s = max([self.begins_s, *(memory.begins_s for memory in told)])
        return Remembered(happenings, begins_s, reach)


def answer_from(journal: Journal, question: Question) -> object:
    """Answer what another bridge asks, by our own journal; ``None`` if it is about other things."""
    match question:
        case {"do": "users of", "message_id": str(message_id)}:
            return _Users(users=sorted(journal.users_of(message_id))).model_dump()
        case {
            "do": "remember",
            "user": str(user),
            "message_id": str(message_id),
            "offsets": list(offsets),
        } if all(isinstance(offset, int) for offset in offsets):
            happenings = journal.of(user, message_id, offsets=offsets)
            memory = _Memory(begins_s=journal.begins_s, happenings=happenings)
            return memory.model_dump()
        case _:
            return None
