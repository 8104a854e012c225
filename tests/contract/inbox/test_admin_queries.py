"""Queries for operators, on every store: correct, in pages, and without side effects."""

import pytest

from bridge.core.admin_views import InboxMatch, KeptMessage
from bridge.core.message_options import MessageOptions
from bridge.core.receipts import WorkerEvent
from bridge.enums import SyncReason
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import Retention
from tests.contract.inbox.conftest import StoreUnderTest
from tests.contract.inbox.files import OpenInbox, message, read_all

# Valid names of users: a routing key may hold anything except control characters.
STRANGE = [
    "%2F",
    "../../etc/passwd",
    ".",
    "a/b",
    "[red]x[/red]",
    "ä",
    "\U0001f600",
    "~",
]


def offsets(messages: object) -> list[int]:
    """Return the offsets of messages."""
    assert isinstance(messages, list | tuple)
    return [each.offset for each in messages]


# --- users


async def test_users_are_listed_by_name_in_pages(store: StoreUnderTest) -> None:
    """Each user appears once, whatever the size of the pages and the names."""
    names = ["bob", "alice", "Zoe", "bo", *STRANGE]
    for name in names:
        await store.append(name, b"1")

    listed: list[str] = []
    while True:
        after = listed[-1] if listed else ""
        page = await store.inbox.admin.users(after=after, limit=5)
        listed += [each.user for each in page]
        if len(page) < 5:
            break

    assert listed == sorted(names)


async def test_users_can_be_filtered_by_a_prefix(store: StoreUnderTest) -> None:
    """No character of a prefix is a wildcard."""
    for name in ("al", "alice", "alina", "bob", "a%", "a_c", "\U0001f600b"):
        await store.append(name, b"1")

    async def named(prefix: str, after: str = "") -> list[str]:
        page = await store.inbox.admin.users(prefix=prefix, after=after, limit=9)
        return [each.user for each in page]

    assert await named("ali") == ["alice", "alina"]
    assert await named("ali", after="alice") == ["alina"]
    assert await named("ali", after="b") == []
    assert await named("a%") == ["a%"]
    assert await named("a_") == ["a_c"]
    assert await named("\U0001f600") == ["\U0001f600b"]
    assert await named("unknown") == []


async def test_a_user_has_a_depth_and_a_number_of_undelivered_messages(
    store: StoreUnderTest,
) -> None:
    """A delivered mark counts at once, before it is written."""
    await store.append("alice", *(b"%d" % number for number in range(130)))
    store.inbox.mark_delivered("alice", 100)

    alice = await store.inbox.admin.user("alice")

    assert alice is not None
    assert (alice.user, alice.depth, alice.waiting) == ("alice", 100, 30)
    assert (alice.state.first, alice.state.last, alice.state.delivered) == (
        31,
        130,
        100,
    )
    assert alice.state.trimmed_for is SyncReason.LIMIT
    assert alice.state == await store.inbox.state("alice")
    assert list(await store.inbox.admin.users(limit=9)) == [alice]


async def test_deleted_messages_do_not_count_as_undelivered(
    store: StoreUnderTest,
) -> None:
    """An empty inbox has nothing to deliver, whatever the delivered mark is."""
    await store.append("alice", b"1", b"2")
    store.advance(1001)

    alice = await store.inbox.admin.user("alice")

    assert alice is not None
    assert (alice.depth, alice.waiting, alice.state.last) == (0, 0, 2)


async def test_queries_create_no_user(store: StoreUnderTest) -> None:
    """Operators mistype names."""
    admin = store.inbox.admin

    assert await admin.user("unknown") is None
    assert list(await admin.messages("unknown", limit=5)) == []
    assert list((await admin.find("m", user="unknown")).matches) == []
    assert list(await admin.users(limit=5)) == []


# --- one user's messages


async def test_messages_are_listed_newest_first_in_pages(store: StoreUnderTest) -> None:
    """Operators mostly look for recent messages."""
    await store.append("alice", *(b"%d" % number for number in range(10)))
    await store.append("bob", b"other")
    look = store.inbox.admin.messages

    assert offsets(await look("alice", limit=4)) == [10, 9, 8, 7]
    assert offsets(await look("alice", before=7, limit=4)) == [6, 5, 4, 3]
    assert offsets(await look("alice", before=3, limit=4)) == [2, 1]
    assert offsets(await look("alice", before=1, limit=4)) == []
    assert offsets(await look("alice", before=99, limit=2)) == [10, 9]


async def test_a_message_is_listed_with_all_its_properties(
    store: StoreUnderTest,
) -> None:
    """Data is returned only on request, because it may be private and large."""
    await store.inbox.append(
        [store.message("alice", b'"hello"', message_id="m", deadline_s=2e6)]
    )
    look = store.inbox.admin.messages

    shown = KeptMessage(1, "message", 1_000_000.0, "m", 2e6, 7)
    assert list(await look("alice", limit=1)) == [shown]
    (whole,) = await look("alice", limit=1, max_bytes=1)
    assert whole.data == b'"hello"'


async def test_a_message_is_listed_with_its_key(store: StoreUnderTest) -> None:
    """Beside messages without one, from before and after it; also as a retained value."""
    keyed = store.message("alice", b"2", message_id="m2")
    keyed.options = MessageOptions(key="job-17", is_retained=True)
    await store.append("alice", b"1")
    await store.inbox.append([keyed])
    await store.append("alice", b"3")

    listed = await store.inbox.admin.messages("alice", limit=9)
    assert [(each.offset, each.key) for each in listed] == [
        (3, None),
        (2, "job-17"),
        (1, None),
    ]
    whole = await store.inbox.admin.messages("alice", limit=1, before=3, max_bytes=9)
    assert [(each.data, each.key) for each in whole] == [(b"2", "job-17")]
    (retained,) = await store.inbox.read_retained(
        "alice", after=0, upto=3, max_bytes=99
    )
    assert retained.message.key == "job-17"


async def test_a_page_with_data_is_bounded_in_bytes(store: StoreUnderTest) -> None:
    """It holds at least one message; without data the size does not matter."""
    await store.append("alice", b"x" * 500, b"x" * 50, b"x" * 50)
    look = store.inbox.admin.messages

    assert offsets(await look("alice", limit=9, max_bytes=100)) == [3, 2]
    assert offsets(await look("alice", limit=9, max_bytes=99)) == [3]
    assert offsets(await look("alice", before=2, limit=9, max_bytes=10)) == [1]
    assert offsets(await look("alice", limit=9)) == [3, 2, 1]


async def test_a_message_past_its_deadline_is_still_listed(
    store: StoreUnderTest,
) -> None:
    """It is no longer delivered, which is what the operator needs to see."""
    deadline_s = store.clock.now_s + 5
    await store.inbox.append([store.message("alice", b"1", deadline_s=deadline_s)])
    store.advance(6)

    (shown,) = await store.inbox.admin.messages("alice", limit=5)

    assert shown.deadline_s == deadline_s


async def test_trimmed_messages_are_not_listed(store: StoreUnderTest) -> None:
    """Neither those over the limit nor those too old, deleted or not."""
    await store.append("alice", *(b"%d" % number for number in range(130)))

    async def all_of_alice() -> list[int]:
        return offsets(await store.inbox.admin.messages("alice", limit=999))

    assert await all_of_alice() == list(range(130, 30, -1))
    store.advance(1001)
    await store.append("alice", b"new")
    assert await all_of_alice() == [131]


# --- finding a message


async def test_a_message_is_found_by_its_id(store: StoreUnderTest) -> None:
    """With the user directly, without the user by a search through all inboxes."""
    ids = ["m", "n", "m", None]
    users = ["alice", "alice", "bob", "carol"]
    await store.inbox.append(
        [
            store.message(user, b"1", message_id=message_id)
            for user, message_id in zip(users, ids, strict=True)
        ]
    )
    find = store.inbox.admin.find

    of_alice = await find("m", user="alice")
    of_all = await find("m")

    kept = KeptMessage(1, "message", store.clock.now_s, "m", None, 1)
    alices = InboxMatch("alice", [kept], store.clock.now_s)
    bobs = InboxMatch("bob", [kept], store.clock.now_s)
    assert (list(of_alice.matches), of_alice.scanned) == ([alices], 2)
    assert sorted(of_all.matches, key=lambda s: s.user) == [alices, bobs]
    assert (of_all.scanned, of_all.is_complete) == (4, True)
    assert list((await find("n", user="bob")).matches) == []
    assert list((await find("nothing")).matches) == []


@pytest.mark.parametrize("user", ["alice", None])
async def test_an_id_is_found_after_its_message_was_deleted(
    store: StoreUnderTest, user: str | None
) -> None:
    """Within the dedupe window it explains why publishing it again stored nothing."""
    at_s = store.clock.now_s
    await store.inbox.append([store.message("alice", b"1", message_id="m")])
    for _ in range(2):  # stores may delete messages late
        await store.append("alice", *(b"%d" % number for number in range(100)))

    found = await store.inbox.admin.find("m", user=user)

    assert list(found.matches) == [InboxMatch("alice", [], at_s)]


@pytest.mark.parametrize("user", ["alice", None])
async def test_an_id_that_was_stored_twice_is_found_twice(
    store: StoreUnderTest, user: str | None
) -> None:
    """After the dedupe window the second one is a message of its own."""
    at_s = store.clock.now_s
    await store.inbox.append([store.message("alice", b"1", message_id="m")])
    store.advance(61)
    await store.inbox.append([store.message("alice", b"2", message_id="m")])

    (match,) = (await store.inbox.admin.find("m", user=user)).matches

    assert offsets(match.kept) == [1, 2]
    assert match.seen_s == at_s + 61


# --- no side effects


async def test_queries_change_nothing(store: StoreUnderTest) -> None:
    """Neither the delivered mark, nor the feed, nor what a window would receive."""
    await store.inbox.follow("alice")
    await store.append("alice", b"1", b"2")
    before = await store.inbox.state("alice")

    await store.inbox.admin.messages("alice", limit=5, max_bytes=1000)
    await store.inbox.admin.find("m")

    assert await store.inbox.state("alice") == before
    assert len(store.fed) == 2
    assert len(await store.read_all("alice")) == 2


async def test_a_closed_store_cannot_be_queried(open_inbox: OpenInbox) -> None:
    """The error is the same as that of other reads."""
    async with open_inbox() as inbox:
        await inbox.append([message("alice", b"1")])
        assert offsets(list(await inbox.admin.messages("alice", limit=1))) == [1]

    with pytest.raises(StoreUnavailableError):
        await inbox.admin.user("alice")


async def test_a_search_that_exceeds_its_time_reports_that_it_is_incomplete(
    open_inbox: OpenInbox,
) -> None:
    """Otherwise a message that was not examined would look like one that is gone."""
    async with open_inbox() as inbox:
        batch = [message(f"user-{n % 20}", b"1", f"m{n}") for n in range(1100)]
        await inbox.append(batch)
        complete = await inbox.admin.find("m3")
    async with open_inbox(search_s=0.0) as inbox:
        incomplete = await inbox.admin.find("m3")
        recent = await inbox.admin.find("m1045")

    assert [len(complete.matches), complete.scanned, complete.is_complete] == [
        1,
        1100,
        True,
    ]
    assert [len(incomplete.matches), incomplete.is_complete] == [0, False]
    assert incomplete.scanned == 1000
    assert offsets(list(recent.matches[0].kept)) == [53]


async def test_a_search_for_waiting_events_takes_short_steps(
    open_inbox: OpenInbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many wait while the broker takes none; each step here has time for one event."""
    monkeypatch.setattr("bridge.inbox.sqlite.admin_queries._STEP_S", -1.0)
    async with open_inbox() as inbox:
        for number in range(3):
            fields = (f"{number}", "message.dead", "ann", b"{}", number)
            message_id = f"m{number % 2}"
            await inbox.add_event(WorkerEvent(*fields, message_id=message_id))
        events = await inbox.admin.waiting_events("ann", "m0")
    async with open_inbox(search_s=-1.0) as inbox:
        part = await inbox.admin.waiting_events("ann", "m0")

    assert ([each.at_s for each in events.found], events.is_complete) == ([0, 2], True)
    assert ([each.at_s for each in part.found], part.is_complete) == ([0], False)


async def test_a_file_can_be_queried_while_it_is_written(open_inbox: OpenInbox) -> None:
    """The queries have a connection of their own."""
    async with open_inbox(round_entries=3) as inbox:
        for number in range(30):
            await inbox.append([message("alice", b"1", f"m{number}")])
            shown = list(await inbox.admin.messages("alice", limit=100))
            assert offsets(shown) == list(range(number + 1, 0, -1))
            found = await inbox.admin.find(f"m{number}", user="alice")
            assert len(found.matches) == 1
        assert len(await read_all(inbox, "alice")) == 30


async def test_queries_apply_the_current_retention(store: StoreUnderTest) -> None:
    """Messages that a window would not receive are not listed as kept."""
    await store.append("alice", *(b"%d" % number for number in range(50)))
    store.inbox.retention = Retention(max_messages=10, max_age_s=1000, dedupe_s=60)

    assert len(await store.inbox.admin.messages("alice", limit=99)) == 10
