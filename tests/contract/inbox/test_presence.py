"""
Presence, on every store: who comes online and who goes offline, each reported once.

What a bridge that ended leaves behind is in test_sqlite_presence.py and
test_redis_presence.py.
"""

import orjson
import pytest

from bridge.core.receipts import WorkerEvent
from tests.conftest import eventually
from tests.contract.inbox.conftest import StoreUnderTest
from tests.contract.inbox.test_receipts import take

# Redis measures it with its own clock, so it is short.
DEBOUNCE_S = 0.05


async def note(
    store: StoreUnderTest, debounce_s: float = DEBOUNCE_S, **windows: int
) -> None:
    """Note windows; the store is available."""
    assert await store.inbox.note_presence(windows, debounce_s=debounce_s) is None


async def reported(
    store: StoreUnderTest, *expected: tuple[str, str]
) -> list[WorkerEvent]:
    """Wait until these users were reported; return the events."""
    found: list[WorkerEvent] = []

    async def is_reported() -> bool:
        store.advance(3)
        await note(store)
        found.extend(await take(store))
        return len(found) >= len(expected)

    await eventually(is_reported)
    assert sorted(changes(found)) == sorted(expected)
    return found


def changes(events: list[WorkerEvent]) -> list[tuple[str, str]]:
    return [(event.user, event.routing_key) for event in events]


async def test_the_first_window_of_a_user_is_reported(store: StoreUnderTest) -> None:
    """With the time, and how many windows there were already."""
    await note(store, ann=2)

    (event,) = await take(store)
    assert event.routing_key == "user.online"
    assert (event.user, event.reply_to) == ("ann", None)
    assert orjson.loads(event.body) == {
        "user": "ann",
        "windows": 2,
        "at": "1970-01-12T13:46:40+00:00",
        "seq": 1_000_000_000,
    }
    await note(store, ann=3)
    await note(store)
    assert await take(store) == []


async def test_a_user_who_stays_away_is_reported_offline_once(
    store: StoreUnderTest,
) -> None:
    """And online once more with the next window."""
    await note(store, ann=1, ben=1)
    await note(store, ann=0)
    await note(store, ann=0)  # a bridge that got no reply repeats it
    await reported(
        store, ("ann", "user.online"), ("ben", "user.online"), ("ann", "user.offline")
    )
    await note(store)
    assert await take(store) == []

    await note(store, ann=1)
    assert changes(await take(store)) == [("ann", "user.online")]


async def test_a_user_who_returns_in_time_is_not_reported(
    store: StoreUnderTest,
) -> None:
    """A reload of the page, or a change of the network."""
    await note(store, ann=1, ben=1)
    await take(store)
    await note(store, ann=0)
    await note(store, ann=1)
    await note(store, ben=0)

    await reported(store, ("ben", "user.offline"))
    await note(store)
    assert await take(store) == []


async def test_a_user_is_not_reported_before_the_debounce_is_over(
    store: StoreUnderTest,
) -> None:
    """A page that reloads slowly is still the same page to a worker."""
    await note(store, ann=1)
    await take(store)
    await note(store, 1000, ann=0)
    store.advance(900)
    await note(store, 1000)
    assert await take(store) == []


async def test_nothing_is_reported_about_users_who_were_never_there(
    store: StoreUnderTest,
) -> None:
    """A window that opened and closed between two calls."""
    await note(store, ann=0, ben=1)
    await note(store, ben=0)
    await reported(store, ("ben", "user.online"), ("ben", "user.offline"))


@pytest.mark.parametrize("jump_s", [-86_400, 86_400])
async def test_seq_grows_whatever_the_clock_does(
    store: StoreUnderTest, jump_s: float
) -> None:
    """And no user goes offline because of a jump."""
    await note(store, ann=1, ben=1)
    events = await take(store)
    store.clock.jump(jump_s)
    await note(store)
    assert await take(store) == []
    for _ in range(5):
        await note(store, ann=0)
        events += await reported(store, ("ann", "user.offline"))
        await note(store, ann=1)
        events += await take(store)

    of_ann = [event for event in events if event.user == "ann"]
    seqs = [orjson.loads(event.body)["seq"] for event in of_ann]
    assert len(of_ann) == 11
    assert seqs == sorted(set(seqs))
    assert len({event.id for event in events}) == len(events)


async def test_users_with_odd_names_are_reported(store: StoreUnderTest) -> None:
    """Spaces, numbers and braces mean something in keys, texts and tags."""
    names = ["a b", " ", "17", "{ann}", "ann\u2028", "ünï 😀", "a" * 255, "0 1 2 ann"]
    await note(store, **dict.fromkeys(names, 1))
    await note(store, **dict.fromkeys(names, 0))
    events = await reported(
        store,
        *((name, "user.online") for name in names),
        *((name, "user.offline") for name in names),
    )
    assert all(len(event.id) < 100 for event in events)


async def test_many_users_at_once(store: StoreUnderTest) -> None:
    """After an outage all pages connect, and after the next one none returns."""
    names = [f"user{number}" for number in range(2500)]
    await note(store, **dict.fromkeys(names, 1))
    assert len(await take(store)) == 2500
    await note(store, **dict.fromkeys(names, 0))
    await reported(store, *((name, "user.offline") for name in names))


async def test_a_full_outbox_drops_the_oldest_events_about_presence(
    store: StoreUnderTest,
) -> None:
    """Nothing else, and none that was published before."""
    names = [f"user{number}" for number in range(300)]
    await note(store, **dict.fromkeys(names[:100], 1))
    await take(store)
    receipt = WorkerEvent("1", "message.delivered", "ann", b"{}", store.clock.now_s)
    await store.inbox.add_event(receipt)
    for start in (100, 200):
        store.advance(1)
        await note(store, **dict.fromkeys(names[start : start + 100], 1))
    assert len(await store.inbox.pending_events(1000)) == 201

    dropped = await store.inbox.drop_presence_events(100)

    # Redis drops the same share of each tag.
    assert 100 <= dropped <= 200
    left = await store.inbox.pending_events(1000)
    assert len(left) == 201 - dropped
    assert await store.inbox.drop_presence_events(1000) == 200 - dropped
    assert [event.id for event in await take(store)] == ["1"]
    assert await store.inbox.drop_presence_events(1) == 0
    assert await store.inbox.events_depth() == (0, None)


async def test_the_oldest_events_about_presence_are_dropped_first(
    store: StoreUnderTest,
) -> None:
    """Of a user, so that a worker has the newest state."""
    for count in (1, 0, 1):
        await note(store, ann=count)
        if not count:
            await eventually(lambda: has_events(store, 2))
    await note(store, ann=0)
    await eventually(lambda: has_events(store, 4))
    assert await store.inbox.drop_presence_events(3) == 3
    assert changes(await take(store)) == [("ann", "user.offline")]


async def has_events(store: StoreUnderTest, count: int) -> bool:
    """Poll, and return whether so many events wait."""
    store.advance(3)
    await note(store)
    return len(await store.inbox.pending_events(10)) == count


async def test_an_event_names_the_message_at_each_repeat(store: StoreUnderTest) -> None:
    """A worker drops repeats by the id."""
    await note(store, ann=1)
    first = await store.inbox.pending_events(10)
    again = await store.inbox.pending_events(10)
    assert [event.id for event in first] == [event.id for event in again]
    assert first[0].body == again[0].body
