"""Presence in a file: what is written, and how often."""

import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from bridge.clock import SteadyClock
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.sqlite.presence import SqlitePresence
from bridge.inbox.sqlite.receipts import SqliteReceipts
from bridge.inbox.sqlite.schema import MIGRATIONS
from bridge.inbox.sqlite.unindexed import UnindexedTail


class CountedWrites:
    """Runs writes at once, each in a transaction that is counted."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.count = 0
        self.is_away = False
        self._connection = connection

    async def submit(self, work: Callable[[sqlite3.Connection], object]) -> object:
        """Run one, or fail."""
        self.count += 1
        if self.is_away:
            raise StoreUnavailableError("sqlite:", "away")
        return work(self._connection)


def presence_in(writes: CountedWrites) -> SqlitePresence:
    """Return the presence of a bridge that has just started."""
    clock = SteadyClock()
    receipts = SqliteReceipts(
        UnindexedTail(round_entries=10),
        head_of=lambda *_: None,
        retention=lambda: Retention(max_messages=100, max_age_s=1000, dedupe_s=60),
        clock=clock,
    )
    return SqlitePresence(writes, receipts, clock)  # type: ignore[arg-type] # the part in use


async def test_a_bridge_without_presence_forgets_the_users_once() -> None:
    """Each sweep, once a minute, cost a transaction for nothing."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for steps in MIGRATIONS:
            for step in steps:
                connection.execute(step)
        connection.execute("INSERT INTO presence VALUES ('ann')")
        writes = CountedWrites(connection)
        presence = presence_in(writes)
        writes.is_away = True
        with pytest.raises(StoreUnavailableError):
            await presence.sweep()
        writes.is_away = False
        for _ in range(3):
            await presence.sweep()
        assert writes.count == 2
        assert connection.execute("SELECT * FROM presence").fetchall() == []


async def test_a_sweep_forgets_nothing_while_the_users_cannot_be_read() -> None:
    """A file that is locked at the start must not cost an offline event."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        writes = CountedWrites(connection)
        presence = presence_in(writes)
        writes.is_away = True
        assert await presence.note({}, debounce_s=1.0) is not None
        before = writes.count
        await presence.sweep()
        assert writes.count == before
