"""What several bridges remember of one message, whatever the others say."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from bridge.core.fleet import Reach
from bridge.core.journal import Journal, JournalEntry
from bridge.enums import Stage
from bridge.http.journals import Memories, answer_from

AnswerT = TypeVar("AnswerT", bound=BaseModel)


class Others:
    """The other bridges, in this process, their answers as they come over the wire."""

    def __init__(self, *journals: Journal, also: Sequence[object] = ()) -> None:
        self._journals = journals
        self._also = also

    async def ask(
        self, question: Mapping[str, Any], model: type[AnswerT]
    ) -> tuple[list[AnswerT], Reach]:
        """Ask each, as `Online` does."""
        asked = orjson.loads(orjson.dumps(question))
        told = [answer_from(journal, asked) for journal in self._journals]
        answers: list[AnswerT] = []
        for answer in orjson.loads(orjson.dumps([*told, *self._also])):
            try:
                answers.append(model.model_validate(answer))
            except ValidationError:
                continue
        silent = len(told) + len(self._also) - len(answers)
        return answers, Reach(1 + len(answers), silent)


def journal(
    bridge: str, *happenings: JournalEntry, began_s: float = 0.0, connected: str = ""
) -> Journal:
    """Return a journal that knows of these."""
    kept = Journal(bridge=bridge, began_s=began_s)
    for happening in happenings:
        kept.note(happening)
    if connected:
        kept.connected(connected, at_s=1.0)
    return kept


async def test_the_journals_of_all_bridges_are_one_story_in_order() -> None:
    """Who stored it knows its place; who wrote it to windows knows that alone."""
    stored = journal(
        "one",
        JournalEntry(1.0, Stage.STORED, "ann", "m", 7),
        JournalEntry(4.0, Stage.RETRIED, "ann", "m"),
        began_s=0.5,
    )
    written = journal(
        "two",
        JournalEntry(3.0, Stage.WRITTEN, "ann", offset=9, after=5, windows=2),
        JournalEntry(3.0, Stage.WRITTEN, "bob", offset=9, after=5, windows=2),
        began_s=0.7,
    )
    nothing = journal("three", began_s=0.1)

    for others in ((stored, written, nothing), (nothing, stored, written)):
        memories = Memories(others[0], Others(*others[1:]))
        remembered = await memories.of("ann", "m", offsets=[7])

        assert [(each.at_s, each.bridge) for each in remembered.happenings] == [
            (1.0, "one"),
            (3.0, "two"),
            (4.0, "one"),
        ]
        assert remembered.happenings[1].windows == 2
        # From then on all of them remember everything.
        assert remembered.begins_s == 0.7
        assert remembered.reach == Reach(3, 0)
        assert await memories.users_of("m") == {"ann"}


async def test_a_bridge_that_does_not_know_the_question_counts_as_silent() -> None:
    """One of an earlier version says nothing to it, one of a later may know more stages."""
    strange: list[object] = [
        None,
        {"begins_s": 1.0, "happenings": [{"at_s": 1, "stage": "new", "user": "ann"}]},
    ]
    memories = Memories(journal("one"), Others(journal("two"), also=strange))

    remembered = await memories.of("ann", "m", offsets=[])

    assert (remembered.happenings, remembered.reach) == ([], Reach(2, 2))


def test_a_question_about_other_things_is_not_answered() -> None:
    """Whoever asked it asks somebody else then."""
    for question in (
        {"do": "windows", "user": "ann"},
        {"do": "remember", "user": "ann", "message_id": "m", "offsets": ["1"]},
    ):
        assert answer_from(journal("one"), question) is None
