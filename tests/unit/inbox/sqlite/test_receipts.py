"""Receipts in a file, without the threads of the store."""

import sqlite3
from contextlib import closing

from bridge.clock import SteadyClock
from bridge.core.receipts import WorkerEvent
from bridge.inbox.contract import Retention
from bridge.inbox.sqlite.receipts import SqliteReceipts
from bridge.inbox.sqlite.schema import MIGRATIONS
from bridge.inbox.sqlite.unindexed import UnindexedTail

RETENTION = Retention(max_messages=100, max_age_s=1000, dedupe_s=60)


def test_bridge_is_woken_after_the_commit_of_an_event() -> None:
    """Another write that ends between the decision and its commit must not use up the call."""
    woken: list[int] = []
    receipts = SqliteReceipts(
        UnindexedTail(round_entries=10),
        head_of=lambda _, __: None,
        retention=lambda: RETENTION,
        clock=SteadyClock(),
    )
    receipts.on_events(lambda: woken.append(1))
    event = WorkerEvent("1.dead", "message.dead", "ann", b"{}", 1.0)
    with closing(sqlite3.connect(":memory:")) as connection:
        for steps in MIGRATIONS:
            for step in steps:
                connection.execute(step)
        receipts.begin(connection)
        receipts.put(connection, [(event, None)])

        receipts.notify()
        assert woken == []
        receipts.after_commit()
        receipts.notify()
        receipts.notify()
        assert woken == [1]

        receipts.put(connection, [(event, None)])
        receipts.after_rollback()
        receipts.notify()
        assert woken == [1]
