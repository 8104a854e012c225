"""
Measure operators' queries on a full SQLite inbox: python -m tests.bench.admin_queries

Fills a file with messages of many users, then prints how long each query takes, how long
appends take with and without a concurrent search, and the cost of the journal per message.
"""

import argparse
import asyncio
import secrets
import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, time

from bridge.core.journal import Journal
from bridge.core.message import Message, Stored
from bridge.inbox.contract import Retention
from bridge.inbox.sqlite.store import SqliteInbox

RETENTION = Retention(max_messages=1000, max_age_s=7 * 86400, dedupe_s=600)
DATA = b'{"a":"' + b"x" * 192 + b'"}'
BATCH = 500


def batch(start: int, users: int, *, size: int = BATCH) -> list[Message]:
    """Return messages with predictable ids."""
    now_s = time()
    return [
        Message(f"user-{n * 7919 % users}", "message", DATA, now_s, f"message-{n:032}")
        for n in range(start, start + size)
    ]


async def timed(name: str, query: Callable[[], Awaitable[object]]) -> None:
    """Print how long a query takes the first time and later."""
    times = []
    for _ in range(4):
        began = perf_counter()
        await query()
        times.append(perf_counter() - began)
    print(f"{name:34} first {times[0] * 1e3:8.1f} ms, then {min(times) * 1e3:8.1f} ms")


async def append_times(inbox: SqliteInbox, start: int, users: int) -> list[float]:
    """Append 200 batches of 100 and return how long each took."""
    times = []
    for number in range(200):
        messages = batch(start + number * 100, users, size=100)
        began = perf_counter()
        await inbox.append(messages)
        times.append(perf_counter() - began)
    return times


def show(name: str, times: list[float]) -> None:
    """Print median and tail."""
    tail = statistics.quantiles(times, n=100)
    print(
        f"append of 100, {name:19} p50 {tail[49] * 1e3:6.2f} ms, p99 {tail[98] * 1e3:6.2f} ms"
    )


async def measure_queries(folder: Path, messages: int, users: int) -> None:
    """Fill a file and query it."""
    path = folder / "inbox.sqlite3"
    inbox = SqliteInbox(str(path), RETENTION)
    await inbox.open()
    try:
        began = perf_counter()
        for start in range(0, messages, BATCH):
            await inbox.append(batch(start, users))
        print(
            f"{messages} messages of {users} users in {perf_counter() - began:.0f} s, "
            f"{path.stat().st_size / 1e6:.0f} MB"
        )
        admin = inbox.admin
        newest, oldest = f"message-{messages - 1:032}", f"message-{0:032}"
        await timed("a page of 50 users", lambda: admin.users(limit=50))
        await timed("a page of 200 users", lambda: admin.users(limit=200))
        await timed("a page of 50 messages", lambda: admin.messages("user-0", limit=50))
        await timed("an id, with the user", lambda: admin.find(oldest, user="user-0"))
        await timed("the newest id, without the user", lambda: admin.find(newest))
        await timed("the oldest id, without the user", lambda: admin.find(oldest))
        await timed("an unknown id", lambda: admin.find("unknown"))
        show("no search", await append_times(inbox, messages, users))
        async with asyncio.TaskGroup() as tasks:
            searching = tasks.create_task(search_repeatedly(inbox), name="search")
            times = await append_times(inbox, messages * 2, users)
            searching.cancel()
        show("during a search", times)
    finally:
        await inbox.close()


async def search_repeatedly(inbox: SqliteInbox) -> None:
    """Search for an unknown id until cancelled."""
    while True:
        await inbox.admin.find("unknown")


def journal_cost() -> None:
    """Print the cost of the journal by batch size."""
    for size in (1, 10, 100, 500):
        messages = [
            Message(f"user-{n}", "message", DATA, 1.0, secrets.token_hex(16))
            for n in range(size)
        ]
        stored = [Stored(messages[0], n + 1) for n in range(size)]
        offsets, windows = list(range(size)), [1] * size
        journal = Journal()
        rounds = 50_000 // size
        storing, writing = [], []
        for _ in range(7):
            began = perf_counter()
            for _ in range(rounds):
                journal.stored(messages, offsets, at_s=1.0)
            storing.append(perf_counter() - began)
            began = perf_counter()
            for _ in range(rounds):
                journal.written(stored, windows, at_s=1.0)
            writing.append(perf_counter() - began)
        per_us = 1e6 / rounds / size
        print(
            f"journal, batches of {size:3}: stored {min(storing) * per_us:.3f} us, "
            f"written {min(writing) * per_us:.3f} us a message"
        )


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    arguments = parser.parse_args()
    journal_cost()
    with TemporaryDirectory() as folder:
        asyncio.run(measure_queries(Path(folder), arguments.messages, arguments.users))


if __name__ == "__main__":
    main()
