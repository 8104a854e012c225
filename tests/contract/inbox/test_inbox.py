"""What every store promises: order, positions without holes, one live feed, honest gaps."""

import asyncio

from tests.contract.inbox.conftest import Shelf


def data(stored: object) -> list[bytes]:
    """Return what messages hold."""
    assert isinstance(stored, list)
    return [each.message.data for each in stored]


# --- append and read


async def test_what_is_appended_is_read_in_order(shelf: Shelf) -> None:
    """Each user for itself, over several batches."""
    assert await shelf.append("alice", b"1", b"2") == [1, 2]
    assert await shelf.append("bob", b"1") == [1]
    assert await shelf.append("alice", b"3") == [3]

    found = await shelf.read_all("alice")

    assert data(found) == [b"1", b"2", b"3"]
    assert [stored.offset for stored in found] == [1, 2, 3]
    assert data(await shelf.read_all("alice", after=2)) == [b"3"]


async def test_a_batch_may_be_of_several_users(shelf: Shelf) -> None:
    """That is what the pump has: whatever waits."""
    batch = [
        shelf.message(user, str(number).encode())
        for number, user in enumerate(["a", "b", "a", "c", "b", "a"])
    ]

    assert await shelf.inbox.append(batch) == [1, 1, 2, 1, 2, 3]
    assert data(await shelf.read_all("a")) == [b"0", b"2", b"5"]


async def test_an_empty_batch_is_harmless(shelf: Shelf) -> None:
    """All of a batch may have been set aside."""
    assert await shelf.inbox.append([]) == []
    assert not shelf.fed


async def test_an_inbox_that_never_had_a_message_is_empty(shelf: Shelf) -> None:
    """Most users' inboxes are, and looking must not make one."""
    state = await shelf.inbox.state("nobody")
    page = await shelf.inbox.read("nobody", after=0, max_messages=5, max_bytes=100)

    assert (state.first, state.last, state.delivered) == (1, 0, 0)
    assert state.trimmed_for is None
    assert (list(page.messages), page.next_after, page.last) == ([], 0, 0)
    shelf.inbox.mark_delivered("nobody", 5)
    assert (await shelf.inbox.state("nobody")).delivered == 0


async def test_a_page_holds_no_more_than_was_asked_for(shelf: Shelf) -> None:
    """By count and by bytes; but one message at least, however large."""
    await shelf.append("alice", b"x" * 50, b"x" * 50, b"x" * 500, b"x")

    async def lengths(after: int, max_messages: int, max_bytes: int) -> list[int]:
        page = await shelf.inbox.read(
            "alice", after=after, max_messages=max_messages, max_bytes=max_bytes
        )
        assert page.next_after == after + len(page.messages)
        assert page.last == 4
        return [len(stored.message.data) for stored in page.messages]

    assert await lengths(0, 1, 10_000) == [50]
    assert await lengths(0, 10, 100) == [50, 50]
    assert await lengths(0, 10, 99) == [50]
    assert await lengths(2, 10, 10) == [500]
    assert await lengths(4, 10, 10) == []


async def test_a_read_from_beyond_the_end_brings_nothing(shelf: Shelf) -> None:
    """A position from the future must not loop or raise."""
    await shelf.append("alice", b"1")

    page = await shelf.inbox.read("alice", after=9, max_messages=5, max_bytes=100)

    assert not page.messages
    assert page.next_after >= page.last


async def test_the_epoch_names_the_life_of_the_store(shelf: Shelf) -> None:
    """It stays while the store lives, whoever asks and whatever is stored."""
    before = (await shelf.inbox.state("alice")).epoch
    await shelf.append("alice", b"1")

    assert before
    assert (await shelf.inbox.state("alice")).epoch == before
    assert (await shelf.inbox.state("nobody")).epoch == before


# --- publishing again


async def test_an_id_is_stored_once_within_its_window(shelf: Shelf) -> None:
    """So that a worker may publish again when it is not sure."""
    again = [shelf.message("alice", b"1", message_id="m") for _ in range(3)]

    assert await shelf.inbox.append(again[:2]) == [1, None]
    shelf.later(60)
    assert await shelf.inbox.append([again[2]]) == [None]
    assert data(await shelf.read_all("alice")) == [b"1"]


async def test_an_id_counts_for_its_user_alone(shelf: Shelf) -> None:
    """Two users may well get the message of one order."""
    both = [shelf.message(user, b"1", message_id="m") for user in ("alice", "bob")]

    assert await shelf.inbox.append(both) == [1, 1]


async def test_an_id_may_come_again_after_its_window(shelf: Shelf) -> None:
    """The bridge does not remember for ever; the promise says so."""
    await shelf.inbox.append([shelf.message("alice", b"1", message_id="m")])
    shelf.later(61)

    again = shelf.message("alice", b"2", message_id="m")

    assert await shelf.inbox.append([again]) == [2]
    await shelf.inbox.sweep()
    assert await shelf.inbox.append([again]) == [None]


async def test_messages_without_an_id_are_never_the_same(shelf: Shelf) -> None:
    """Even if they are the same to the byte."""
    assert await shelf.append("alice", b"1", b"1") == [1, 2]


# --- the delivered mark


async def test_the_delivered_mark_only_moves_forward(shelf: Shelf) -> None:
    """Windows of one user report in any order; and never beyond what there is."""
    await shelf.append("alice", b"1", b"2", b"3")

    marks = []
    for offset in (2, 1, 0, -5, 3, 99, 2):
        shelf.inbox.mark_delivered("alice", offset)
        marks.append((await shelf.inbox.state("alice")).delivered)

    assert marks == [2, 2, 2, 2, 3, 3, 3]


async def test_forgetting_leaves_the_mark_where_it_is(shelf: Shelf) -> None:
    """What was delivered was delivered, whether it is still kept or not."""
    await shelf.append("alice", b"1", b"2")
    shelf.inbox.mark_delivered("alice", 2)
    shelf.later(1001)
    await shelf.append("alice", b"3")

    assert (await shelf.inbox.state("alice")).delivered == 2


# --- the live feed


async def test_the_feed_brings_what_is_stored_for_followed_users_in_order(
    shelf: Shelf,
) -> None:
    """And nothing else; that is what keeps a bridge with few windows idle."""
    await shelf.append("alice", b"before")
    await shelf.inbox.follow("alice")
    await shelf.append("alice", b"1", b"2")
    await shelf.append("bob", b"nobody listens")
    await shelf.append("alice", b"3")

    assert data(shelf.fed) == [b"1", b"2", b"3"]
    assert [stored.offset for stored in shelf.fed] == [2, 3, 4]


async def test_what_is_stored_after_unfollow_is_not_fed(shelf: Shelf) -> None:
    """And following again takes up from there: the gap is for the replay."""
    await shelf.inbox.follow("alice")
    await shelf.append("alice", b"1")
    shelf.inbox.unfollow("alice")
    await shelf.append("alice", b"2")
    await shelf.inbox.follow("alice")
    await shelf.append("alice", b"3")

    assert data(shelf.fed) == [b"1", b"3"]
    shelf.inbox.unfollow("nobody")


async def test_following_right_after_unfollowing_counts(shelf: Shelf) -> None:
    """A page that reloads: the old window leaves while the new one comes."""
    await shelf.inbox.follow("alice")
    following = asyncio.ensure_future(shelf.inbox.follow("alice"))
    shelf.inbox.unfollow("alice")
    await following

    await shelf.append("alice", b"1")

    assert data(shelf.fed) == [b"1"]


async def test_what_is_fed_can_be_read(shelf: Shelf) -> None:
    """The inbox is the truth: sockets follow it, never the other way round."""
    await shelf.inbox.follow("alice")
    await shelf.append("alice", b"1")

    assert await shelf.read_all("alice") == shelf.fed


async def test_a_message_that_was_had_before_is_not_fed_again(shelf: Shelf) -> None:
    """Publishing again emits nothing."""
    await shelf.inbox.follow("alice")
    for _ in range(2):
        await shelf.inbox.append([shelf.message("alice", b"1", message_id="m")])

    assert data(shelf.fed) == [b"1"]


async def test_more_than_the_limit_in_one_batch_is_fed_whole(shelf: Shelf) -> None:
    """Windows that are there get all of it; the limit is for those that are not."""
    await shelf.inbox.follow("alice")
    await shelf.append("alice", *(b"%d" % number for number in range(150)))

    assert [stored.offset for stored in shelf.fed] == list(range(1, 151))


async def test_a_store_can_be_checked(shelf: Shelf) -> None:
    """`bridge check` and readiness ask it; silence is good."""
    await shelf.inbox.check()
    assert shelf.inbox.description
