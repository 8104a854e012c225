"""Append, read, deduplication, delivered marks and the live feed, on every store."""

import asyncio

from bridge.inbox.memory.store import MemoryInbox
from tests.contract.inbox.conftest import StoreUnderTest


def data(stored: object) -> list[bytes]:
    """Return the data of messages."""
    assert isinstance(stored, list)
    return [each.message.data for each in stored]


# --- append and read


async def test_appended_messages_are_read_in_order(store: StoreUnderTest) -> None:
    """Per user, over several batches."""
    assert await store.append("alice", b"1", b"2") == [1, 2]
    assert await store.append("bob", b"1") == [1]
    assert await store.append("alice", b"3") == [3]

    found = await store.read_all("alice")

    assert data(found) == [b"1", b"2", b"3"]
    assert [stored.offset for stored in found] == [1, 2, 3]
    assert data(await store.read_all("alice", after=2)) == [b"3"]


async def test_a_batch_may_hold_messages_of_several_users(
    store: StoreUnderTest,
) -> None:
    """The pipeline appends all waiting messages at once."""
    batch = [
        store.message(user, str(number).encode())
        for number, user in enumerate(["a", "b", "a", "c", "b", "a"])
    ]

    assert await store.inbox.append(batch) == [1, 1, 2, 1, 2, 3]
    assert data(await store.read_all("a")) == [b"0", b"2", b"5"]


async def test_messages_of_a_batch_may_differ_in_what_they_have(
    store: StoreUnderTest,
) -> None:
    """A store may leave out what no message of a batch has."""
    later_s = store.clock.now_s + 3600
    batches = [
        [store.message("alice", b"1")],
        [
            store.message("alice", b"2"),
            store.message("alice", b"3", deadline_s=later_s),
            store.message("alice", b"4", message_id="four"),
            store.message("alice", b"5", message_id="five", deadline_s=later_s),
        ],
    ]

    for batch in batches:
        await store.inbox.append(batch)

    found = await store.read_all("alice")
    assert [each.message for each in found] == [one for some in batches for one in some]


async def test_a_batch_may_have_many_new_users(store: StoreUnderTest) -> None:
    """The first messages after a start are for users that the store has not loaded."""
    users = [f"user-{number}" for number in range(100)]
    for expected in (1, 2):
        for some in (users[:1], users[:70], users):
            first = [store.message(user, b"1") for user in some]
            offsets = await store.inbox.append(first)
        assert offsets[-1] == expected


async def test_an_empty_batch_stores_nothing(store: StoreUnderTest) -> None:
    """All deliveries of a batch may have been dead-lettered."""
    assert await store.inbox.append([]) == []
    assert not store.fed


async def test_an_inbox_without_messages_is_empty(store: StoreUnderTest) -> None:
    """Reading must not create it: most users never have a message."""
    state = await store.inbox.state("unknown")
    page = await store.inbox.read("unknown", after=0, max_messages=5, max_bytes=100)

    assert (state.first, state.last, state.delivered) == (1, 0, 0)
    assert state.trimmed_for is None
    assert (list(page.messages), page.next_after, page.last) == ([], 0, 0)
    store.inbox.mark_delivered("unknown", 5)
    assert (await store.inbox.state("unknown")).delivered == 0


async def test_a_page_is_limited_by_count_and_bytes(store: StoreUnderTest) -> None:
    """But it holds at least one message, however large."""
    await store.append("alice", b"x" * 50, b"x" * 50, b"x" * 500, b"x")

    async def lengths(after: int, max_messages: int, max_bytes: int) -> list[int]:
        page = await store.inbox.read(
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


async def test_a_read_above_the_newest_offset_returns_nothing(
    store: StoreUnderTest,
) -> None:
    """A position above the newest offset must not loop or raise."""
    await store.append("alice", b"1")

    page = await store.inbox.read("alice", after=9, max_messages=5, max_bytes=100)

    assert not page.messages
    assert page.next_after >= page.last


async def test_the_epoch_stays_the_same_while_the_store_exists(
    store: StoreUnderTest,
) -> None:
    """It is the same for all users, whatever is stored."""
    before = (await store.inbox.state("alice")).epoch
    await store.append("alice", b"1")

    assert before
    assert (await store.inbox.state("alice")).epoch == before
    assert (await store.inbox.state("unknown")).epoch == before


# --- deduplication


async def test_an_id_is_stored_once_within_the_dedupe_window(
    store: StoreUnderTest,
) -> None:
    """A producer may publish again when it is not sure."""
    again = [store.message("alice", b"1", message_id="m") for _ in range(3)]

    assert await store.inbox.append(again[:2]) == [1, None]
    store.advance(60)
    assert await store.inbox.append([again[2]]) == [None]
    assert data(await store.read_all("alice")) == [b"1"]


async def test_ids_of_different_users_are_independent(store: StoreUnderTest) -> None:
    """Two users may receive messages with the same id."""
    both = [store.message(user, b"1", message_id="m") for user in ("alice", "bob")]

    assert await store.inbox.append(both) == [1, 1]


async def test_an_id_is_stored_again_after_the_dedupe_window(
    store: StoreUnderTest,
) -> None:
    """Ids are remembered for the dedupe window only."""
    await store.inbox.append([store.message("alice", b"1", message_id="m")])
    store.advance(61)

    again = store.message("alice", b"2", message_id="m")

    assert await store.inbox.append([again]) == [2]
    await store.inbox.sweep()
    assert await store.inbox.append([again]) == [None]


async def test_messages_without_an_id_are_never_duplicates(
    store: StoreUnderTest,
) -> None:
    """Even if their data is equal."""
    assert await store.append("alice", b"1", b"1") == [1, 2]


# --- the delivered mark


async def test_the_delivered_mark_only_moves_forward(store: StoreUnderTest) -> None:
    """Windows of one user report in any order; the mark never passes the newest offset."""
    await store.append("alice", b"1", b"2", b"3")

    marks = []
    for offset in (2, 1, 0, -5, 3, 99, 2):
        store.inbox.mark_delivered("alice", offset)
        marks.append((await store.inbox.state("alice")).delivered)

    assert marks == [2, 2, 2, 2, 3, 3, 3]


async def test_deletion_does_not_move_the_delivered_mark(store: StoreUnderTest) -> None:
    """A delivered message counts as delivered, whether it is kept or not."""
    await store.append("alice", b"1", b"2")
    store.inbox.mark_delivered("alice", 2)
    store.advance(1001)
    await store.append("alice", b"3")

    assert (await store.inbox.state("alice")).delivered == 2


# --- the live feed


async def test_the_feed_contains_messages_of_followed_users_in_order(
    store: StoreUnderTest,
) -> None:
    """And no others, so a bridge with few windows has little to do."""
    await store.append("alice", b"before")
    await store.inbox.follow("alice")
    await store.append("alice", b"1", b"2")
    await store.append("bob", b"not followed")
    await store.append("alice", b"3")

    assert data(store.fed) == [b"1", b"2", b"3"]
    assert [stored.offset for stored in store.fed] == [2, 3, 4]


async def test_messages_after_unfollow_are_not_in_the_feed(
    store: StoreUnderTest,
) -> None:
    """Following again continues from there; a replay fills the gap."""
    await store.inbox.follow("alice")
    await store.append("alice", b"1")
    store.inbox.unfollow("alice")
    await store.append("alice", b"2")
    await store.inbox.follow("alice")
    await store.append("alice", b"3")

    assert data(store.fed) == [b"1", b"3"]
    store.inbox.unfollow("unknown")


async def test_a_follow_during_an_unfollow_takes_effect(store: StoreUnderTest) -> None:
    """When a page reloads, the old window leaves while the new one connects."""
    await store.inbox.follow("alice")
    following = asyncio.ensure_future(store.inbox.follow("alice"))
    store.inbox.unfollow("alice")
    await following

    await store.append("alice", b"1")

    assert data(store.fed) == [b"1"]


async def test_messages_in_the_feed_can_be_read(store: StoreUnderTest) -> None:
    """The inbox is the source of truth, and sockets follow it."""
    await store.inbox.follow("alice")
    await store.append("alice", b"1")

    assert await store.read_all("alice") == store.fed


async def test_a_duplicate_is_not_in_the_feed(store: StoreUnderTest) -> None:
    """Publishing a message again emits nothing."""
    await store.inbox.follow("alice")
    for _ in range(2):
        await store.inbox.append([store.message("alice", b"1", message_id="m")])

    assert data(store.fed) == [b"1"]


async def test_a_batch_above_the_limit_is_completely_in_the_feed(
    store: StoreUnderTest,
) -> None:
    """Connected windows receive all of it; the limit only affects what is kept."""
    await store.inbox.follow("alice")
    await store.append("alice", *(b"%d" % number for number in range(150)))

    assert [stored.offset for stored in store.fed] == list(range(1, 151))


async def test_a_store_can_be_checked(store: StoreUnderTest) -> None:
    """`bridge check` calls it; no exception means that the store can be written."""
    await store.inbox.check()
    assert store.inbox.description


# --- trials


async def test_trials_of_several_keys_are_noted_and_forgotten(
    store: StoreUnderTest,
) -> None:
    """One call notes them all. The store in memory cannot count crashes."""
    keys = [bytes([number]) * 17 for number in range(64)]
    repeated = 1 if isinstance(store.inbox, MemoryInbox) else 2

    assert await store.inbox.note_trials(keys) == [1] * 64
    assert await store.inbox.note_trials(keys[:2]) == [repeated] * 2
    for key in keys[1:]:
        store.inbox.forget_trial(key)

    assert await store.inbox.note_trials(keys[1:]) == [1] * 63
