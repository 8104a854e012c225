"""Deletion by retention, on every store: a reader learns of everything it does not receive."""

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.core.position import Position
from bridge.core.replay import InboxState, plan_replay
from bridge.enums import SyncReason
from bridge.inbox.contract import Retention
from tests.contract.inbox.conftest import STORES, StoreUnderTest
from tests.contract.inbox.files import Clock

# --- deletion


async def test_messages_over_the_limit_are_deleted_with_a_reason(
    store: StoreUnderTest,
) -> None:
    """The limit is 100 messages per user; other users are not affected."""
    await store.append("bob", b"kept")
    await store.append("alice", *(b"%d" % number for number in range(130)))

    state = await store.inbox.state("alice")
    page = await store.inbox.read("alice", after=10, max_messages=5, max_bytes=9999)

    assert (state.first, state.last) == (31, 130)
    assert state.trimmed_for is SyncReason.LIMIT
    assert page.gone == 20
    assert page.messages[0].offset == 31
    (kept,) = await store.read_all("bob")
    assert kept.message.data == b"kept"


async def test_messages_that_are_too_old_are_deleted_with_a_reason(
    store: StoreUnderTest,
) -> None:
    """Offsets continue from the last one."""
    await store.append("alice", b"1", b"2")
    store.advance(1001)
    await store.append("alice", b"3")

    state = await store.inbox.state("alice")

    assert (state.first, state.last) == (3, 3)
    assert state.trimmed_for is SyncReason.EXPIRED


async def test_a_sweep_deletes_messages_of_inactive_users(
    store: StoreUnderTest,
) -> None:
    """Users who never return must not fill the store."""
    await store.append("alice", b"1")
    store.advance(1001)
    await store.inbox.sweep()

    assert await store.read_all("alice") == []
    assert await store.inbox.admin.users(limit=9) == []


async def test_a_position_of_a_forgotten_user_is_a_reset(store: StoreUnderTest) -> None:
    """Also when the user has new messages: their offsets are above the old ones."""
    await store.append("alice", b"1", b"2", b"3")
    old = await store.inbox.state("alice")
    store.advance(1001)
    await store.inbox.sweep()

    forgotten = await store.inbox.state("alice")
    (offset,) = await store.append("alice", b"4")
    later = await store.inbox.state("alice")

    for state in (forgotten, later):
        assert state.epoch == old.epoch
        for position in range(old.last + 1):
            plan = plan_replay(Position(old.epoch, position), state)
            assert (plan.reason, plan.missed) == (SyncReason.RESET, None)
        new_page = plan_replay(None, state)
        assert (new_page.missed, new_page.is_complete) == (0, False)
    assert offset == forgotten.last + 1 == later.last
    assert plan_replay(Position(old.epoch, forgotten.last), later).is_complete
    assert [each.offset for each in await store.read_all("alice")] == [offset]


async def test_a_user_with_a_window_is_not_forgotten(store: StoreUnderTest) -> None:
    """It stays connected for weeks without a message, and has missed nothing."""
    await store.inbox.follow("alice")
    await store.append("alice", b"1")
    before = await store.inbox.state("alice")
    store.advance(1001)
    await store.inbox.sweep()

    assert (await store.inbox.state("alice")).last == before.last

    store.inbox.unfollow("alice")
    await store.inbox.check()  # Redis has processed the unsubscribe
    await store.inbox.sweep()
    assert (await store.inbox.state("alice")).last > before.last


async def test_a_window_that_connects_during_the_sweep_sees_what_it_did(
    store: StoreUnderTest,
) -> None:
    """It reads the new state, or its user stays, or the store reports a new epoch."""
    reset: list[str] = []
    store.inbox.subscribe(store.fed.extend, reset.extend)
    users = [str(number) for number in range(50)]
    await store.inbox.append([store.message(user, b"1") for user in users])
    store.advance(1001)

    async def connect(user: str) -> InboxState:
        await asyncio.sleep(int(user) / 20_000)
        await store.inbox.follow(user)
        return await store.inbox.state(user)

    sweep = asyncio.create_task(store.inbox.sweep())
    seen = dict(zip(users, await asyncio.gather(*map(connect, users)), strict=True))
    await sweep

    for user in users:
        state = await store.inbox.state(user)
        assert user in reset or state.forgotten == seen[user].forgotten


async def test_a_window_that_waits_for_its_first_message_sees_no_gap(
    store: StoreUnderTest,
) -> None:
    """Others were forgotten meanwhile, so its first offset is above what it was told."""
    user = "0"
    await store.inbox.follow(user)
    after = (await store.inbox.state(user)).last
    # In Redis a user shares the number with some of the others.
    others = [str(number) for number in range(1, 2000)]
    await store.inbox.append([store.message(other, b"1") for other in others])
    store.advance(1001)
    await store.inbox.sweep()

    await store.append(user, b"first")
    page = await store.inbox.read(user, after=after, max_messages=5, max_bytes=99)

    assert [each.message.data for each in page.messages] == [b"first"]
    assert page.gone == 0
    assert page.next_after == page.last == store.fed[-1].offset > 1000


async def test_a_user_whose_ids_are_remembered_is_not_forgotten(
    store: StoreUnderTest,
) -> None:
    """Publishing the message again must stay harmless for the whole window."""
    store.inbox.retention = Retention(100, max_age_s=10, dedupe_s=60)
    for wait_s, offsets in ((0, [1]), (50, [None]), (11, [1025])):
        store.advance(wait_s)
        await store.inbox.sweep()
        message = store.message("alice", b"1", message_id="m")
        assert await store.inbox.append([message]) == offsets


async def test_marks_of_a_forgotten_user_do_no_harm(store: StoreUnderTest) -> None:
    """A window may ack its last message just before it closes."""
    await store.append("alice", b"1")
    store.advance(1001)
    await store.inbox.sweep()
    store.inbox.mark_delivered("alice", 1)
    await store.append("alice", b"2")

    state = await store.inbox.state("alice")

    assert (state.first, state.last, state.delivered) == (1025, 1025, 1024)


async def test_a_message_past_its_deadline_is_skipped_and_counted(
    store: StoreUnderTest,
) -> None:
    """It is no longer delivered, but its offset stays, so there is no gap."""
    deadline_s = store.clock.now_s + 5
    await store.inbox.append(
        [
            store.message("alice", b"1"),
            store.message("alice", b"2", deadline_s=deadline_s),
            store.message("alice", b"3"),
        ]
    )
    assert len(await store.read_all("alice")) == 3
    store.advance(5)

    page = await store.inbox.read("alice", after=0, max_messages=5, max_bytes=100)

    assert [stored.offset for stored in page.messages] == [1, 3]
    assert (page.expired, page.gone, page.next_after) == (1, 0, 3)


async def test_messages_past_their_deadline_can_be_counted(
    store: StoreUnderTest,
) -> None:
    """A window that reconnects learns at once whether it has missed something."""
    await store.inbox.append(
        [
            store.message(
                "alice", b"1", deadline_s=store.clock.now_s + 5 if number % 2 else None
            )
            for number in range(1, 9)
        ]
    )
    counts = []
    for wait_s in (0, 10):
        store.advance(wait_s)
        counts.append(
            [
                await store.inbox.count_expired("alice", after=after)
                for after in (0, 1, 6, 8, 99)
            ]
        )

    assert counts == [[0] * 5, [4, 3, 1, 0, 0]]
    assert await store.inbox.count_expired("unknown", after=0) == 0


async def test_the_retention_can_change_while_the_store_is_open(
    store: StoreUnderTest,
) -> None:
    """A reload (SIGHUP) takes effect with the next read."""
    await store.append("alice", *(b"%d" % number for number in range(50)))

    store.inbox.retention = Retention(max_messages=10, max_age_s=1000, dedupe_s=60)

    assert (await store.inbox.state("alice")).first == 41


# --- a property

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 40)),
        st.tuples(st.just("advance"), st.integers(1, 600)),
        st.tuples(st.just("read"), st.integers(1, 20)),
        st.tuples(st.just("sweep"), st.just(0)),
        st.tuples(st.just("limit"), st.integers(1, 60)),
    ),
    max_size=30,
)


@pytest.mark.parametrize("name", STORES)
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(steps=STEPS)
def test_a_reader_accounts_for_every_message(
    name: str, steps: list[tuple[str, int]]
) -> None:
    """Read, expired and deleted messages together are all messages, in order, each once."""
    clock = Clock()
    with TemporaryDirectory() as folder:
        inbox = STORES[name](
            Retention(max_messages=50, max_age_s=1000, dedupe_s=60),
            clock=clock.steady,
            folder=Path(folder),
        )
        asyncio.run(follow_steps(StoreUnderTest(inbox, clock), steps))


async def follow_steps(store: StoreUnderTest, steps: list[tuple[str, int]]) -> None:
    """Follow `steps` with a reader that continues where it stopped."""
    inbox, clock = store.inbox, store.clock
    await inbox.open()
    stored = after = accounted = 0

    async def read(count: int) -> None:
        nonlocal after, accounted
        page = await inbox.read(
            "u", after=after, max_messages=count, max_bytes=1_000_000
        )
        offsets = [each.offset for each in page.messages]
        assert offsets == sorted(set(offsets))
        assert all(offset > after for offset in offsets)
        assert [each.message.data for each in page.messages] == [
            b"%d" % offset for offset in offsets
        ]
        assert page.last == stored
        assert page.gone is not None
        assert len(offsets) + page.expired + page.gone == page.next_after - after
        accounted += page.next_after - after
        after = page.next_after

    for step, number in steps:
        match step:
            case "append":
                batch = []
                for each in range(stored + 1, stored + number + 1):
                    deadline_s = clock.now_s + 300 if each % 3 == 0 else None
                    batch.append(
                        store.message("u", b"%d" % each, deadline_s=deadline_s)
                    )
                await inbox.append(batch)
                stored += number
            case "advance":
                store.advance(number)
            case "read":
                await read(number)
            case "sweep":
                await inbox.sweep()
            case _:
                inbox.retention = Retention(number, max_age_s=1000, dedupe_s=60)
        state = await inbox.state("u")
        assert state.last == stored
        assert 1 <= state.first <= stored + 1
        assert (state.trimmed_for is None) == (state.first == 1)
    while after < stored:
        await read(10)
    assert accounted == stored
    await inbox.close()
