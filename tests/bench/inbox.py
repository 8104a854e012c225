"""
Measure the cost of a SQLite inbox, empty and full: python -m tests.bench.inbox

Prints microseconds per message, CPU time of all processors and elapsed time, for batches
of 100 messages; then how long a replay of 100 messages takes, a start after an orderly
stop, and a start after kill -9. The minimum of several rounds is the cost of the work
itself; the mean includes indexing, checkpoints and other programs.

"Paced" rows append 3,000 messages per second as they arrive: each commit takes the messages
that arrived during the previous one. With marks, each stored message is marked as delivered.
"""

import argparse
import asyncio
import os
import random
import resource
import secrets
import shutil
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time, time

from bridge.core.message import Message
from bridge.inbox.contract import Retention
from bridge.inbox.sqlite.store import SqliteInbox

BATCH = 100
RATE = 3000
PACED_S = 4.0
# 150,000 messages in total: one and a half indexing rounds of the store.
ROUNDS = 15
ROUND_BATCHES = 100
PACED_ROUNDS = 5
RETENTION = Retention(max_messages=1000, max_age_s=7 * 86400, dedupe_s=600)
DATA = b'{"a":"' + b"x" * 192 + b'"}'
CHANCE = random.Random(1)  # noqa: S311 - reproducible


def batch(users: int, *, size: int = BATCH, has_ids: bool = False) -> list[Message]:
    """Return messages for random users."""
    now_s = time()
    return [
        Message(
            f"user-{CHANCE.randrange(users)}",
            "message",
            DATA,
            now_s,
            secrets.token_hex(16) if has_ids else None,
        )
        for _ in range(size)
    ]


async def append_cost(
    inbox: SqliteInbox, name: str, users: int, *, has_ids: bool = False
) -> None:
    """Append in rounds and print the cost per message."""
    cpu: list[float] = []
    wall: list[float] = []
    for _ in range(ROUNDS):
        batches = [batch(users, has_ids=has_ids) for _ in range(ROUND_BATCHES)]
        began_cpu, began = process_time(), perf_counter()
        for messages in batches:
            await inbox.append(messages)
        count = ROUND_BATCHES * BATCH / 1e6
        cpu.append((process_time() - began_cpu) / count)
        wall.append((perf_counter() - began) / count)
    show(name, *(f(xs) for xs in (cpu, wall) for f in (min, statistics.mean)))


async def paced_cost(
    inbox: SqliteInbox,
    name: str,
    users: int,
    *,
    with_marks: bool,
    gather_s: float = 0.0,
) -> None:
    """
    Append messages when they are due, in several rounds; print the cost per message.

    The number of messages per commit depends on the disk, and a commit costs the same with
    one message as with ten. `gather_s` is the least time between the starts of commits.
    """
    cpu: list[float] = []
    for _ in range(PACED_ROUNDS):
        messages = batch(users, size=int(RATE * PACED_S))
        began_cpu, began = process_time(), perf_counter()
        sent = commits = 0
        next_s = 0.0
        while sent < len(messages):
            passed_s = perf_counter() - began
            due = min(int(passed_s * RATE), len(messages))
            if due == sent or passed_s < next_s:
                await asyncio.sleep(max(1 / RATE, next_s - passed_s))
                continue
            next_s = passed_s + gather_s
            some = messages[sent:due]
            offsets = await inbox.append(some)
            sent, commits = due, commits + 1
            if with_marks:
                for message, offset in zip(some, offsets, strict=True):
                    inbox.mark_delivered(message.user, offset or 0)
        cpu.append((process_time() - began_cpu) * 1e6 / sent)
    show(f"{name}, {sent / commits:.1f} a commit", min(cpu), statistics.mean(cpu))


async def paced(inbox: SqliteInbox, users: int) -> None:
    """Measure paced messages: plain, with marks, and with time between commits."""
    await paced_cost(inbox, "   paced", users, with_marks=False)
    await paced_cost(inbox, "   with marks", users, with_marks=True)
    await paced_cost(
        inbox, "   with marks, 4 ms apart", users, with_marks=True, gather_s=0.004
    )


async def fill(inbox: SqliteInbox, users: int, messages: int) -> None:
    """Store `messages`, 200 of them for one user and spread over the file."""
    for number in range(messages // 2000):
        some = batch(users, size=2000)
        if number % (messages // 2000 // 200 or 1) == 0:
            some[CHANCE.randrange(2000)].user = "reader"
        await inbox.append(some)


async def replay_cost(inbox: SqliteInbox) -> None:
    """Read 100 messages, as the replay for a connecting window does."""

    async def read() -> None:
        await inbox.state("reader")
        page = await inbox.read(
            "reader", after=0, max_messages=100, max_bytes=1_000_000
        )
        assert len(page.messages) == 100

    await timed("replay of 100 messages, milliseconds", read, times=20, scale=1e3)


async def timed(
    name: str, work: Callable[[], Awaitable[None]], *, times: int, scale: float
) -> None:
    """Run `work` several times and print how long it took."""
    took: list[float] = []
    for _ in range(times):
        began = perf_counter()
        await work()
        took.append((perf_counter() - began) * scale)
    show(name, None, None, min(took), statistics.mean(took))


def show(name: str, *figures: float | None) -> None:
    """Print one row of the table."""
    cells = ("       -" if f is None else f"{f:8.2f}" for f in figures)
    print(f"{name:52}", *cells, flush=True)


def opened(folder: Path, name: str) -> SqliteInbox:
    """Return the store with this file name."""
    return SqliteInbox(str(folder / name), RETENTION)


async def empty_files(folder: Path) -> None:
    """Append to a new file for each row."""
    lines = (
        ("empty, 100 existing users", 100, False),
        ("empty, 1,000 existing users", 1000, False),
        ("   the same, with message ids", 1000, True),
        # The traffic of the full file, to separate its cost from that of the size.
        ("empty, 100,000 existing users", 100_000, False),
        ("   the same, with message ids", 100_000, True),
    )
    for number, (name, users, has_ids) in enumerate(lines):
        inbox = opened(folder, f"empty-{number}")
        await inbox.open()
        await inbox.append([Message(f"user-{n}", "m", b"1", 0.0) for n in range(users)])
        await append_cost(inbox, name, users, has_ids=has_ids)
        if not has_ids and users == 1000:
            await paced(inbox, users)
        await inbox.close()
    inbox = opened(folder, "empty-new")
    await inbox.open()
    await append_cost(inbox, "empty, 100,000 users, mostly new", 100_000)
    await inbox.close()


async def full_file(folder: Path, users: int, messages: int) -> None:
    """Append to, read from and open a file that holds `messages`."""
    text = f"{messages:,} messages, {users:,} users"
    inbox = opened(folder, "full")
    await inbox.open()
    began = perf_counter()
    await fill(inbox, users, messages)
    show("filling it, seconds", None, None, perf_counter() - began, None)
    await append_cost(inbox, text, users)
    await append_cost(inbox, "   the same, with message ids", users, has_ids=True)
    await paced(inbox, users)
    await replay_cost(inbox)
    copy(folder, "full", "killed")  # the state after kill -9
    await inbox.close()
    for name in ("full", "killed"):
        inbox = opened(folder, name)
        began = perf_counter()
        await inbox.open()
        show(
            f"start, after {'a kill' if name == 'killed' else 'an orderly stop'}, seconds",
            None,
            None,
            perf_counter() - began,
            None,
        )
        if name == "killed":
            await append_cost(inbox, "   then, with no users cached", users)
            await replay_cost(inbox)
            began = perf_counter()
            await inbox.check()
            show(
                "check of the whole file, seconds",
                None,
                None,
                perf_counter() - began,
                None,
            )
        await inbox.close()
    size = (folder / "full").stat().st_size / 1e6
    show("size of the file, MB", size, None, None, None)


def copy(folder: Path, name: str, to: str) -> None:
    """Copy the files of a store that is open."""
    for file in folder.glob(f"{name}*"):
        shutil.copy(file, folder / file.name.replace(name, to))


def arguments() -> Iterator[int]:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--messages", type=int, default=1_000_000)
    given = parser.parse_args()
    yield from (given.users, given.messages)


def main() -> None:
    """Run all measurements in the folder for temporary files (TMPDIR)."""
    users, messages = arguments()
    print(
        f"Python {sys.version.split()[0]}, {os.cpu_count()} processors; microseconds:"
    )
    print(f"{'':52} cpu:   min     mean elapsed: min  mean")
    with TemporaryDirectory() as folder:
        asyncio.run(empty_files(Path(folder)))
        asyncio.run(full_file(Path(folder), users, messages))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    show("peak memory of this process, MB", peak, None, None, None)


if __name__ == "__main__":
    main()
