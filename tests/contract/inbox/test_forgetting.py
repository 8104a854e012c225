"""What every store may forget, and that a reader is told of all that it does not get."""

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.enums import SyncReason
from bridge.inbox.contract import Retention
from tests.contract.inbox.conftest import STORES, Shelf

# --- forgetting


async def test_over_the_limit_the_oldest_go_and_it_is_said_why(shelf: Shelf) -> None:
    """100 a user here; the others keep theirs."""
    await shelf.append("bob", b"kept")
    await shelf.append("alice", *(b"%d" % number for number in range(130)))

    state = await shelf.inbox.state("alice")
    page = await shelf.inbox.read("alice", after=10, max_messages=5, max_bytes=9999)

    assert (state.first, state.last) == (31, 130)
    assert state.trimmed_for is SyncReason.LIMIT
    assert page.gone == 20
    assert page.messages[0].offset == 31
    (kept,) = await shelf.read_all("bob")
    assert kept.message.data == b"kept"


async def test_what_is_too_old_goes_and_it_is_said_why(shelf: Shelf) -> None:
    """Offsets go on from where they were."""
    await shelf.append("alice", b"1", b"2")
    shelf.later(1001)
    await shelf.append("alice", b"3")

    state = await shelf.inbox.state("alice")

    assert (state.first, state.last) == (3, 3)
    assert state.trimmed_for is SyncReason.EXPIRED


async def test_sweeping_forgets_what_nobody_asks_about(shelf: Shelf) -> None:
    """Users who never come back must not fill the store."""
    await shelf.append("alice", b"1")
    shelf.later(1001)
    await shelf.inbox.sweep()

    page = await shelf.inbox.read("alice", after=0, max_messages=5, max_bytes=100)

    assert (list(page.messages), page.gone, page.next_after) == ([], 1, 1)
    assert (await shelf.inbox.state("alice")).first == 2


async def test_a_message_past_its_deadline_is_left_out_and_counted(
    shelf: Shelf,
) -> None:
    """It is not delivered any more, but its offset stays: no hole in the count."""
    deadline_s = shelf.now_s[0] + 5
    await shelf.inbox.append(
        [
            shelf.message("alice", b"1"),
            shelf.message("alice", b"2", deadline_s=deadline_s),
            shelf.message("alice", b"3"),
        ]
    )
    assert len(await shelf.read_all("alice")) == 3
    shelf.later(5)

    page = await shelf.inbox.read("alice", after=0, max_messages=5, max_bytes=100)

    assert [stored.offset for stored in page.messages] == [1, 3]
    assert (page.expired, page.gone, page.next_after) == (1, 0, 3)


async def test_what_a_reader_will_not_get_for_its_deadline_can_be_counted(
    shelf: Shelf,
) -> None:
    """A window that comes back is told at once whether it misses something."""
    await shelf.inbox.append(
        [
            shelf.message(
                "alice", b"1", deadline_s=shelf.now_s[0] + 5 if number % 2 else None
            )
            for number in range(1, 9)
        ]
    )
    counts = []
    for wait_s in (0, 10):
        shelf.later(wait_s)
        counts.append(
            [
                await shelf.inbox.count_expired("alice", after=after)
                for after in (0, 1, 6, 8, 99)
            ]
        )

    assert counts == [[0] * 5, [4, 3, 1, 0, 0]]
    assert await shelf.inbox.count_expired("nobody", after=0) == 0


async def test_the_retention_may_change_while_running(shelf: Shelf) -> None:
    """SIGHUP: it counts from the next look on."""
    await shelf.append("alice", *(b"%d" % number for number in range(50)))

    shelf.inbox.retention = Retention(max_messages=10, max_age_s=1000, dedupe_s=60)

    assert (await shelf.inbox.state("alice")).first == 41


# --- a law

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 40)),
        st.tuples(st.just("later"), st.integers(1, 600)),
        st.tuples(st.just("read"), st.integers(1, 20)),
        st.tuples(st.just("sweep"), st.just(0)),
        st.tuples(st.just("limit"), st.integers(1, 60)),
    ),
    max_size=30,
)


@pytest.mark.parametrize("store", STORES)
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(steps=STEPS)
def test_a_reader_accounts_for_every_message(
    store: str, steps: list[tuple[str, int]]
) -> None:
    """Read, expired or gone: together all that was ever stored, in order, each once."""
    now_s = [1000.0]
    with TemporaryDirectory() as folder:
        inbox = STORES[store](
            Retention(max_messages=50, max_age_s=1000, dedupe_s=60),
            now=lambda: now_s[0],
            folder=Path(folder),
        )
        asyncio.run(read_along(Shelf(inbox, now_s), steps))


async def read_along(shelf: Shelf, steps: list[tuple[str, int]]) -> None:
    """Follow `steps` with a reader that goes on from where it was."""
    inbox, now_s = shelf.inbox, shelf.now_s
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
        assert len(offsets) + page.expired + page.gone == page.next_after - after
        accounted += page.next_after - after
        after = page.next_after

    for step, number in steps:
        match step:
            case "append":
                batch = []
                for each in range(stored + 1, stored + number + 1):
                    deadline_s = now_s[0] + 300 if each % 3 == 0 else None
                    batch.append(
                        shelf.message("u", b"%d" % each, deadline_s=deadline_s)
                    )
                await inbox.append(batch)
                stored += number
            case "later":
                shelf.later(number)
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
