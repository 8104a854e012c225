"""What a SQLite inbox does beyond the contract: it stays, and it costs little."""

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from bridge.core.message import Message, Stored
from bridge.inbox.sqlite.store import SqliteInbox
from tests.conftest import eventually
from tests.contract.inbox.files import Clock, Opened, message, read_all, remove, rows


async def block_writer(inbox: SqliteInbox) -> tuple[threading.Event, list[str]]:
    """Stop the writer within a transaction; return what lets it go on, and its statements."""
    stopped = threading.Event()
    go_on = threading.Event()
    statements: list[str] = []

    def wait(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE bridge SET value = value")  # takes the lock
        stopped.set()
        go_on.wait(10)
        connection.set_trace_callback(statements.append)

    inbox._writer_thread.submit(wait)
    await eventually(stopped.is_set)
    return go_on, statements


# --- it stays


async def test_everything_is_there_after_a_restart(opened: Opened) -> None:
    """Messages with all that they hold, marks, ids, and the epoch that positions name."""
    whole = Message("alice", "order", b'{"n":1}', 999_999.5, "m-1", 1_000_500.25)
    async with opened() as inbox:
        epoch = inbox.epoch
        assert await inbox.append([whole, message("alice", b"2")]) == [1, 2]
        inbox.mark_delivered("alice", 1)

    async with opened() as inbox:
        state = await inbox.state("alice")
        assert (state.epoch, state.first, state.last, state.delivered) == (
            epoch,
            1,
            2,
            1,
        )
        assert (await read_all(inbox, "alice"))[0] == Stored(whole, 1)
        assert await inbox.append([whole, message("alice", b"3")]) == [None, 3]


async def test_a_new_file_begins_a_new_epoch(opened: Opened, path: Path) -> None:
    """Positions of the old one are recognised instead of pointing somewhere."""
    async with opened() as inbox:
        first = inbox.epoch
    remove(path)
    async with opened() as inbox:
        assert inbox.epoch != first


async def test_a_mark_is_written_without_waiting_for_the_end(
    opened: Opened, path: Path
) -> None:
    """Within about a second, so that a crash repeats no more than that."""
    async with opened() as inbox:
        await inbox.append([message("alice", b"1")])
        inbox.mark_delivered("alice", 1)

        await eventually(
            lambda: rows(path, "SELECT marks FROM marks") == [(b"[[1,1]]",)]
        )
        assert (await inbox.state("alice")).delivered == 1


async def test_trials_are_remembered_until_they_are_forgotten(opened: Opened) -> None:
    """What the process died of must be known to the next one."""
    async with opened() as inbox:
        assert await inbox.note_trial(b"killer") == 1
        assert await inbox.note_trial(b"innocent") == 1
        inbox.forget_trial(b"innocent")
    async with opened() as inbox:
        assert await inbox.note_trial(b"killer") == 2
        assert await inbox.note_trial(b"innocent") == 1
        inbox.forget_trial(b"killer")
        assert await inbox.note_trial(b"killer") == 1


async def test_a_life_of_many_restarts_and_rounds_of_indexing_keeps_it_all(
    opened: Opened,
) -> None:
    """The tail is read back wherever a round was, and ids with it."""
    for life in range(8):
        async with opened(round_entries=10) as inbox:
            for number in range(3):
                batch = [
                    message(user, f"{life}-{number}-{n}".encode(), f"{life}-{number}")
                    for n, user in enumerate("abcdefgh")
                ]
                offset = life * 3 + number + 1
                assert await inbox.append(batch) == [offset] * 8
                assert await inbox.append(batch) == [None] * 8

    async with opened() as inbox:
        for user in "abcdefgh":
            found = await read_all(inbox, user)
            assert [stored.offset for stored in found] == list(range(1, 25))
        again = message("a", b"again", "0-0")
        assert await inbox.append([again]) == [None]


async def test_only_its_owner_can_read_the_file(opened: Opened, path: Path) -> None:
    """Other users of the machine have no business in messages."""
    async with opened() as inbox:
        await inbox.append([message("alice", b"1")])
        modes = {each.stat().st_mode & 0o777 for each in path.parent.iterdir()}

    assert modes == {0o600}


# --- group commit, and reading beside it


async def test_appends_that_wait_together_are_one_commit(opened: Opened) -> None:
    """Waiting for the disk is paid for once."""
    async with opened() as inbox:
        go_on, statements = await block_writer(inbox)
        async with asyncio.TaskGroup() as tasks:
            appending = [
                tasks.create_task(inbox.append([message("alice", b"%d" % number)]))
                for number in range(10)
            ]
            waiting = inbox._writer_thread._queue
            assert waiting is not None
            await eventually(lambda: waiting.qsize() == 10)
            go_on.set()

    assert [task.result() for task in appending] == [[n] for n in range(1, 11)]
    assert [s for s in statements if s.startswith(("BEGIN", "COMMIT"))] == [
        "COMMIT",  # of what stopped the writer
        "BEGIN IMMEDIATE",
        "COMMIT",
    ]


async def test_reading_does_not_wait_for_a_commit(opened: Opened) -> None:
    """A window that connects has nothing to do with how busy the writer is."""
    async with opened() as inbox:
        await inbox.append([message("alice", b"1")])
        go_on, _ = await block_writer(inbox)
        appending = asyncio.ensure_future(inbox.append([message("alice", b"2")]))

        state = await inbox.state("alice")
        found = await read_all(inbox, "alice")

        assert (state.last, len(found), appending.done()) == (1, 1, False)
        go_on.set()
        assert await appending == [2]


async def test_the_feed_is_in_order_over_many_appends(opened: Opened) -> None:
    """And comes before the append returns, whoever waits for it."""
    fed: list[int] = []
    async with opened() as inbox:
        inbox.subscribe(lambda batch: fed.extend(stored.offset for stored in batch))
        await inbox.follow("alice")

        async def append(number: int) -> None:
            [offset] = await inbox.append([message("alice", b"%d" % number)])
            assert offset in fed

        async with asyncio.TaskGroup() as tasks:
            for number in range(50):
                tasks.create_task(append(number))

    assert fed == list(range(1, 51))


async def test_an_append_that_is_cancelled_leaves_the_store_as_good(
    opened: Opened,
) -> None:
    """Before it was begun it is taken back; after that it is stored and fed."""
    fed: list[bytes] = []
    async with opened() as inbox:
        inbox.subscribe(lambda batch: fed.extend(each.message.data for each in batch))
        await inbox.follow("alice")
        go_on, _ = await block_writer(inbox)
        waiting = asyncio.ensure_future(inbox.append([message("alice", b"waited")]))
        await asyncio.sleep(0)
        waiting.cancel()
        go_on.set()
        [first] = await inbox.append([message("alice", b"stored")])
        begun = asyncio.ensure_future(inbox.append([message("alice", b"begun")]))
        await asyncio.sleep(0)
        await eventually(lambda: inbox._writer_thread.busy_s or begun.done())
        begun.cancel()
        await inbox.append([message("alice", b"last")])
        found = [each.message.data for each in await read_all(inbox, "alice")]

    assert first == 1
    assert fed == found
    assert [found[0], found[-1]] == [b"stored", b"last"]


async def test_one_poor_message_is_no_fault_of_the_store(opened: Opened) -> None:
    """The pump splits for it; neighbours in the same commit do not even notice."""
    async with opened() as inbox:
        go_on, _ = await block_writer(inbox)
        poor = [message("alice", b"1"), Message("alice", "\ud800", b"2", 0.0)]
        good = asyncio.ensure_future(inbox.append([message("alice", b"3")]))
        bad = asyncio.ensure_future(inbox.append(poor))
        more = asyncio.ensure_future(inbox.append([message("bob", b"4")]))
        await asyncio.sleep(0)
        go_on.set()

        assert await good == [1]
        with pytest.raises(UnicodeEncodeError):
            await bad
        assert await more == [1]
        assert inbox.problem is None
        assert [each.offset for each in await read_all(inbox, "alice")] == [1]
        assert await inbox.append([message("alice", b"5")]) == [2]


async def test_a_listener_that_fails_stops_nothing(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    """What was stored was stored: telling the pump otherwise would store it again."""

    def fail(_: object) -> None:
        message = "a bug"
        raise ValueError(message)

    async with opened() as inbox:
        inbox.subscribe(fail)
        await inbox.follow("alice")
        assert await inbox.append([message("alice", b"1")]) == [1]
        assert await inbox.append([message("alice", b"2")]) == [2]

    assert "a bug" in caplog.text


# --- forgetting, in the file too


async def test_the_file_holds_little_more_than_the_limit(
    opened: Opened, path: Path, clock: Clock
) -> None:
    """Trimming keeps up with appending, in pieces."""
    async with opened(round_entries=10) as inbox:
        for number in range(100):
            clock.now_s += 1
            batch = [message("alice", b"%d" % (number * 5 + n)) for n in range(5)]
            await inbox.append(batch)
        state = await inbox.state("alice")

    [(count,)] = rows(path, "SELECT count(*) FROM messages")
    assert (state.first, state.last) == (401, 500)
    assert 100 <= count < 140


async def test_sweeping_deletes_messages_ids_and_trials_in_pieces(
    opened: Opened, path: Path, clock: Clock
) -> None:
    """All tables, for users that nobody asks about, more than one piece of each."""
    async with opened(round_entries=10) as inbox:
        for number in range(30):
            await inbox.append(
                [
                    message(f"user-{n}", b"1", f"{number}-{n}")
                    for n in range(number * 100, number * 100 + 100)
                ]
            )
        await inbox.note_trial(b"old")
        clock.now_s += 2000
        late = [
            Message(f"late-{n}", "message", b"2", clock.now_s, str(n))
            for n in range(40)
        ]
        await inbox.append(late)
        await inbox.append([message("x", b"3")] * 200)  # so that all is indexed
        await inbox.sweep()

    [(kept, placed)] = rows(
        path,
        "SELECT (SELECT count(*) FROM messages WHERE data = x'31'),"
        " (SELECT count(*) FROM places JOIN users ON user_id = id"
        " WHERE user LIKE 'user-%')",
    )
    assert (kept, placed) == (0, 0)
    assert rows(path, "SELECT count(*) FROM trials") == [(0,)]
    assert rows(path, "SELECT count(*) FROM seen WHERE seen_s < 1000001") == [(0,)]


async def test_what_waits_to_be_indexed_is_swept_when_it_is_too_old(
    opened: Opened, path: Path, clock: Clock
) -> None:
    """A quiet bridge would keep it for weeks: no round of indexing begins by itself."""
    async with opened() as inbox:
        for number in range(30):
            await inbox.append([message(f"user-{number}", b"1")] * 50)
        clock.now_s += 1001
        await inbox.append([Message("late", "message", b"2", clock.now_s)])
        await inbox.sweep()

        assert rows(path, "SELECT data FROM messages") == [(b"2",)]
        state = await inbox.state("user-7")
        assert (state.first, state.last) == (51, 50)
    async with opened() as inbox:
        assert await inbox.append([message("user-7", b"3")]) == [51]


async def test_what_waits_to_be_indexed_does_not_wait_for_ever(
    opened: Opened, path: Path, clock: Clock
) -> None:
    """What is over the limit can be deleted when it is indexed, and not before."""
    indexed = "SELECT value FROM bridge WHERE name = 'indexed_seq'"
    async with opened() as inbox:
        clock.now_s += 3000
        await inbox.append([Message("alice", "message", b"1", clock.now_s)] * 1200)
        await inbox.sweep()
        assert rows(path, indexed) == [(0,)]
        clock.now_s += 700
        await inbox.sweep()
        assert rows(path, indexed) == [(1200,)]
        await inbox.append([Message("alice", "message", b"1", clock.now_s)] * 20)
        assert rows(path, "SELECT count(*) FROM messages")[0][0] < 150


async def test_appends_pass_while_a_sweep_indexes(opened: Opened, clock: Clock) -> None:
    """It goes in pieces: the pump waits for one of them at most."""
    async with opened() as inbox:
        await inbox.append([message(f"user-{n}", b"1") for n in range(5000)])
        clock.now_s += 1001
        sweeping = asyncio.ensure_future(inbox.sweep())
        await asyncio.sleep(0)  # the first piece is on its way
        assert await inbox.append([message("alice", b"2")]) == [1]
        assert not sweeping.done()
        await sweeping


@pytest.mark.parametrize("count", [400, 3000])
async def test_one_busy_user_does_not_grow_beyond_its_limit(
    opened: Opened, path: Path, count: int
) -> None:
    """However large its batches are, more leaves than comes."""
    async with opened(round_entries=10) as inbox:
        for _ in range(8):
            await inbox.append([message("alice", b"1")] * count)
        await inbox.append([message("alice", b"2")] * 500)
        state = await inbox.state("alice")

    [(kept,)] = rows(path, "SELECT count(*) FROM messages")
    assert state.last - state.first + 1 == 100
    # What came last is indexed after the next batch, and can only then be deleted.
    assert kept < 2 * count + 1100
