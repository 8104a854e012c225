"""Retained keys: their newest messages outlive the inbox, on every store."""

from bridge.core.position import Position
from bridge.core.replay import plan_replay
from bridge.inbox.contract import REFUSED, Retention
from tests.conftest import eventually
from tests.contract.inbox.conftest import StoreUnderTest

LIMITS = Retention(max_messages=100, max_age_s=1000, dedupe_s=60, max_retained=2)


async def append(
    store: StoreUnderTest,
    data: bytes,
    key: str | None = None,
    *,
    message_id: str | None = None,
    retain: bool = False,
    clear: bool = False,
    deadline_s: float | None = None,
) -> int | None:
    """Append one message for ann, and return its offset."""
    message = store.message(
        "ann",
        data,
        key=key,
        message_id=message_id,
        retain=retain,
        clear=clear,
        deadline_s=deadline_s,
    )
    return (await store.inbox.append([message]))[0]


async def test_the_newest_message_of_a_retained_key_is_found(
    store: StoreUnderTest,
) -> None:
    """The key is retained, so a newer message of it needs no header."""
    await append(store, b"plain")
    await append(store, b"1", "a", retain=True)
    await append(store, b"2", "b")
    await append(store, b"3", "a")
    await append(store, b"4", "c", retain=True)

    assert await store.retained("ann") == [(4, b"3"), (5, b"4")]
    assert await store.retained("ann", after=4) == [(5, b"4")]
    assert await store.retained("ann", upto=4) == [(4, b"3")]
    assert await store.retained("bob") == []
    assert (await store.inbox.state("ann")).retained == 2
    assert len(await store.read_all("ann")) == 4


async def test_a_cleared_key_is_not_retained_any_more(store: StoreUnderTest) -> None:
    """The message that clears it is stored like any other; the key can be retained again."""
    await append(store, b"1", "a", retain=True)
    await append(store, b"done", "a", clear=True)
    await append(store, b"none", "b", clear=True)

    assert await store.retained("ann") == []
    assert [each.offset for each in await store.read_all("ann")] == [2, 3]
    await append(store, b"plain", "a")
    assert await store.retained("ann") == []
    await append(store, b"again", "a", retain=True)
    assert await store.retained("ann") == [(5, b"again")]


async def test_one_batch_retains_replaces_and_clears_in_order(
    store: StoreUnderTest,
) -> None:
    """As if each message were a batch of its own."""
    batch = [
        store.message("ann", b"1", key="a", retain=True),
        store.message("ann", b"2", key="b", retain=True),
        store.message("ann", b"3", key="a", clear=True),
        store.message("ann", b"4", key="b"),
        store.message("ann", b"5", key="c", retain=True),
        store.message("ann", b"6", key="c", clear=True),
        store.message("ann", b"7", key="c", retain=True),
    ]

    assert await store.inbox.append(batch) == [1, 2, 3, 4, 5, 6, 7]

    assert await store.retained("ann") == [(4, b"4"), (7, b"7")]


async def test_it_outlives_the_limit_and_the_age(store: StoreUnderTest) -> None:
    """The inbox counts it as deleted, as every other message."""
    await append(store, b"1", "a", retain=True)
    for number in range(120):
        await append(store, b"%d" % number, f"key {number}")
    await store.inbox.sweep()

    assert await store.retained("ann") == [(1, b"1")]
    state = await store.inbox.state("ann")
    assert (state.first, state.last, state.holes) == (22, 121, 0)
    assert [each.offset for each in await store.read_all("ann")][:2] == [22, 23]
    assert len(await store.read_all("ann")) == 100
    assert len(await store.inbox.admin.messages("ann", limit=200)) == 100

    store.advance(2000)
    for _ in range(2):
        await store.inbox.sweep()
        state = await store.inbox.state("ann")
        assert (state.first, state.last, state.holes) == (122, 121, 0)
        assert await store.retained("ann") == [(1, b"1")]
        assert await store.read_all("ann") == []
    # A newer message of the key is in the inbox again.
    await append(store, b"2", "a")
    assert await store.retained("ann") == [(122, b"2")]
    assert [each.offset for each in await store.read_all("ann")] == [122]
    state = await store.inbox.state("ann")
    assert (state.first, state.last, state.holes) == (122, 122, 0)


async def test_a_retained_message_that_was_deleted_is_replaced(
    store: StoreUnderTest,
) -> None:
    """Its place in the inbox is free already: the limit counts what is in the inbox."""
    await append(store, b"1", "a", retain=True)
    for number in range(150):
        await append(store, b"%d" % number)
    for number in range(3):
        await append(store, b"a%d" % number, "a")
        await append(store, b"b%d" % number)

    state = await store.inbox.state("ann")
    assert state.last - state.first + 1 - state.holes == 100
    assert len(await store.read_all("ann")) == 100
    assert await store.retained("ann") == [(156, b"a2")]


async def test_it_has_a_delivered_mark_like_all_others(store: StoreUnderTest) -> None:
    """A window that has it is not told that it has missed it."""
    await append(store, b"1", "a", retain=True)
    await append(store, b"2")
    store.inbox.mark_delivered("ann", 2)

    state = await store.inbox.state("ann")

    assert plan_replay(None, state).after == 2
    assert plan_replay(Position(state.epoch, 0), state).is_complete
    assert await store.retained("ann", upto=2) == [(1, b"1")]


async def test_it_expires(store: StoreUnderTest) -> None:
    """From the deadline on it is not found, and a sweep makes room for another key."""
    store.inbox.retention = LIMITS
    deadline_s = store.clock.now_s + 10
    await append(store, b"1", "a", retain=True, deadline_s=deadline_s)
    await append(store, b"2", "b", retain=True)
    assert len(await store.retained("ann")) == 2
    store.advance(20)

    assert await store.retained("ann") == [(2, b"2")]
    await store.inbox.sweep()
    assert (await store.inbox.state("ann")).retained == 1
    assert await append(store, b"3", "c", retain=True) == 3
    assert len(await store.read_all("ann")) == 2


async def test_it_expires_after_it_was_deleted_from_the_inbox(
    store: StoreUnderTest,
) -> None:
    """Nothing is left of it, and the user can be forgotten."""
    deadline_s = store.clock.now_s + 1500
    await append(store, b"1", "a", retain=True, deadline_s=deadline_s)
    store.advance(1200)
    await store.inbox.sweep()
    assert await store.retained("ann") == [(1, b"1")]
    store.advance(1200)
    await store.inbox.sweep()
    assert await store.retained("ann") == []
    # SQLite indexes the ids of messages first, in a round that is due once an hour.
    store.advance(4000)
    await store.inbox.sweep()
    await store.inbox.sweep()

    state = await store.inbox.state("ann")
    assert (state.last, state.retained) == (state.forgotten, 0)
    assert state.forgotten > 0


async def test_one_key_too_many_is_refused(store: StoreUnderTest) -> None:
    """Nothing of that message is stored, so it can be published again with its id."""
    store.inbox.retention = LIMITS
    await store.inbox.follow("ann")
    batch = [
        store.message("ann", b"1", key="a", retain=True),
        store.message("ann", b"2", key="b", retain=True),
        store.message("ann", b"3", key="c", retain=True, message_id="x"),
        store.message("ann", b"4", key="a", retain=True),
        store.message("bob", b"5", key="c", retain=True),
        store.message("ann", b"6", key="c"),
    ]

    assert await store.inbox.append(batch) == [1, 2, REFUSED, 3, 1, 4]

    assert await store.retained("ann") == [(2, b"2"), (3, b"4")]
    await eventually(lambda: len(store.fed) == 4)
    assert [each.offset for each in store.fed] == [1, 2, 3, 4]
    await append(store, b"7", "b", clear=True)
    assert await append(store, b"3", "c", retain=True, message_id="x") == 6
    assert await store.retained("ann") == [(3, b"4"), (6, b"3")]


async def test_a_lower_limit_keeps_what_is_retained(store: StoreUnderTest) -> None:
    """Keys that are retained already can still be replaced."""
    for key in "abc":
        await append(store, key.encode(), key, retain=True)
    store.inbox.retention = LIMITS

    assert await append(store, b"new", "a", retain=True) == 4
    assert await append(store, b"d", "d", retain=True) == REFUSED

    assert len(await store.retained("ann")) == 3


async def test_a_duplicate_changes_nothing(store: StoreUnderTest) -> None:
    """A producer that publishes again must not bring back what was cleared."""
    await append(store, b"1", "a", retain=True, message_id="1")
    await append(store, b"2", "a", clear=True, message_id="2")

    assert await append(store, b"1", "a", retain=True, message_id="1") is None
    assert await store.retained("ann") == []
    await append(store, b"3", "a", retain=True)
    assert await append(store, b"2", "a", clear=True, message_id="2") is None
    assert await store.retained("ann") == [(3, b"3")]


async def test_they_are_read_in_pieces(store: StoreUnderTest) -> None:
    """Each piece has at least one message, however large."""
    for key in "abc":
        await append(store, key.encode() * 10, key, retain=True)

    found = []
    after = 0
    while piece := await store.retained("ann", after=after, max_bytes=20):
        found.append([offset for offset, _ in piece])
        after = piece[-1][0]

    assert found == [[1, 2], [3]]
    assert len(await store.retained("ann", max_bytes=1)) == 1


async def test_a_user_with_a_retained_key_is_not_forgotten(
    store: StoreUnderTest,
) -> None:
    """However long nothing else comes."""
    await append(store, b"1", "a", retain=True)
    for _ in range(3):
        store.advance(5000)
        await store.inbox.sweep()

    state = await store.inbox.state("ann")
    assert (state.last, state.forgotten) == (1, 0)
    assert await store.retained("ann") == [(1, b"1")]
