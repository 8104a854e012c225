"""
Measure tracked messages: python -m tests.bench.receipts [--store sqlite] [--messages 100000]

For each store, 100,000 messages with `x-bridge-undelivered-after`, and as many plain ones, are
appended to two stores in alternating rounds. While the tracked ones wait, plain messages follow
in both, for the same users and for others. Prints the cost of each as the median of the ratios
of neighboring rounds in processor time, with that of the server of the store; then the size of
the store, the memory of a new process that has appended the same, and how long a start takes.
"""

import argparse
import asyncio
import gc
import secrets
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time, time

from bridge.cli.run import tune_garbage_collector
from bridge.core.message import Message
from bridge.core.message_options import MessageOptions, Tracking
from bridge.core.redis_address import parse_redis
from bridge.inbox.redis.store import RedisInbox
from bridge.inbox.sqlite.store import SqliteInbox
from tests.bench.keys import STORES, Store, open_store, server_cpu_s

BATCH = 100
USERS = 1000
ROUNDS = 10
WAIT_S = 3600.0
# Messages with the same headers share their options.
LATE = MessageOptions(
    tracking=Tracking(wants_receipt=False, undelivered_after_s=WAIT_S)
)
DATA = b'{"n":%d,"text":"' + b"x" * 180 + b'"}'


@dataclass
class Source:
    """Makes messages for some users in turn."""

    users: Iterable[str]
    is_tracked: bool = False

    def batches(self, messages: int) -> list[list[Message]]:
        """Return new messages in batches."""
        now_s = time()
        made = (
            Message(user, "message", DATA % number, now_s, secrets.token_hex(16))
            for number, user in enumerate(islice(self.users, messages), 10**8)
        )
        batches = [list(islice(made, BATCH)) for _ in range(messages // BATCH)]
        if self.is_tracked:
            for message in (each for batch in batches for each in batch):
                message.options = LATE
        return batches


def users(prefix: str) -> Iterable[str]:
    """Return names of users, in turn."""
    return cycle([f"{prefix}-{number}" for number in range(USERS)])


async def cpu_us(store: Store, batches: Sequence[list[Message]]) -> float:
    """Append, and return microseconds of processor time for each message."""
    gc.collect()
    server_s = await server_cpu_s(store) if isinstance(store, RedisInbox) else 0.0
    began_s = process_time()
    for messages in batches:
        await store.append(messages)
    took_s = process_time() - began_s
    if isinstance(store, RedisInbox):
        took_s += await server_cpu_s(store) - server_s
    return took_s * 1e6 / (len(batches) * BATCH)


async def ratio(
    text: str,
    sources: tuple[Source, Source],
    stores: tuple[Store, Store],
    messages: int,
) -> None:
    """Append to the first and the second store in turn, and print what the second cost."""
    costs: list[list[float]] = [[], []]
    for number in range(ROUNDS):
        for which in (0, 1) if number % 2 else (1, 0):
            batches = sources[which].batches(messages // ROUNDS)
            costs[which].append(await cpu_us(stores[which], batches))
    ratios = [second / first for first, second in zip(*costs, strict=True)]
    first, second = map(median, costs)
    print(
        f"  {text}: {median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f});"
        f" {first:.1f} and {second:.1f} us",
        flush=True,
    )


async def measure(name: str, folder: Path, messages: int) -> None:
    """Measure a store, and print the figures."""
    print(f"{name}: ratios, with {messages:,} tracked messages and without", flush=True)
    with ExitStack() as stack:
        plain = open_store(name, folder / "plain", stack)
        tracked = open_store(name, folder / "tracked", stack)
        stores = (plain, tracked)
        for store in stores:
            await store.open()
        sources = (Source(users("ann")), Source(users("ann"), is_tracked=True))
        await ratio("append tracked messages", sources, stores, messages)
        sizes = [await used_mb(store) for store in stores]
        for which, prefix in (("the same", "ann"), ("other", "bob")):
            sources = (Source(users(prefix)), Source(users(prefix)))
            text = f"append plain messages for {which} users while they wait"
            await ratio(text, sources, stores, messages)
        if None not in sizes:
            print(f"  size of the store: {show(sizes)} MB")
        for store in stores:
            await store.close()
        if name != "memory":
            print(f"  start: {show([await start_s(store) for store in stores])} s")


def show(pair: Sequence[float | None]) -> str:
    """Return the ratio of two figures, and both."""
    first, second = (each or 0.0 for each in pair)
    return f"{second / first:.2f}; {first:.2f} and {second:.2f}"


async def used_mb(store: Store) -> float | None:
    """Return the size of the store; ``None`` in memory."""
    usage = await store.usage()
    return None if usage is None else usage.used_bytes / 1e6


async def start_s(store: Store) -> float:
    """Return how long a start takes, until what is due can be published."""
    retention = store.retention
    if isinstance(store, SqliteInbox):
        again: Store = SqliteInbox(store.description.removeprefix("sqlite:"), retention)
    else:
        again = RedisInbox(parse_redis(store.description), retention)
    began_s = perf_counter()
    await again.open()
    assert not await again.pending_events(100)
    took_s = perf_counter() - began_s
    await again.close()
    return took_s


def memory_mb(name: str, folder: Path, messages: int, *, is_tracked: bool) -> float:
    """Append to a store, and return the growth of the memory of this process in MB."""

    async def fill() -> float:
        with ExitStack() as stack:
            store = open_store(name, folder / f"memory-{is_tracked}", stack)
            await store.open()
            source = Source(users("ann"), is_tracked=is_tracked)
            # Import, connect and allocate what does not depend on the number of messages.
            await cpu_us(store, source.batches(BATCH))
            before = resident_mb()
            for _ in range(0, messages, BATCH):
                await store.append(source.batches(BATCH)[0])
            gc.collect()
            grown = resident_mb() - before
            await store.close()
        return grown

    return asyncio.run(fill())


def resident_mb() -> float:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    """Measure the stores that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--store", choices=STORES, action="append")
    parser.add_argument("--messages", type=int, default=100_000)
    given = parser.parse_args()
    tune_garbage_collector()
    for name in given.store or STORES:
        with TemporaryDirectory() as folder:
            asyncio.run(measure(name, Path(folder), given.messages))
            if name == "redis":
                continue  # the process keeps nothing
            sizes = []
            for is_tracked in (False, True):
                with ProcessPoolExecutor(1, get_context("spawn")) as processes:
                    job = processes.submit(
                        memory_mb,
                        *(name, Path(folder), given.messages),
                        is_tracked=is_tracked,
                    )
                    sizes.append(job.result())
            print(f"  memory of the process: {show(sizes)} MB", flush=True)


if __name__ == "__main__":
    main()
