"""A trace while sources are away or too large: told from the rest, and what is missing is said."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pytest
from aiohttp import web
from pydantic import BaseModel

from bridge.core.admin_views import InboxSummary, KeptMessage, SearchResult
from bridge.core.dead_letter import DeadLetterCount, StoredDeadLetter
from bridge.core.fleet import ALONE, Reach, Seen
from bridge.core.journal import Journal, JournalEntry
from bridge.enums import DeadLetterCause, Stage
from bridge.errors import BrokerUnavailableError
from bridge.http.api.endpoint import Api
from bridge.http.api.trace import Tracer
from bridge.http.journals import Memories
from bridge.http.problems import answer_with_problems
from tests.unit.http.conftest import Client, Open

AnswerT = TypeVar("AnswerT", bound=BaseModel)


def letter(user: str, message_id: str = "m") -> StoredDeadLetter:
    """Return a dead letter."""
    return StoredDeadLetter(
        id="l", reason=DeadLetterCause.TOO_LARGE, error="", user=user, event="message",
        message_id=message_id, dead_s=5.0, origin_exchange="", origin_queue="",
        attempts=1, redrives=0, body_bytes=1,
    )  # fmt: skip


class Sources:
    """An empty inbox, nobody online, and dead letters that may be away."""

    def __init__(self, *letters: StoredDeadLetter) -> None:
        self.letters = letters
        self.failure: Exception | None = None
        self.is_complete = True
        self.reach = ALONE
        self.reach_of_journals: Reach | None = None

    async def users(
        self, *, prefix: str = "", after: str = "", limit: int
    ) -> Sequence[InboxSummary]:
        """Fail: a trace lists no users."""
        raise NotImplementedError

    async def messages(
        self, user: str, *, before: int | None = None, limit: int, max_bytes: int = 0
    ) -> Sequence[KeptMessage]:
        """Fail: a trace lists no messages."""
        raise NotImplementedError

    async def user(self, user: str) -> InboxSummary | None:
        """Return nothing."""
        assert user
        return None

    async def find(self, message_id: str, *, user: str | None = None) -> SearchResult:
        """Find nothing, in all or in some."""
        assert message_id
        assert user != ""
        return SearchResult((), 7, is_complete=self.is_complete)

    async def browse(
        self, begin: Callable[[], Callable[[StoredDeadLetter], bool]]
    ) -> DeadLetterCount:
        """Show the letters."""
        if self.failure is not None:
            raise self.failure
        shown = 0
        take = begin()
        for each in self.letters:
            shown += 1
            if not take(each):
                break
        return DeadLetterCount(shown, len(self.letters))

    async def ask(
        self, question: Mapping[str, Any], model: type[AnswerT]
    ) -> tuple[list[AnswerT], Reach]:
        """Remember nothing elsewhere."""
        assert issubclass(model, BaseModel)
        assert question["do"]
        return [], self.reach_of_journals or self.reach

    async def windows_of(self, user: str) -> Seen:
        """Return none, and say whether all bridges were asked."""
        assert user
        return Seen((), None, self.reach)


async def door(open_app: Open, sources: Sources, journal: Journal) -> Client:
    """Serve traces without a guard."""
    app = web.Application(middlewares=[answer_with_problems])
    memories = Memories(journal, sources)
    tracer = Tracer(inboxes=sources, dead=sources, windows=sources, memories=memories)
    tracer.add_routes(Api(app, lambda handler: handler))
    return await open_app(app)


async def test_dead_letters_are_told_for_the_user_that_was_asked_for(
    open_app: Open,
) -> None:
    """Several users may have one id; another id is nobody's business here."""
    sources = Sources(letter("bob"), letter("ann"), letter("eve", "other"))
    client = await door(open_app, sources, Journal())

    async with client.get("/api/trace/m") as response:
        of_all = await response.json()
    async with client.get("/api/trace/m?user=bob") as response:
        of_bob = await response.json()

    assert (of_all["user"], of_all["others"]) == ("ann", ["bob"])
    assert (of_bob["user"], of_bob["others"], of_bob["fate"]) == ("bob", [], "dead")
    assert len(of_bob["story"]) == 1


@pytest.mark.parametrize(
    ("failure", "silence"),
    [
        (BrokerUnavailableError("look", "no connection"), "look: no connection"),
        (TimeoutError(), "took too long"),
    ],
)
async def test_a_broker_that_is_away_silences_the_dead_letters_alone(
    open_app: Open, failure: Exception, silence: str
) -> None:
    """What the journal knows is told, and nothing is said to be gone."""
    sources, journal = Sources(), Journal()
    sources.failure = failure
    journal.note(JournalEntry(5.0, Stage.DEAD, "ann", "m", text="too_large"))
    client = await door(open_app, sources, journal)

    async with client.get("/api/trace/m") as response:
        told = await response.json()

    assert (told["user"], told["verdict"]) == ("ann", "dead: it was set aside")
    assert silence in told["silent"][0]


async def test_what_was_not_looked_at_is_said(
    open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id that was not found in a part may be in the rest."""
    monkeypatch.setattr("bridge.http.api.trace._LETTERS_MAX", 2)
    sources = Sources(*[letter("ann", "other")] * 3)
    sources.is_complete = False
    client = await door(open_app, sources, Journal())

    async with client.get("/api/trace/m") as response:
        told = await response.json()

    assert (told["user"], told["fate"], told["looked_at"]) == (None, "unknown", 7)
    assert told["silent"][:2] == [
        "only the newest 7 messages were looked at: name the user to look at all of one "
        "inbox",
        "only 2 of 3 dead letters were looked at, the oldest",
    ]


@pytest.mark.parametrize(
    ("reach", "words"),
    [
        (ALONE, []),
        (
            Reach(2, 1),
            [
                "windows and journals of 2 of the bridges were looked at, 1 did not answer"
            ],
        ),
        (
            Reach(1, None),
            [
                "windows and journals of 1 of the bridges were looked at, the others did not answer"
            ],
        ),
    ],
)
async def test_bridges_that_did_not_answer_are_told(
    open_app: Open, reach: Reach, words: list[str]
) -> None:
    """A window that nobody told of may have had the message."""
    sources = Sources(letter("ann"))
    sources.reach = reach
    client = await door(open_app, sources, Journal(began_s=1.0))

    async with client.get("/api/trace/m?user=ann") as response:
        trace = await response.json()

    assert [each for each in trace["silent"] if "of the bridges" in each] == words


async def test_a_bridge_that_knows_nothing_of_journals_is_told_apart(
    open_app: Open,
) -> None:
    """One of an earlier version tells its windows, and not what it remembers."""
    sources = Sources(letter("ann"))
    sources.reach, sources.reach_of_journals = Reach(2, 0), Reach(1, 1)
    client = await door(open_app, sources, Journal(began_s=1.0))

    async with client.get("/api/trace/m?user=ann") as response:
        trace = await response.json()

    assert [each for each in trace["silent"] if "of the bridges" in each] == [
        "journals of 1 of the bridges were looked at, 1 did not answer"
    ]
