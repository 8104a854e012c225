"""Receipts in a file, without the threads of the store."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from threading import Event, Thread, current_thread

from bridge.clock import SteadyClock
from bridge.core.message import Message
from bridge.core.message_options import MessageOptions, Tracking
from bridge.core.receipts import WorkerEvent
from bridge.inbox.contract import Retention
from bridge.inbox.sqlite.receipts import SqliteReceipts, read_events
from bridge.inbox.sqlite.schema import MIGRATIONS
from bridge.inbox.sqlite.unindexed import HEAD, UnindexedTail

RETENTION = Retention(max_messages=100, max_age_s=1000, dedupe_s=60)


@contextmanager
def ann_in_a_file() -> Iterator[sqlite3.Connection]:
    """Open an empty file with the tables of an inbox, and the user ann."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for steps in MIGRATIONS:
            for step in steps:
                connection.execute(step)
        connection.execute("INSERT INTO users (id, user, first) VALUES (1, 'ann', 1)")
        yield connection


def receipts_of(heads: Mapping[str, bytes], clock: SteadyClock) -> SqliteReceipts:
    """Return the receipts of users whose heads are given."""
    return SqliteReceipts(
        UnindexedTail(round_entries=10),
        head_of=lambda _, user: heads.get(user),
        retention=lambda: RETENTION,
        clock=clock,
    )


def add_late_message(
    receipts: SqliteReceipts, connection: sqlite3.Connection, taken_s: float
) -> None:
    """Commit a message of ann that counts as undelivered a second after `taken_s`."""
    tracking = Tracking(wants_receipt=True, undelivered_after_s=1.0)
    options = MessageOptions(tracking=tracking)
    message = Message("ann", "message", b"1", taken_s, "m-1", options=options)
    receipts.begin(connection)
    receipts.add(connection, [message], [1])
    receipts.after_commit()


def test_bridge_is_woken_after_the_commit_of_an_event() -> None:
    """Another write that ends between the decision and its commit must not use up the call."""
    woken: list[int] = []
    receipts = receipts_of({}, SteadyClock())
    receipts.on_events(lambda: woken.append(1))
    event = WorkerEvent("1.dead", "message.dead", "ann", b"{}", 1.0)
    with ann_in_a_file() as connection:
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


def test_a_mark_counts_if_the_decision_that_it_met_is_rolled_back() -> None:
    """Until a commit the receipt is open, so the mark must decide about it afterwards."""
    clock = SteadyClock()
    heads = {"ann": HEAD.pack(1, 1, 1, 0)}
    receipts = receipts_of(heads, clock)
    options = MessageOptions(tracking=Tracking(wants_receipt=True))
    message = Message("ann", "message", b"1", clock.wall_s(), "m-1", options=options)
    with ann_in_a_file() as connection:
        connection.execute("BEGIN")
        receipts.begin(connection)
        receipts.add(connection, [message], [1])
        connection.execute("COMMIT")
        receipts.after_commit()

        connection.execute("BEGIN")
        receipts.begin(connection)
        heads["ann"] = HEAD.pack(1, 1, 200, 0)  # pushes the message out
        receipts.push_out(connection, ["ann"])
        assert not receipts.open
        is_needed = receipts.note_mark("ann", 1)
        heads["ann"] = HEAD.pack(1, 1, 1, 0)
        receipts.after_rollback()
        connection.rollback()

        assert is_needed
        receipts.begin(connection)
        events = read_events(connection, limit=10, max_bytes=1000)
        assert [event.routing_key for event in events] == ["message.delivered"]


def test_a_mark_that_moves_during_a_transaction_counts_before_later_times() -> None:
    """The writer may reach the decision after the time is over, long after it began."""
    now_s = 1000.0
    clock = SteadyClock(wall=lambda: now_s, real=lambda: now_s)
    heads = {"ann": HEAD.pack(1, 1, 1, 0)}
    receipts = receipts_of(heads, clock)
    with ann_in_a_file() as connection:
        add_late_message(receipts, connection, now_s)

        receipts.begin(connection)
        now_s = 1000.9
        assert receipts.note_mark("ann", 1)
        now_s = 1001.2
        receipts.settle_due(connection)
        receipts.after_commit()
        receipts.begin(connection)

        events = read_events(connection, limit=10, max_bytes=1000)
        assert [event.routing_key for event in events] == ["message.delivered"]


def test_a_mark_counts_if_a_transaction_begins_while_it_reads_the_clock() -> None:
    """The time is over between the two, and the event loop was interrupted there."""
    now_s = 1000.0
    is_reading, has_begun = Event(), Event()

    def wall() -> float:
        if current_thread().name != "marking":
            return now_s
        is_reading.set()
        has_begun.wait(0.5)  # it begins only later
        return 1000.9

    clock = SteadyClock(wall=wall, real=lambda: now_s)
    heads = {"ann": HEAD.pack(1, 1, 1, 0)}
    receipts = receipts_of(heads, clock)
    marking = Thread(target=receipts.note_mark, args=("ann", 1), name="marking")
    with ann_in_a_file() as connection:
        add_late_message(receipts, connection, now_s)

        marking.start()
        assert is_reading.wait(10)
        now_s = 1001.2
        receipts.begin(connection)
        has_begun.set()
        marking.join()
        receipts.settle_due(connection)
        receipts.after_commit()
        receipts.begin(connection)

        events = read_events(connection, limit=10, max_bytes=1000)
        assert [event.routing_key for event in events] == ["message.delivered"]


def test_one_transaction_adds_few_events_with_large_data() -> None:
    """A thousand late messages may have 256 KiB each, and the data is copied."""
    clock = SteadyClock()
    receipts = receipts_of({"ann": HEAD.pack(1, 1, 12, 0)}, clock)
    tracking = Tracking(wants_receipt=False, undelivered_after_s=1e-6)
    options = MessageOptions(tracking=tracking)
    data = b"1" * 250_000
    taken_s = clock.wall_s() - 1
    with ann_in_a_file() as connection:
        rows = [(1, offset, taken_s, "message", data) for offset in range(1, 13)]
        connection.executemany(
            "INSERT INTO sparse (user_id, offset, taken_s, event, data)"
            " VALUES (?, ?, ?, ?, ?)",
            rows,
        )
        messages = [
            Message("ann", "message", data, taken_s, options=options) for _ in rows
        ]
        receipts.begin(connection)
        receipts.add(connection, messages, range(1, 13))

        assert receipts.settle_due(connection)
        assert receipts.pending == 5  # together more than a megabyte
        assert receipts.settle_due(connection)
        assert not receipts.settle_due(connection)
        assert receipts.pending == 12
