"""Chains of messages in a SQLite inbox: queries, delivered marks, deletion."""

import sqlite3
from functools import partial
from pathlib import Path

import pytest

from bridge.inbox.contract import Retention
from bridge.inbox.sqlite.chain import MessageChain
from bridge.inbox.sqlite.store import SqliteInbox
from tests.contract.inbox.files import Clock, OpenInbox, message, read_all, rows


async def offsets(
    inbox: SqliteInbox, *, first: int, before: int
) -> tuple[list[int], list[int]]:
    """Return alice's offsets from `first` to below `before`, ascending and descending."""
    user_id = 1
    tail = inbox._reader._tail.of(user_id)

    def read(connection: sqlite3.Connection) -> tuple[list[int], list[int]]:
        seq = max(
            tail.head[1],
            *connection.execute(
                "SELECT coalesce(max(seq), 0) FROM heads WHERE user_id = ?", (user_id,)
            ).fetchone(),
        )
        chain = MessageChain(connection, user_id, seq, tail)
        there = chain.above(first - 1, "user_id")
        back = chain.below(before, first=first, columns="event")
        return [row[0] for row in there if row[0] < before], [row[0] for row in back]

    return await inbox._reader_thread.submit(read)


@pytest.mark.parametrize("round_entries", [1000, 7])
async def test_every_range_is_found_in_both_directions(
    open_inbox: OpenInbox, round_entries: int
) -> None:
    """Between all pairs of offsets: at the ends of blocks, indexed or not."""
    async with open_inbox(round_entries=round_entries) as inbox:
        for _ in range(35):
            await inbox.append([message("alice", b"1"), message("bob", b"2")])
        for first in range(1, 37):
            for before in range(first, 38):
                expected = list(range(first, min(before, 36)))
                found, back = await offsets(inbox, first=first, before=before)
                assert (found, back) == (expected, expected[::-1])


async def test_reading_works_where_older_messages_were_deleted(
    open_inbox: OpenInbox, clock: Clock
) -> None:
    """The chain breaks off in the middle of a block."""
    async with open_inbox(round_entries=5) as inbox:
        await inbox.append([message("alice", b"old")] * 39)
        clock.now_s += 1001
        late = message("alice", b"late")
        late.taken_s = clock.now_s
        for _ in range(30):
            await inbox.append([late])
        await inbox.sweep()
        found = await read_all(inbox, "alice")

    assert [each.offset for each in found] == list(range(40, 70))


async def test_marks_share_one_row_until_an_indexing_round(
    open_inbox: OpenInbox, path: Path
) -> None:
    """Marks of half a second are one row; the round deletes it."""
    users = [f"user-{number}" for number in range(300)]
    async with open_inbox() as inbox:
        await inbox.append([message(user, b"1") for user in users])
        for user in users:
            inbox.mark_delivered(user, 1)
    assert rows(path, "SELECT count(*) FROM marks") == [(1,)]

    async with open_inbox(round_entries=100) as inbox:
        for _ in range(3):
            await inbox.append([message(user, b"2") for user in users])
        delivered = {(await inbox.state(user)).delivered for user in users}

    assert delivered == {1}
    assert rows(path, "SELECT count(*) FROM marks") == [(0,)]
    assert rows(path, "SELECT DISTINCT delivered FROM heads") == [(1,)]


async def test_marks_without_messages_start_a_round_too(
    open_inbox: OpenInbox, path: Path
) -> None:
    """Windows may ack old messages while no new message arrives."""
    async with open_inbox(round_entries=50) as inbox:
        await inbox.append([message("alice", b"1")] * 90)
        for offset in range(1, 91):
            await inbox._writer_thread.submit(
                partial(
                    inbox._writer.write_background,
                    marks={"alice": offset},
                    ended_trials=(),
                )
            )
        assert (await inbox.state("alice")).delivered == 90

    [(count,)] = rows(path, "SELECT count(*) FROM marks")
    assert count < 60


async def test_offsets_continue_after_all_messages_were_deleted(
    path: Path, clock: Clock
) -> None:
    """The newest offset stays when the newest message is trimmed or swept."""
    retention = Retention(max_messages=3, max_age_s=100, dedupe_s=10)
    for run in range(4):
        inbox = SqliteInbox(str(path), retention, clock=clock.steady, round_entries=10)
        await inbox.open()
        await inbox.follow("alice")  # or the user would be forgotten
        late = message("alice", b"1")
        late.taken_s = clock.now_s
        first = run * 40 + 1
        assert await inbox.append([late] * 40) == list(range(first, first + 40))
        clock.now_s += 101
        await inbox.sweep()
        state = await inbox.state("alice")
        assert (state.first, state.last) == (first + 40, first + 39)
        await inbox.close()
    assert rows(path, "SELECT count(*) FROM messages") == [(0,)]
    assert rows(path, "SELECT count(*) FROM places") == [(0,)]
