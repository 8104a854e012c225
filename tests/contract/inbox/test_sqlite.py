"""SQLite inboxes: durability, group commits, indexing and deletion in the file."""

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.core.message import Message, Stored
from bridge.errors import StoreUnavailableError
from bridge.inbox.sqlite.store import SqliteInbox
from tests.conftest import eventually
from tests.contract.inbox.files import Clock, OpenInbox, message, read_all, remove, rows


async def block_writer(inbox: SqliteInbox) -> tuple[threading.Event, list[str]]:
    """Block the writer in a transaction; return an event to continue it, and its statements."""
    blocked = threading.Event()
    resume = threading.Event()
    statements: list[str] = []

    def wait(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE bridge SET value = value")  # takes the lock
        blocked.set()
        resume.wait(10)
        connection.set_trace_callback(statements.append)

    inbox._writer_thread.submit(wait)
    await eventually(blocked.is_set)
    return resume, statements


# --- durability


async def test_everything_survives_a_restart(open_inbox: OpenInbox) -> None:
    """Messages with all their properties, marks, ids, and the epoch."""
    whole = Message("alice", "order", b'{"n":1}', 999_999.5, "m-1", 1_000_500.25)
    async with open_inbox() as inbox:
        epoch = inbox.epoch
        assert await inbox.append([whole, message("alice", b"2")]) == [1, 2]
        inbox.mark_delivered("alice", 1)

    async with open_inbox() as inbox:
        state = await inbox.state("alice")
        assert (state.epoch, state.first, state.last, state.delivered) == (
            epoch,
            1,
            2,
            1,
        )
        assert (await read_all(inbox, "alice"))[0] == Stored(whole, 1)
        assert await inbox.append([whole, message("alice", b"3")]) == [None, 3]


async def test_a_new_file_has_a_new_epoch(open_inbox: OpenInbox, path: Path) -> None:
    """Positions of the old file are recognized and not applied to the new one."""
    async with open_inbox() as inbox:
        first = inbox.epoch
    remove(path)
    async with open_inbox() as inbox:
        assert inbox.epoch != first


async def test_a_mark_is_written_while_the_store_is_open(
    open_inbox: OpenInbox, path: Path
) -> None:
    """Within about a second, which limits what a crash repeats."""
    async with open_inbox() as inbox:
        await inbox.append([message("alice", b"1")])
        inbox.mark_delivered("alice", 1)

        await eventually(
            lambda: rows(path, "SELECT marks FROM marks") == [(b"[[1,1]]",)]
        )
        assert (await inbox.state("alice")).delivered == 1


async def test_trials_survive_a_restart_until_they_are_forgotten(
    open_inbox: OpenInbox,
) -> None:
    """The next process must know which message crashed this one."""
    async with open_inbox() as inbox:
        assert await inbox.note_trials([b"killer"]) == [1]
        assert await inbox.note_trials([b"harmless"]) == [1]
        inbox.forget_trial(b"harmless")
    async with open_inbox() as inbox:
        assert await inbox.note_trials([b"killer"]) == [2]
        assert await inbox.note_trials([b"harmless"]) == [1]
        inbox.forget_trial(b"killer")
        assert await inbox.note_trials([b"killer"]) == [1]


async def test_nothing_is_lost_over_many_restarts_and_indexing_rounds(
    open_inbox: OpenInbox,
) -> None:
    """The tail is read back correctly at any point of a round, including ids."""
    for run in range(8):
        async with open_inbox(round_entries=10) as inbox:
            for number in range(3):
                batch = [
                    message(user, f"{run}-{number}-{n}".encode(), f"{run}-{number}")
                    for n, user in enumerate("abcdefgh")
                ]
                offset = run * 3 + number + 1
                assert await inbox.append(batch) == [offset] * 8
                assert await inbox.append(batch) == [None] * 8

    async with open_inbox() as inbox:
        for user in "abcdefgh":
            found = await read_all(inbox, user)
            assert [stored.offset for stored in found] == list(range(1, 25))
        again = message("a", b"again", "0-0")
        assert await inbox.append([again]) == [None]


async def test_only_its_owner_can_read_the_file(
    open_inbox: OpenInbox, path: Path
) -> None:
    """Other users of the machine must not read messages."""
    async with open_inbox() as inbox:
        await inbox.append([message("alice", b"1")])
        modes = {each.stat().st_mode & 0o777 for each in path.parent.iterdir()}

    assert modes == {0o600}


async def test_access_of_other_users_to_an_existing_file_is_removed(
    open_inbox: OpenInbox, path: Path
) -> None:
    """A copy that was restored has the mode that the umask of a shell gives it."""
    async with open_inbox() as inbox:
        await inbox.append([message("alice", b"1")])
        files = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    for name, content in files.items():  # with its log, as after a crash
        path.with_name(name).write_bytes(content)
        path.with_name(name).chmod(0o666)

    with capture_logs() as logs:
        async with open_inbox() as inbox:
            modes = {each.stat().st_mode & 0o777 for each in path.parent.iterdir()}
            assert await inbox.append([message("alice", b"2")]) == [2]

    assert modes == {0o600}
    tightened = [line for line in logs if line["event"] == "inbox.access_removed"]
    assert {line["file"] for line in tightened} >= {path.name, f"{path.name}-wal"}
    assert {line["log_level"] for line in tightened} == {"warning"}


async def test_a_lock_that_is_a_link_is_not_followed(
    open_inbox: OpenInbox, path: Path, tmp_path: Path
) -> None:
    """In a folder of other users it could lead to any file that the bridge can write."""
    other = tmp_path / "another-file"
    other.write_text("content")
    path.with_name(f"{path.name}-lock").symlink_to(other)

    with pytest.raises(StoreUnavailableError, match="-lock cannot be opened"):
        async with open_inbox():
            pass

    assert other.read_text() == "content"


# --- group commits and concurrent reads


async def test_queued_appends_share_one_commit(open_inbox: OpenInbox) -> None:
    """They wait for the disk once."""
    async with open_inbox() as inbox:
        resume, statements = await block_writer(inbox)
        async with asyncio.TaskGroup() as tasks:
            appending = [
                tasks.create_task(inbox.append([message("alice", b"%d" % number)]))
                for number in range(10)
            ]
            queue = inbox._writer_thread._queue
            assert queue is not None
            await eventually(lambda: queue.qsize() == 10)
            resume.set()

    assert [task.result() for task in appending] == [[n] for n in range(1, 11)]
    assert [s for s in statements if s.startswith(("BEGIN", "COMMIT"))] == [
        "COMMIT",  # of the blocked transaction
        "BEGIN IMMEDIATE",
        "COMMIT",
    ]


async def test_reading_does_not_wait_for_a_commit(open_inbox: OpenInbox) -> None:
    """A connecting window does not depend on the load of the writer."""
    async with open_inbox() as inbox:
        await inbox.append([message("alice", b"1")])
        resume, _ = await block_writer(inbox)
        appending = asyncio.ensure_future(inbox.append([message("alice", b"2")]))

        state = await inbox.state("alice")
        found = await read_all(inbox, "alice")

        assert (state.last, len(found), appending.done()) == (1, 1, False)
        resume.set()
        assert await appending == [2]


async def test_the_feed_is_ordered_over_concurrent_appends(
    open_inbox: OpenInbox,
) -> None:
    """And each message is in the feed before its append returns."""
    fed: list[int] = []
    async with open_inbox() as inbox:
        inbox.subscribe(lambda batch: fed.extend(stored.offset for stored in batch))
        await inbox.follow("alice")

        async def append(number: int) -> None:
            [offset] = await inbox.append([message("alice", b"%d" % number)])
            assert offset in fed

        async with asyncio.TaskGroup() as tasks:
            for number in range(50):
                tasks.create_task(append(number))

    assert fed == list(range(1, 51))


async def test_a_cancelled_append_leaves_the_store_consistent(
    open_inbox: OpenInbox,
) -> None:
    """It is withdrawn if it has not started; otherwise it is stored and published."""
    fed: list[bytes] = []
    async with open_inbox() as inbox:
        inbox.subscribe(lambda batch: fed.extend(each.message.data for each in batch))
        await inbox.follow("alice")
        resume, _ = await block_writer(inbox)
        waiting = asyncio.ensure_future(inbox.append([message("alice", b"waited")]))
        await asyncio.sleep(0)
        waiting.cancel()
        resume.set()
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


async def test_an_invalid_message_does_not_affect_other_appends(
    open_inbox: OpenInbox,
) -> None:
    """Appends of the same group succeed, and the store reports no problem."""
    async with open_inbox() as inbox:
        resume, _ = await block_writer(inbox)
        invalid = [message("alice", b"1"), Message("alice", "\ud800", b"2", 0.0)]
        good = asyncio.ensure_future(inbox.append([message("alice", b"3")]))
        bad = asyncio.ensure_future(inbox.append(invalid))
        more = asyncio.ensure_future(inbox.append([message("bob", b"4")]))
        await asyncio.sleep(0)
        resume.set()

        assert await good == [1]
        with pytest.raises(UnicodeEncodeError):
            await bad
        assert await more == [1]
        assert inbox.problem is None
        assert [each.offset for each in await read_all(inbox, "alice")] == [1]
        assert await inbox.append([message("alice", b"5")]) == [2]


async def test_an_error_in_the_subscriber_does_not_fail_the_append(
    open_inbox: OpenInbox, caplog: pytest.LogCaptureFixture
) -> None:
    """The messages are stored; if the append failed, they would be stored again."""

    def fail(_: object) -> None:
        message = "a bug"
        raise ValueError(message)

    async with open_inbox() as inbox:
        inbox.subscribe(fail)
        await inbox.follow("alice")
        assert await inbox.append([message("alice", b"1")]) == [1]
        assert await inbox.append([message("alice", b"2")]) == [2]

    assert "a bug" in caplog.text


# --- deletion in the file


async def test_the_file_holds_little_more_than_the_limit(
    open_inbox: OpenInbox, path: Path, clock: Clock
) -> None:
    """Trimming in steps keeps up with appends."""
    async with open_inbox(round_entries=10) as inbox:
        for number in range(100):
            clock.now_s += 1
            batch = [message("alice", b"%d" % (number * 5 + n)) for n in range(5)]
            await inbox.append(batch)
        state = await inbox.state("alice")

    [(count,)] = rows(path, "SELECT count(*) FROM messages")
    assert (state.first, state.last) == (401, 500)
    assert 100 <= count < 140


async def test_a_sweep_deletes_messages_ids_and_trials_in_steps(
    open_inbox: OpenInbox, path: Path, clock: Clock
) -> None:
    """In all tables, for inactive users, with more than one step for each table."""
    async with open_inbox(round_entries=10) as inbox:
        for number in range(30):
            await inbox.append(
                [
                    message(f"user-{n}", b"1", f"{number}-{n}")
                    for n in range(number * 100, number * 100 + 100)
                ]
            )
        await inbox.note_trials([b"old"])
        clock.now_s += 2000
        late = [
            Message(f"late-{n}", "message", b"2", clock.now_s, str(n))
            for n in range(40)
        ]
        await inbox.append(late)
        await inbox.append([message("x", b"3")] * 200)  # starts indexing rounds
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


async def test_a_sweep_indexes_and_deletes_unindexed_messages_that_are_too_old(
    open_inbox: OpenInbox, path: Path, clock: Clock
) -> None:
    """At a low rate no indexing round would start for weeks."""
    async with open_inbox() as inbox:
        for number in range(30):
            await inbox.append([message(f"user-{number}", b"1")] * 50)
        clock.now_s += 1001
        await inbox.append([Message("late", "message", b"2", clock.now_s)])
        await inbox.sweep()

        assert rows(path, "SELECT data FROM messages") == [(b"2",)]
        assert rows(path, "SELECT user FROM users") == [("late",)]
    async with open_inbox() as inbox:
        assert await inbox.append([message("user-7", b"3")]) == [1025]


async def test_a_sweep_indexes_old_entries_after_an_hour(
    open_inbox: OpenInbox, path: Path, clock: Clock
) -> None:
    """Messages over the limit can be deleted only when they are indexed."""
    indexed = "SELECT value FROM bridge WHERE name = 'indexed_seq'"
    async with open_inbox() as inbox:
        clock.now_s += 3000
        await inbox.append([Message("alice", "message", b"1", clock.now_s)] * 1200)
        await inbox.sweep()
        assert rows(path, indexed) == [(0,)]
        clock.now_s += 700
        await inbox.sweep()
        assert rows(path, indexed) == [(1200,)]
        await inbox.append([Message("alice", "message", b"1", clock.now_s)] * 20)
        assert rows(path, "SELECT count(*) FROM messages")[0][0] < 150


async def test_appends_are_made_between_the_steps_of_a_sweep(
    open_inbox: OpenInbox, clock: Clock
) -> None:
    """An append waits for one step at most."""
    async with open_inbox() as inbox:
        await inbox.append([message(f"user-{n}", b"1") for n in range(5000)])
        clock.now_s += 1001
        sweeping = asyncio.ensure_future(inbox.sweep())
        await asyncio.sleep(0)  # the first step has been submitted
        assert await inbox.append([message("alice", b"2")]) == [1]
        assert not sweeping.done()
        await sweeping


@pytest.mark.parametrize("count", [400, 3000])
async def test_a_busy_user_does_not_exceed_the_limit_by_much(
    open_inbox: OpenInbox, path: Path, count: int
) -> None:
    """However large the batches are, more messages are deleted than added."""
    async with open_inbox(round_entries=10) as inbox:
        for _ in range(8):
            await inbox.append([message("alice", b"1")] * count)
        await inbox.append([message("alice", b"2")] * 500)
        state = await inbox.state("alice")

    [(kept,)] = rows(path, "SELECT count(*) FROM messages")
    assert state.last - state.first + 1 == 100
    # The newest messages are indexed, and can be deleted, only after the next batch.
    assert kept < 2 * count + 1100
