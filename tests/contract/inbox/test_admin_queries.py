"""What every store shows to operators: true, in pages, and without any effect on it."""

import pytest

from bridge.core.admin_views import InboxMatch, KeptMessage
from bridge.enums import SyncReason
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import Retention
from tests.contract.inbox.conftest import Shelf
from tests.contract.inbox.files import Opened, message, read_all

# As users may be called: all that a routing key can hold but control characters.
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
    """Return where messages stand."""
    assert isinstance(messages, list | tuple)
    return [each.offset for each in messages]


# --- users


async def test_users_come_by_name_in_pages(shelf: Shelf) -> None:
    """Each once, however small the pages are and whatever users are called."""
    names = ["bob", "alice", "Zoe", "bo", *STRANGE]
    for name in names:
        await shelf.append(name, b"1")

    listed: list[str] = []
    while True:
        after = listed[-1] if listed else ""
        page = await shelf.inbox.admin.users(after=after, limit=5)
        listed += [each.user for each in page]
        if len(page) < 5:
            break

    assert listed == sorted(names)


async def test_users_can_be_asked_for_by_how_they_begin(shelf: Shelf) -> None:
    """Nothing in a prefix is a wildcard."""
    for name in ("al", "alice", "alina", "bob", "a%", "a_c", "\U0001f600b"):
        await shelf.append(name, b"1")

    async def named(prefix: str, after: str = "") -> list[str]:
        page = await shelf.inbox.admin.users(prefix=prefix, after=after, limit=9)
        return [each.user for each in page]

    assert await named("ali") == ["alice", "alina"]
    assert await named("ali", after="alice") == ["alina"]
    assert await named("ali", after="b") == []
    assert await named("a%") == ["a%"]
    assert await named("a_") == ["a_c"]
    assert await named("\U0001f600") == ["\U0001f600b"]
    assert await named("nobody") == []


async def test_a_user_shows_depth_and_what_waits(shelf: Shelf) -> None:
    """Kept is one number, not yet delivered another; a mark counts at once."""
    await shelf.append("alice", *(b"%d" % number for number in range(130)))
    shelf.inbox.mark_delivered("alice", 100)

    alice = await shelf.inbox.admin.user("alice")

    assert alice is not None
    assert (alice.user, alice.depth, alice.waiting) == ("alice", 100, 30)
    assert (alice.state.first, alice.state.last, alice.state.delivered) == (
        31,
        130,
        100,
    )
    assert alice.state.trimmed_for is SyncReason.LIMIT
    assert alice.state == await shelf.inbox.state("alice")
    assert list(await shelf.inbox.admin.users(limit=9)) == [alice]


async def test_what_is_gone_undelivered_does_not_wait(shelf: Shelf) -> None:
    """An empty inbox has nothing to deliver, whatever the mark says."""
    await shelf.append("alice", b"1", b"2")
    shelf.later(1001)

    alice = await shelf.inbox.admin.user("alice")

    assert alice is not None
    assert (alice.depth, alice.waiting, alice.state.last) == (0, 0, 2)


async def test_looking_makes_no_user(shelf: Shelf) -> None:
    """An operator mistypes names."""
    admin = shelf.inbox.admin

    assert await admin.user("nobody") is None
    assert list(await admin.messages("nobody", limit=5)) == []
    assert list((await admin.find("m", user="nobody")).matches) == []
    assert list(await admin.users(limit=5)) == []


# --- one user's messages


async def test_messages_are_shown_newest_first_in_pages(shelf: Shelf) -> None:
    """What an operator looks for is mostly what came last."""
    await shelf.append("alice", *(b"%d" % number for number in range(10)))
    await shelf.append("bob", b"another's")
    look = shelf.inbox.admin.messages

    assert offsets(await look("alice", limit=4)) == [10, 9, 8, 7]
    assert offsets(await look("alice", before=7, limit=4)) == [6, 5, 4, 3]
    assert offsets(await look("alice", before=3, limit=4)) == [2, 1]
    assert offsets(await look("alice", before=1, limit=4)) == []
    assert offsets(await look("alice", before=99, limit=2)) == [10, 9]


async def test_a_message_is_shown_as_it_is_kept(shelf: Shelf) -> None:
    """Its data only when asked for: it may be private, and large."""
    await shelf.inbox.append(
        [shelf.message("alice", b'"hello"', message_id="m", deadline_s=2e6)]
    )
    look = shelf.inbox.admin.messages

    shown = KeptMessage(1, "message", 1_000_000.0, "m", 2e6, 7)
    assert list(await look("alice", limit=1)) == [shown]
    (whole,) = await look("alice", limit=1, max_bytes=1)
    assert whole.data == b'"hello"'


async def test_a_page_with_data_is_bounded_in_bytes(shelf: Shelf) -> None:
    """One message at least, however large; without data, size does not matter."""
    await shelf.append("alice", b"x" * 500, b"x" * 50, b"x" * 50)
    look = shelf.inbox.admin.messages

    assert offsets(await look("alice", limit=9, max_bytes=100)) == [3, 2]
    assert offsets(await look("alice", limit=9, max_bytes=99)) == [3]
    assert offsets(await look("alice", before=2, limit=9, max_bytes=10)) == [1]
    assert offsets(await look("alice", limit=9)) == [3, 2, 1]


async def test_a_message_past_its_deadline_is_still_shown(shelf: Shelf) -> None:
    """It is not delivered any more, which is what the operator wants to know."""
    deadline_s = shelf.now_s[0] + 5
    await shelf.inbox.append([shelf.message("alice", b"1", deadline_s=deadline_s)])
    shelf.later(6)

    (shown,) = await shelf.inbox.admin.messages("alice", limit=5)

    assert shown.deadline_s == deadline_s


async def test_what_is_trimmed_is_not_shown(shelf: Shelf) -> None:
    """By count or by age, whether the store has deleted it yet or not."""
    await shelf.append("alice", *(b"%d" % number for number in range(130)))

    async def all_of_alice() -> list[int]:
        return offsets(await shelf.inbox.admin.messages("alice", limit=999))

    assert await all_of_alice() == list(range(130, 30, -1))
    shelf.later(1001)
    await shelf.append("alice", b"new")
    assert await all_of_alice() == [131]


# --- finding a message


async def test_a_message_is_found_by_its_id(shelf: Shelf) -> None:
    """With its user at once, without by looking at all of them."""
    ids = ["m", "n", "m", None]
    users = ["alice", "alice", "bob", "carol"]
    await shelf.inbox.append(
        [
            shelf.message(user, b"1", message_id=message_id)
            for user, message_id in zip(users, ids, strict=True)
        ]
    )
    find = shelf.inbox.admin.find

    of_alice = await find("m", user="alice")
    of_all = await find("m")

    kept = KeptMessage(1, "message", shelf.now_s[0], "m", None, 1)
    alices = InboxMatch("alice", [kept], shelf.now_s[0])
    bobs = InboxMatch("bob", [kept], shelf.now_s[0])
    assert (list(of_alice.matches), of_alice.scanned) == ([alices], 2)
    assert sorted(of_all.matches, key=lambda s: s.user) == [alices, bobs]
    assert (of_all.scanned, of_all.is_complete) == (4, True)
    assert list((await find("n", user="bob")).matches) == []
    assert list((await find("nothing")).matches) == []


@pytest.mark.parametrize("user", ["alice", None])
async def test_an_id_is_remembered_longer_than_its_message(
    shelf: Shelf, user: str | None
) -> None:
    """Within the dedupe window it says why publishing it again stored nothing."""
    at_s = shelf.now_s[0]
    await shelf.inbox.append([shelf.message("alice", b"1", message_id="m")])
    for _ in range(2):  # stores may delete later than they forget
        await shelf.append("alice", *(b"%d" % number for number in range(100)))

    found = await shelf.inbox.admin.find("m", user=user)

    assert list(found.matches) == [InboxMatch("alice", [], at_s)]


@pytest.mark.parametrize("user", ["alice", None])
async def test_an_id_that_was_stored_twice_is_found_twice(
    shelf: Shelf, user: str | None
) -> None:
    """After its window it is a message of its own."""
    at_s = shelf.now_s[0]
    await shelf.inbox.append([shelf.message("alice", b"1", message_id="m")])
    shelf.later(61)
    await shelf.inbox.append([shelf.message("alice", b"2", message_id="m")])

    (match,) = (await shelf.inbox.admin.find("m", user=user)).matches

    assert offsets(match.kept) == [1, 2]
    assert match.seen_s == at_s + 61


# --- no effect


async def test_looking_changes_nothing(shelf: Shelf) -> None:
    """Not the mark, not the feed, not what a window would get."""
    await shelf.inbox.follow("alice")
    await shelf.append("alice", b"1", b"2")
    before = await shelf.inbox.state("alice")

    await shelf.inbox.admin.messages("alice", limit=5, max_bytes=1000)
    await shelf.inbox.admin.find("m")

    assert await shelf.inbox.state("alice") == before
    assert len(shelf.fed) == 2
    assert len(await shelf.read_all("alice")) == 2


async def test_a_store_that_is_closed_is_not_looked_at(opened: Opened) -> None:
    """The error is the one that every reader of the store knows."""
    async with opened() as inbox:
        await inbox.append([message("alice", b"1")])
        assert offsets(list(await inbox.admin.messages("alice", limit=1))) == [1]

    with pytest.raises(StoreUnavailableError):
        await inbox.admin.user("alice")


async def test_a_search_that_exceeds_its_time_reports_that_it_is_incomplete(
    opened: Opened,
) -> None:
    """Otherwise a message that was not examined would look like one that is gone."""
    async with opened() as inbox:
        batch = [message(f"user-{n % 20}", b"1", f"m{n}") for n in range(1100)]
        await inbox.append(batch)
        complete = await inbox.admin.find("m3")
    async with opened(search_s=0.0) as inbox:
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


async def test_a_file_is_looked_at_while_it_is_written(opened: Opened) -> None:
    """The writer has its own connection and waits for nobody."""
    async with opened(round_entries=3) as inbox:
        for number in range(30):
            await inbox.append([message("alice", b"1", f"m{number}")])
            shown = list(await inbox.admin.messages("alice", limit=100))
            assert offsets(shown) == list(range(number + 1, 0, -1))
            found = await inbox.admin.find(f"m{number}", user="alice")
            assert len(found.matches) == 1
        assert len(await read_all(inbox, "alice")) == 30


async def test_the_retention_of_today_counts(shelf: Shelf) -> None:
    """As for windows: what they would not get is not shown as kept."""
    await shelf.append("alice", *(b"%d" % number for number in range(50)))
    shelf.inbox.retention = Retention(max_messages=10, max_age_s=1000, dedupe_s=60)

    assert len(await shelf.inbox.admin.messages("alice", limit=99)) == 10
