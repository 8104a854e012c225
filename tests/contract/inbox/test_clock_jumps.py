"""Jumps of the wall clock, on every store: age counts only if real time has passed."""

from pathlib import Path

import pytest

from bridge.inbox.contract import Retention
from tests.contract.inbox.conftest import STORES, StoreUnderTest
from tests.contract.inbox.files import Clock

EIGHT_DAYS_S = 8 * 86_400.0
RETENTION = Retention(max_messages=100, max_age_s=1000, dedupe_s=60)


async def append_three(store: StoreUnderTest) -> None:
    """Append a plain message, one with an id, and one with a deadline in ten minutes."""
    deadline_s = store.clock.now_s + 600
    await store.inbox.append(
        [
            store.message("alice", b"1"),
            store.message("alice", b"2", message_id="id"),
            store.message("alice", b"3", deadline_s=deadline_s),
        ]
    )


async def contents(store: StoreUnderTest) -> list[bytes]:
    """Read what a window of alice would receive."""
    return [each.message.data for each in await store.read_all("alice")]


async def test_a_jump_that_ends_deletes_nothing(store: StoreUnderTest) -> None:
    """The clock is eight days ahead for 75 s, while messages are stored and swept."""
    await append_three(store)
    store.clock.jump(EIGHT_DAYS_S)
    await store.append("alice", b"4")
    await store.inbox.sweep()

    during = await contents(store)
    store.advance(75)
    store.clock.jump(-EIGHT_DAYS_S)
    await store.append("alice", b"5")
    await store.inbox.sweep()

    assert during == [b"1", b"2", b"3", b"4"]
    assert await contents(store) == [b"1", b"2", b"3", b"4", b"5"]
    assert (await store.inbox.state("alice")).first == 1
    assert await store.inbox.count_expired("alice", after=0) == 0


async def test_a_jump_back_deletes_nothing(store: StoreUnderTest) -> None:
    """Messages of the time in between look eight days old when the clock is right again."""
    store.clock.jump(-EIGHT_DAYS_S)
    await append_three(store)
    store.advance(75)
    store.clock.jump(EIGHT_DAYS_S)
    await store.inbox.sweep()

    assert await contents(store) == [b"1", b"2", b"3"]


async def test_an_id_is_remembered_through_a_jump(store: StoreUnderTest) -> None:
    """Otherwise a redelivered message would be stored twice."""
    await append_three(store)
    store.clock.jump(EIGHT_DAYS_S)
    await store.inbox.sweep()

    again = [store.message("alice", b"2", message_id="id")]

    assert await store.inbox.append(again) == [None]


async def test_messages_expire_in_real_time_after_a_jump_that_stays(
    store: StoreUnderTest,
) -> None:
    """The clock was wrong before and is right now: retention and deadlines go on."""
    await append_three(store)
    store.clock.jump(EIGHT_DAYS_S)
    await store.append("alice", b"4")
    store.advance(601)
    assert await contents(store) == [b"1", b"2", b"4"]  # the deadline of 3 has passed
    store.advance(400)
    await store.inbox.sweep()

    assert await contents(store) == []
    assert await store.inbox.admin.user("alice") is None


@pytest.mark.parametrize("name", [name for name in STORES if name != "memory"])
async def test_a_restart_during_a_jump_deletes_nothing(
    name: str, tmp_path: Path
) -> None:
    """The store holds the time of the last sweep, so the new process notices the jump."""
    clock = Clock()

    async def opened() -> StoreUnderTest:
        inbox = STORES[name](RETENTION, clock=clock.steady, folder=tmp_path)
        await inbox.open()
        return StoreUnderTest(inbox, clock)

    store = await opened()
    await append_three(store)
    await store.inbox.sweep()
    await store.inbox.close()
    clock.jump(EIGHT_DAYS_S)
    store = await opened()
    await store.inbox.sweep()

    during = await contents(store)
    await store.inbox.close()
    clock.jump(-EIGHT_DAYS_S)
    store = await opened()
    await store.inbox.sweep()

    assert during == [b"1", b"2", b"3"]
    assert await contents(store) == [b"1", b"2", b"3"]
    await store.inbox.close()


@pytest.mark.parametrize("name", [name for name in STORES if name != "memory"])
async def test_messages_expire_after_a_long_stop_once_they_are_old_in_real_time(
    name: str, tmp_path: Path
) -> None:
    """A bridge that was stopped for days deletes later than it could, but does delete."""
    clock = Clock()
    inbox = STORES[name](RETENTION, clock=clock.steady, folder=tmp_path)
    await inbox.open()
    await append_three(StoreUnderTest(inbox, clock))
    await inbox.sweep()
    await inbox.close()
    clock.now_s += EIGHT_DAYS_S
    inbox = STORES[name](RETENTION, clock=clock.steady, folder=tmp_path)
    await inbox.open()
    store = StoreUnderTest(inbox, clock)

    before = await contents(store)
    store.advance(1001)
    await inbox.sweep()

    assert before == [b"1", b"2", b"3"]
    assert await contents(store) == []
    await inbox.close()
