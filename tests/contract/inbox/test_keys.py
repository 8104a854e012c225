"""Messages with a key: the newest one replaces the older ones, on every store."""

import pytest

from bridge.core.message import Stored
from bridge.core.message_options import MessageOptions
from bridge.core.position import Position
from bridge.core.replay import plan_replay
from bridge.enums import SyncReason
from tests.conftest import eventually
from tests.contract.inbox.conftest import StoreUnderTest


def pairs(found: list[Stored]) -> list[tuple[int, bytes]]:
    """Return offset and data of each."""
    return [(each.offset, each.message.data) for each in found]


async def append(
    store: StoreUnderTest, *messages: tuple[bytes, str | None], user: str = "ann"
) -> list[int | None]:
    """Append messages of one user as one batch: data and key of each."""
    batch = [store.message(user, data, key=key) for data, key in messages]
    return list(await store.inbox.append(batch))


async def test_a_newer_message_replaces_the_one_with_its_key(
    store: StoreUnderTest,
) -> None:
    """The order of the others and all positions stay as they are."""
    await append(store, (b"plain", None), (b"10 %", "job"), (b"other", "b"))
    await append(store, (b"20 %", "job"), (b"plain 2", None))

    found = await store.read_all("ann")

    assert pairs(found) == [
        *((1, b"plain"), (3, b"other"), (4, b"20 %"), (5, b"plain 2"))
    ]
    assert pairs(await store.read_all("ann", after=3)) == [
        (4, b"20 %"),
        (5, b"plain 2"),
    ]


async def test_two_messages_of_one_key_in_one_batch(store: StoreUnderTest) -> None:
    """Each gets an offset and goes to the live feed; the newest one is stored."""
    await store.inbox.follow("ann")

    offsets = await append(store, (b"1", "k"), (b"2", "k"), (b"3", None), (b"4", "k"))

    assert offsets == [1, 2, 3, 4]
    assert pairs(await store.read_all("ann")) == [(3, b"3"), (4, b"4")]
    await eventually(lambda: len(store.fed) == 4)
    assert pairs(store.fed) == [(1, b"1"), (2, b"2"), (3, b"3"), (4, b"4")]


async def test_the_live_feed_brings_the_key_and_the_interval(
    store: StoreUnderTest,
) -> None:
    """Rooms hold back by them, also on another bridge than the one that stored it."""
    await store.inbox.follow("ann")
    message = store.message("ann", b"1", key="k")
    message.options = MessageOptions(key="k", throttle_s=0.25)
    await store.inbox.append([message, store.message("ann", b"2", key="k")])

    await eventually(lambda: len(store.fed) == 2)
    assert [each.message.options for each in store.fed] == [
        *(MessageOptions(key="k", throttle_s=0.25), MessageOptions(key="k"))
    ]


async def test_a_key_belongs_to_one_user_and_one_event(store: StoreUnderTest) -> None:
    """Two events with the same key are two values."""
    other = store.message("ann", b"other event", key="k")
    other.event = "other"
    await store.inbox.append([store.message("ann", b"1", key="k"), other])
    await append(store, (b"bob", "k"), user="bob")

    assert [data for _, data in pairs(await store.read_all("ann"))] == [
        b"1",
        b"other event",
    ]
    assert pairs(await store.read_all("bob")) == [(1, b"bob")]


async def test_a_hole_is_not_missed(store: StoreUnderTest) -> None:
    """A page that had an older message of the key has everything."""
    for number in range(50):
        await append(store, (b"%d" % number, "k"))

    state = await store.inbox.state("ann")
    plans = [plan_replay(Position(state.epoch, at), state) for at in range(51)]

    assert (state.first, state.last, state.holes) == (1, 50, 49)
    assert all(plan.missed == 0 and plan.is_complete for plan in plans)
    page = await store.inbox.read("ann", after=7, max_messages=5, max_bytes=1000)
    assert (pairs(list(page.messages)), page.next_after) == ([(50, b"49")], 50)
    assert (page.gone, page.expired, page.last) == (0, 0, 50)


async def test_replaced_messages_do_not_count_for_the_limit(
    store: StoreUnderTest,
) -> None:
    """An inbox of 100 messages is not filled by the progress of one job."""
    await append(store, (b"plain", None))
    for number in range(300):
        await append(store, (b"%d" % number, "k"))

    assert pairs(await store.read_all("ann")) == [(1, b"plain"), (301, b"299")]


async def test_what_is_over_the_limit_is_missed(store: StoreUnderTest) -> None:
    """How much is unknown where replaced messages are among it."""
    await append(store, (b"dense", None))
    await append(store, (b"old", "k"), (b"new", "k"))
    for number in range(100):
        await append(store, (b"%d" % number, f"key {number}"))
    await store.inbox.sweep()

    state = await store.inbox.state("ann")

    assert (state.first, state.last, state.holes) == (4, 103, 0)
    assert len(await store.read_all("ann")) == 100
    plan = plan_replay(Position(state.epoch, 1), state)
    assert (plan.missed, plan.reason, plan.after) == (None, SyncReason.LIMIT, 3)
    assert plan_replay(Position(state.epoch, 3), state).is_complete
    page = await store.inbox.read("ann", after=0, max_messages=5, max_bytes=1000)
    assert (page.gone, page.messages[0].offset) == (None, 4)


async def test_a_repeat_of_an_older_id_replaces_nothing(store: StoreUnderTest) -> None:
    """A producer that publishes again without a confirm must not bring back a value."""
    old = store.message("ann", b"old", key="k", message_id="1")
    await store.inbox.append([old])
    await store.inbox.append([store.message("ann", b"new", key="k", message_id="2")])

    again = store.message("ann", b"old", key="k", message_id="1")
    assert await store.inbox.append([again]) == [None]

    assert pairs(await store.read_all("ann")) == [(2, b"new")]


async def test_messages_with_a_key_expire_and_grow_old(store: StoreUnderTest) -> None:
    """As all others do; what has expired counts as such."""
    deadline_s = store.clock.now_s + 10
    await store.inbox.follow("ann")  # users with windows are not forgotten
    await store.inbox.append(
        [
            store.message("ann", b"short", key="a", deadline_s=deadline_s),
            store.message("ann", b"long", key="b"),
        ]
    )
    store.advance(20)

    page = await store.inbox.read("ann", after=0, max_messages=5, max_bytes=1000)
    assert (pairs(list(page.messages)), page.expired) == ([(2, b"long")], 1)
    assert await store.inbox.count_expired("ann", after=0) == 1

    store.advance(1000)
    await append(store, (b"young", "c"))
    state = await store.inbox.state("ann")
    assert (state.first, state.last) == (3, 3)
    assert state.trimmed_for is SyncReason.EXPIRED
    store.advance(2000)
    await store.inbox.sweep()
    state = await store.inbox.state("ann")
    assert (state.first, state.last, state.holes) == (4, 3, 0)


async def test_the_delivered_mark_covers_replaced_messages(
    store: StoreUnderTest,
) -> None:
    """A new window receives what came after the mark."""
    await append(store, (b"1", "k"), (b"2", "j"))
    store.inbox.mark_delivered("ann", 2)
    await append(store, (b"3", "k"))

    state = await store.inbox.state("ann")
    assert state.delivered == 2
    plan = plan_replay(None, state)
    assert pairs(await store.read_all("ann", after=plan.after)) == [(3, b"3")]
    store.inbox.mark_delivered("ann", 99)
    assert (await store.inbox.state("ann")).delivered == 3


async def test_operators_see_what_is_kept(store: StoreUnderTest) -> None:
    """Newest first, across the first message with a key."""
    await append(store, (b"1", None), (b"2", None))
    await append(store, (b"3", "k"), (b"4", None), (b"5", "k"))
    admin = store.inbox.admin

    found = await admin.messages("ann", limit=10, max_bytes=1000)
    assert [(each.offset, each.data) for each in found] == [
        *((5, b"5"), (4, b"4"), (2, b"2"), (1, b"1"))
    ]
    found = await admin.messages("ann", before=4, limit=1)
    assert [each.offset for each in found] == [2]
    summary = await admin.user("ann")
    assert summary is not None
    assert (summary.depth, summary.waiting) == (4, 4)


@pytest.mark.parametrize("in_inbox", [True, False])
async def test_an_id_of_a_message_with_a_key_is_found(
    store: StoreUnderTest,
    in_inbox: bool,
) -> None:
    """Also after it was replaced."""
    message = store.message("ann", b"1", key="k", message_id="m")
    await store.inbox.append([message])
    if not in_inbox:
        await append(store, (b"2", "k"))

    for user in (None, "ann"):
        (match,) = (await store.inbox.admin.find("m", user=user)).matches
        assert (match.user, len(match.kept)) == ("ann", int(in_inbox))
        assert match.seen_s == store.clock.now_s
