"""Answers of several bridges in one: windows, users and journals, whatever the others answer."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.fleet import Coverage, FleetAnswers, OnlineUser
from bridge.core.journal import Journal, JournalEntry
from bridge.enums import PresenceChange, Stage
from bridge.http.fleet import FleetView

WindowCounts = dict[str, int]
fleets = st.lists(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 3)),
    min_size=1,
    max_size=4,
)


class FakeSockets:
    """A bridge's windows: some number for each user. It is its own rooms."""

    def __init__(self, windows: WindowCounts) -> None:
        self.windows = windows
        self.users = windows.keys()
        self.rooms = self

    def windows_of(self, user: str) -> Sequence[None]:
        """Return as many items as the user has windows."""
        return [None] * self.windows.get(user, 0)

    def kick(self, user: str, *, reason: str | None) -> int:  # noqa: ARG002 - as the real one
        """Return the number of windows."""
        return self.windows.get(user, 0)


SOCKETS: Any = FakeSockets({})


class LocalFleet:
    """Other bridges in this process, whose answers become JSON on the way."""

    def __init__(self, *others: FleetView, also: Sequence[object] = ()) -> None:
        self._others = others
        self._also = also

    def serve(self, answer: Callable[[Mapping[str, Any]], Awaitable[object]]) -> None:
        """Accept the bridge that asks, whom no other bridge asks."""

    async def ask(self, question: Mapping[str, Any]) -> FleetAnswers:
        """Ask each of the others, and add the prepared answers."""
        received = orjson.loads(orjson.dumps(question))
        answers = [await other.answer(received) for other in self._others]
        return FleetAnswers(orjson.loads(orjson.dumps([*answers, *self._also])), 0)


def bridge(
    windows: WindowCounts | None = None,
    fleet: LocalFleet | None = None,
    journal: Journal | None = None,
) -> FleetView:
    """Return the view of a bridge with these windows and this journal."""
    sockets: Any = FakeSockets(windows or {})
    return FleetView(sockets, journal or Journal(began_s=0), fleet=fleet)


def journal(name: str, *entries: JournalEntry, began_s: float = 0.0) -> Journal:
    """Return a bridge's journal with these entries."""
    kept = Journal(bridge=name, began_s=began_s)
    for entry in entries:
        kept.note(entry)
    return kept


# --- windows


@given(fleet=fleets, limit=st.integers(1, 4))
def test_pages_of_all_bridges_are_the_pages_of_one_list(
    fleet: list[WindowCounts], limit: int
) -> None:
    """No user is skipped at the end of a page, wherever the windows are."""
    view = bridge(fleet[0], LocalFleet(*map(bridge, fleet[1:])))
    whole = {
        name: sum(windows.get(name, 0) for windows in fleet)
        for name in sorted({name for windows in fleet for name in windows})
    }

    async def read() -> WindowCounts:
        found: WindowCounts = {}
        after = ""
        while True:
            page, coverage = await view.users_online(
                prefix="", after=after, limit=limit
            )
            assert coverage == Coverage(len(fleet), 0)
            assert len(page) <= limit
            if not page:
                return found
            found |= {name: user.windows for name, user in page.items()}
            after = list(page)[-1]

    found = asyncio.run(read())
    assert (found, list(found)) == (whole, list(whole))


@given(fleet=fleets, asked=st.lists(st.text("abc", min_size=1, max_size=3)))
def test_counts_of_windows_agree_with_the_list_of_users_online(
    fleet: list[WindowCounts], asked: list[str]
) -> None:
    """A user is in the list exactly if the user has a window, wherever it is."""
    view = bridge(fleet[0], LocalFleet(*map(bridge, fleet[1:])))

    async def read() -> tuple[WindowCounts, WindowCounts, Coverage]:
        online, _ = await view.users_online(prefix="", after="", limit=1000)
        counts, coverage = await view.window_counts(asked)
        listed = {name: user.windows for name, user in online.items()}
        return listed, dict(counts), coverage

    listed, counts, coverage = asyncio.run(read())
    assert counts == {name: n for name, n in listed.items() if name in asked}
    assert coverage == Coverage(len(fleet), 0)


async def test_an_invalid_answer_counts_as_silence() -> None:
    """A bridge of another version may not know the question, or answer differently."""
    strange: list[object] = [None, [], {"users": "all"}, {"kicked": "some"}]
    other = bridge({"ann": 2, "bob": 1})
    view = bridge({"ann": 1}, LocalFleet(other, also=strange))

    users, coverage = await view.users_online(prefix="a", after="", limit=10)
    counts, counted = await view.window_counts(["ann", "bob", "cid"])
    kicked = await view.kick("ann")

    assert users == {"ann": OnlineUser(3, None)}
    assert counts == {"ann": 3, "bob": 1}
    assert coverage == counted == Coverage(2, len(strange))
    assert kicked == (3, Coverage(2, len(strange)))


async def test_changes_of_presence_on_all_bridges_are_in_one_list() -> None:
    """Newest first; an earlier version does not report any."""
    one, two = journal("one"), journal("two")
    one.presence("ann", PresenceChange.CONNECTED, at_s=1.0)
    two.presence("ann", PresenceChange.CONNECTED, at_s=2.0)
    one.presence("ann", PresenceChange.DISCONNECTED, at_s=3.0)
    one.presence("bob", PresenceChange.CONNECTED, at_s=4.0)
    earlier: object = {"windows": [], "last_connect_s": None}
    other = FleetView(SOCKETS, two, name="two")
    view = FleetView(SOCKETS, one, name="one", fleet=LocalFleet(other, also=[earlier]))

    found = await view.windows_of("ann")

    assert [(step.at_s, step.change, step.bridge) for step in found.presence] == [
        (3.0, "disconnected", "one"),
        (2.0, "connected", "two"),
        (1.0, "connected", "one"),
    ]
    assert found.coverage == Coverage(3, 0)


async def test_an_unknown_question_is_answered_with_none() -> None:
    """The bridge that asks counts it as silence."""
    view = bridge({"ann": 1})

    for question in (
        {"do": "dance"},
        {"do": "kick", "user": 7},
        {"do": "presence", "users": ["ann", 7]},
        {"do": "remember", "user": "ann", "message_id": "m", "offsets": ["1"]},
    ):
        assert await view.answer(question) is None


# --- journals


async def test_the_journals_of_all_bridges_are_merged_in_order_of_time() -> None:
    """The bridge that stored a message knows its id, one that wrote it knows its offset."""
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

    for own, *others in ((stored, written, nothing), (nothing, stored, written)):
        fleet = LocalFleet(*(bridge(journal=each) for each in others))
        view = bridge(fleet=fleet, journal=own)
        found = await view.message_journal("ann", "m", offsets=[7])

        assert [(each.at_s, each.bridge) for each in found.entries] == [
            (1.0, "one"),
            (3.0, "two"),
            (4.0, "one"),
        ]
        assert found.entries[1].windows == 2
        # All journals are complete from the latest of their beginnings.
        assert found.begins_s == 0.7
        assert found.coverage == Coverage(3, 0)
        assert await view.message_users("m") == {"ann"}


async def test_a_journal_answer_of_another_version_counts_as_silence() -> None:
    """An earlier version does not know the question, a later one may know more stages."""
    strange: list[object] = [
        None,
        {"begins_s": 1.0, "happenings": [{"at_s": 1, "stage": "new", "user": "ann"}]},
    ]
    fleet = LocalFleet(bridge(journal=journal("two")), also=strange)
    view = bridge(fleet=fleet, journal=journal("one"))

    found = await view.message_journal("ann", "m", offsets=[])

    assert (found.entries, found.coverage) == ([], Coverage(2, 2))
