"""Traces while a source is unavailable or too large: the answer names what is missing."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from aiohttp import web

from bridge.core.admin_views import (
    InboxSummary,
    SearchResult,
    WaitingEvent,
    WaitingEvents,
)
from bridge.core.dead_letter import DeadLetterCount, StoredDeadLetter
from bridge.core.fleet import THIS_BRIDGE, Coverage, UserWindows
from bridge.core.journal import Journal, JournalEntry
from bridge.core.receipts import Receipt
from bridge.enums import DeadLetterReason, Stage
from bridge.errors import BrokerUnavailableError
from bridge.http.api.endpoint import Api
from bridge.http.api.trace import add_trace_routes
from bridge.http.fleet import MessageJournal
from bridge.http.responses import answer_with_problems
from tests.unit.http.conftest import Client, Open, OpenGuard


def letter(user: str, message_id: str = "m") -> StoredDeadLetter:
    """Return a dead letter."""
    return StoredDeadLetter(
        id="l", reason=DeadLetterReason.TOO_LARGE, error="", user=user, event="message",
        message_id=message_id, dead_s=5.0, origin_exchange="", origin_queue="",
        attempts=1, redrives=0, body_bytes=1,
    )  # fmt: skip


class Sources:
    """An empty inbox, no window, a journal, and dead letters that may be unavailable."""

    def __init__(
        self, *letters: StoredDeadLetter, journal: Journal | None = None
    ) -> None:
        self.letters = letters
        self.journal = journal or Journal()
        self.failure: Exception | None = None
        self.is_complete = True
        self.events = WaitingEvents((), is_complete=True)
        self.coverage = THIS_BRIDGE
        self.journal_coverage: Coverage | None = None

    # The inboxes

    async def user(self, user: str) -> InboxSummary | None:
        """Return no inbox."""
        assert user
        return None

    async def find(self, message_id: str, *, user: str | None = None) -> SearchResult:
        """Find nothing, in all messages or in some."""
        assert message_id
        assert user != ""
        return SearchResult((), 7, is_complete=self.is_complete)

    async def open_receipts(self, user: str, message_id: str) -> Sequence[Receipt]:
        """Return no receipt."""
        assert user
        assert message_id
        return ()

    async def waiting_events(self, user: str, message_id: str) -> WaitingEvents:
        """Return the events."""
        assert user
        assert message_id
        return self.events

    # The dead letters

    async def browse(
        self, begin: Callable[[], Callable[[StoredDeadLetter], bool]]
    ) -> DeadLetterCount:
        """Show the dead letters."""
        if self.failure is not None:
            raise self.failure
        shown = 0
        take = begin()
        for each in self.letters:
            shown += 1
            if not take(each):
                break
        return DeadLetterCount(shown, len(self.letters))

    # The fleet

    @property
    def journal_begins_s(self) -> float:
        """Return when the journal begins."""
        return self.journal.begins_s

    async def message_users(self, message_id: str) -> set[str]:
        """Return the users of this bridge's journal."""
        return self.journal.users_of(message_id)

    async def message_journal(
        self, user: str, message_id: str, *, offsets: Sequence[int]
    ) -> MessageJournal:
        """Return this bridge's entries, as if the others had none."""
        entries = self.journal.of(user, message_id, offsets=offsets)
        coverage = self.journal_coverage or self.coverage
        return MessageJournal(entries, self.journal.begins_s, coverage)

    async def windows_of(self, user: str) -> UserWindows:
        """Return no window."""
        assert user
        return UserWindows((), None, self.coverage)


async def open_trace(open_app: Open, sources: Sources, **options: int) -> Client:
    """Serve traces without authentication."""
    app = web.Application(middlewares=[answer_with_problems])
    fake: Any = sources
    add_trace_routes(
        Api(app, OpenGuard()), inboxes=fake, dead_letters=fake, fleet=fake, **options
    )
    return await open_app(app)


async def test_a_trace_shows_the_dead_letters_of_its_user(
    open_app: Open,
) -> None:
    """Several users may have messages with one id; other ids are left out."""
    sources = Sources(letter("bob"), letter("ann"), letter("eve", "other"))
    client = await open_trace(open_app, sources)

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
async def test_an_unavailable_broker_hides_only_the_dead_letters(
    open_app: Open, failure: Exception, silence: str
) -> None:
    """The journal is still used, and no dead letter is reported as gone."""
    journal = Journal()
    sources = Sources(journal=journal)
    sources.failure = failure
    journal.note(JournalEntry(5.0, Stage.DEAD, "ann", "m", text="too_large"))
    client = await open_trace(open_app, sources)

    async with client.get("/api/trace/m") as response:
        trace = await response.json()

    assert (trace["user"], trace["verdict"]) == ("ann", "dead: it became a dead letter")
    assert silence in trace["silent"][0]


async def test_incomplete_searches_are_reported(open_app: Open) -> None:
    """An id that was not found in a part may be in the rest."""
    sources = Sources(*[letter("ann", "other")] * 3)
    sources.is_complete = False
    client = await open_trace(open_app, sources, letters_max=2)

    async with client.get("/api/trace/m") as response:
        trace = await response.json()

    assert (trace["user"], trace["fate"], trace["looked_at"]) == (None, "unknown", 7)
    assert trace["silent"][:2] == [
        "only the newest 7 messages were searched: name the user to search all of one inbox",
        "only the oldest 2 of 3 dead letters were read",
    ]


async def test_a_part_of_the_waiting_events_is_reported(open_app: Open) -> None:
    """The outcome that the operator looks for may be in the rest."""
    sources = Sources(letter("ann"))
    gap = "only the oldest of the events that wait to be published were searched"
    client = await open_trace(open_app, sources)

    for is_complete in (True, False):
        event = WaitingEvent("message.dead", 6.0)
        sources.events = WaitingEvents([event], is_complete=is_complete)
        async with client.get("/api/trace/m") as response:
            trace = await response.json()
        texts = [step["text"] for step in trace["story"]]
        assert "message.dead waits to be published for workers" in texts
        assert (gap in trace["silent"]) is not is_complete


@pytest.mark.parametrize(
    ("coverage", "sentences"),
    [
        (THIS_BRIDGE, []),
        (
            Coverage(2, 1),
            ["windows and journals of 2 of the bridges are known, 1 did not answer"],
        ),
        (
            Coverage(1, None),
            [
                "windows and journals of 1 of the bridges are known, the others did not answer"
            ],
        ),
    ],
)
async def test_bridges_that_did_not_answer_are_reported(
    open_app: Open, coverage: Coverage, sentences: list[str]
) -> None:
    """An unknown window may have received the message."""
    sources = Sources(letter("ann"), journal=Journal(began_s=1.0))
    sources.coverage = coverage
    client = await open_trace(open_app, sources)

    async with client.get("/api/trace/m?user=ann") as response:
        trace = await response.json()

    assert [each for each in trace["silent"] if "of the bridges" in each] == sentences


async def test_windows_and_journals_are_reported_separately_if_they_differ(
    open_app: Open,
) -> None:
    """A bridge of an earlier version answers about windows, not about its journal."""
    sources = Sources(letter("ann"), journal=Journal(began_s=1.0))
    sources.coverage, sources.journal_coverage = Coverage(2, 0), Coverage(1, 1)
    client = await open_trace(open_app, sources)

    async with client.get("/api/trace/m?user=ann") as response:
        trace = await response.json()

    assert [each for each in trace["silent"] if "of the bridges" in each] == [
        "journals of 1 of the bridges are known, 1 did not answer"
    ]
