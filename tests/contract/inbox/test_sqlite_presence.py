"""Presence in a file: a bridge starts again, and does not know which windows were closed."""

from collections.abc import Mapping
from pathlib import Path
from sqlite3 import connect

import orjson

from bridge.core.receipts import WorkerEvent
from bridge.inbox.sqlite.store import SqliteInbox
from tests.contract.inbox.files import Clock, OpenInbox, rows
from tests.contract.inbox.test_presence import changes

DEBOUNCE_S = 15.0


async def noted(inbox: SqliteInbox, windows: Mapping[str, int]) -> list[WorkerEvent]:
    """Note windows; return the events that wait to be published, and confirm them."""
    assert await inbox.note_presence(windows, debounce_s=DEBOUNCE_S) is None
    events = await inbox.pending_events(5000)
    await inbox.confirm_events(events)
    return list(events)


async def test_users_who_do_not_return_after_a_restart_are_reported_offline(
    open_inbox: OpenInbox, clock: Clock
) -> None:
    """They have the whole debounce, because pages wait before they reconnect."""
    async with open_inbox() as inbox:
        assert len(await noted(inbox, {"ann": 1, "ben": 1, "cat": 1})) == 3
        assert await noted(inbox, {"cat": 0}) == []
    clock.now_s += 3600
    async with open_inbox() as inbox:
        assert await noted(inbox, {}) == []
        assert await noted(inbox, {"ben": 1}) == []
        clock.now_s += DEBOUNCE_S - 0.1
        assert await noted(inbox, {}) == []
        clock.now_s += 0.2
        events = await noted(inbox, {})
        assert sorted(changes(events)) == [
            ("ann", "user.offline"),
            ("cat", "user.offline"),
        ]
        assert await noted(inbox, {}) == []


async def test_events_that_were_not_published_are_published_after_a_restart(
    open_inbox: OpenInbox,
) -> None:
    """They are in the transaction that notes the user."""
    async with open_inbox() as inbox:
        await inbox.note_presence({"ann": 1}, debounce_s=DEBOUNCE_S)
        (before,) = await inbox.pending_events(5)
    async with open_inbox() as inbox:
        (after,) = await inbox.pending_events(5)
        assert (after.id, after.body) == (before.id, before.body)


async def test_seq_grows_although_the_clock_was_set_back_before_the_start(
    open_inbox: OpenInbox, clock: Clock
) -> None:
    """A worker that drops old events must not drop those of a whole day."""
    seqs = []
    for _ in range(3):
        async with open_inbox() as inbox:
            clock.now_s += DEBOUNCE_S
            events = await noted(inbox, {"ann": 1}) + await noted(inbox, {"ann": 0})
            clock.now_s += DEBOUNCE_S + 1
            events += await noted(inbox, {})
        seqs += [orjson.loads(event.body)["seq"] for event in events]
        clock.now_s -= 86_400
    assert len(seqs) == 6
    assert seqs == sorted(set(seqs))


async def test_a_full_disk_delays_what_is_reported(
    open_inbox: OpenInbox, path: Path
) -> None:
    """The users are asked for again, and each is reported once."""
    async with open_inbox() as inbox:
        await noted(inbox, {"ann": 1})
        with connect(path) as lock:
            lock.execute("BEGIN IMMEDIATE")
            is_lost = await inbox.note_presence(
                {"ann": 1, "ben": 1}, debounce_s=DEBOUNCE_S
            )
            assert is_lost is not None
            assert is_lost("ann")
            assert is_lost("ben")
            lock.rollback()
        lock.close()
        assert changes(await noted(inbox, {"ann": 1, "ben": 1})) == [
            ("ben", "user.online")
        ]


async def test_a_bridge_without_presence_forgets_who_was_online(
    open_inbox: OpenInbox, path: Path
) -> None:
    """Turned off and on again, it would report users of months ago."""
    async with open_inbox() as inbox:
        await noted(inbox, {"ann": 1})
        await inbox.sweep()
        assert rows(path, "SELECT user FROM presence") == [("ann",)]
    async with open_inbox() as inbox:
        await inbox.sweep()
        assert rows(path, "SELECT user FROM presence") == []


async def test_a_bridge_that_could_not_read_yet_who_was_online_does_not_forget_it(
    open_inbox: OpenInbox, path: Path
) -> None:
    """The file was locked until just before a sweep."""
    async with open_inbox() as inbox:
        await noted(inbox, {"ann": 1})
    async with open_inbox() as inbox:
        with connect(path) as lock:
            lock.execute("BEGIN IMMEDIATE")
            assert await inbox.note_presence({}, debounce_s=DEBOUNCE_S) is not None
            lock.rollback()
        lock.close()
        await inbox.sweep()
        assert rows(path, "SELECT user FROM presence") == [("ann",)]
