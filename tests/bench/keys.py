"""
Measure messages with keys: python -m tests.bench.keys [--store sqlite] [--updates 1000000]

For each store, 1,000 keys of 100 users are updated in batches of 100 until there were a
million updates. Between them as many messages without keys go to a second store. Prints the
size of the store (of the file, or the memory of the process or server) after each tenth, which
must stay flat, and the cost of an append, as the median of the ratios of neighboring rounds.
"""

import argparse
import asyncio
import resource
import secrets
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time, time

from bridge.core.message import Message
from bridge.core.message_options import MessageOptions
from bridge.core.redis_address import parse_redis
from bridge.inbox.contract import Retention
from bridge.inbox.memory.store import MemoryInbox
from bridge.inbox.redis.store import RedisInbox
from bridge.inbox.sqlite.store import SqliteInbox
from tests.redis_server import RedisServer

Store = MemoryInbox | SqliteInbox | RedisInbox
STORES = ("memory", "sqlite", "redis")
BATCH = 100
ROUND_BATCHES = 100
USERS, KEYS = 100, 10  # keys of each user
RETENTION = Retention(max_messages=1000, max_age_s=7 * 86400, dedupe_s=60)
DATA = b'{"job":"export","done":1234,"of":5678,"state":"running"}'
# Each user's keys in turn.
PLACES = cycle(
    [
        (f"user-{user}", MessageOptions(key=f"job-{key}"))
        for key in range(KEYS)
        for user in range(USERS)
    ]
)


def batch(*, has_keys: bool, has_ids: bool) -> list[Message]:
    """Return the next messages, of all users in turn."""
    now_s = time()
    return [
        Message(
            *(user, "progress", DATA, now_s),
            id=secrets.token_hex(16) if has_ids else None,
            options=options if has_keys else None,
        )
        for user, options in islice(PLACES, BATCH)
    ]


async def append(store: Store, batches: Sequence[list[Message]]) -> tuple[float, float]:
    """Append, and return microseconds of CPU and of time for each message."""
    began_cpu, began = process_time(), perf_counter()
    for messages in batches:
        await store.append(messages)
    messages_m = len(batches) * BATCH / 1e6
    return (
        (process_time() - began_cpu) / messages_m,
        (perf_counter() - began) / messages_m,
    )


async def measure(name: str, folder: Path, updates: int, *, has_ids: bool) -> None:
    """Update keys in one store, append to a second one, and print the figures."""
    with ExitStack() as stack:
        keyed, plain = (
            open_store(name, folder / each, stack) for each in ("keyed", "plain")
        )
        for store in (keyed, plain):
            await store.open()
        servers_s = [0.0, 0.0]
        sizes: list[str] = []
        ratios: list[tuple[float, float]] = []
        rounds = updates // (BATCH * ROUND_BATCHES)
        for number in range(rounds):
            costs = []
            for store, has_keys in ((keyed, True), (plain, False)):
                batches = [
                    batch(has_keys=has_keys, has_ids=has_ids)
                    for _ in range(ROUND_BATCHES)
                ]
                costs.append(await append(store, batches))
            (keyed_cpu, keyed_wall), (plain_cpu, plain_wall) = costs
            ratios.append((keyed_cpu / plain_cpu, keyed_wall / plain_wall))
            if (number + 1) * 10 % rounds < 10:
                await keyed.sweep()
                sizes.append(f"{await size_mb(keyed):.1f}")
        if isinstance(keyed, RedisInbox) and isinstance(plain, RedisInbox):
            servers_s = [await server_cpu_s(each) for each in (keyed, plain)]
        cpu, wall = (statistics.median(each) for each in zip(*ratios, strict=True))
        ids = "with ids" if has_ids else "without ids"
        print(
            f"{name:7} {ids:11}  cost of an append with a key: {wall:.2f} x the time,"
            f" {cpu:.2f} x the CPU of the process; last round: {keyed_wall:.1f} and"
            f" {plain_wall:.1f} us; CPU of the servers {servers_s[0]:.2f} and"
            f" {servers_s[1]:.2f} s; MB after each tenth: {' '.join(sizes)}",
            flush=True,
        )
        for store in (keyed, plain):
            await store.close()


def open_store(name: str, folder: Path, stack: ExitStack) -> Store:
    """Return a store in an empty folder; a server for it is started."""
    folder.mkdir()
    if name == "memory":
        return MemoryInbox(RETENTION)
    if name == "sqlite":
        return SqliteInbox(str(folder / "inbox.sqlite3"), RETENTION)
    server = stack.enter_context(RedisServer.started(folder, is_durable=False))
    return RedisInbox(parse_redis(server.url), RETENTION)


async def size_mb(store: Store) -> float:
    """Return the size of the store; in memory, the largest one of the process."""
    usage = await store.usage()
    if usage is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return usage.used_bytes / 1e6


async def server_cpu_s(inbox: RedisInbox) -> float:
    """Return the CPU time that the server of a store has used."""
    address = inbox.description.removeprefix("redis://")
    host, _, port = address.partition("/")[0].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"INFO cpu\r\nQUIT\r\n")
    found = (await reader.read()).decode()
    writer.close()
    names = ("used_cpu_sys:", "used_cpu_user:")
    values = [line for line in found.split() if line.startswith(names)]
    return sum(float(line.partition(":")[2]) for line in values)


def main() -> None:
    """Measure the stores that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--store", choices=STORES, action="append")
    parser.add_argument("--updates", type=int, default=1_000_000)
    parser.add_argument("--ids", action="store_true", help="every message has an id")
    options = parser.parse_args()
    for name in options.store or STORES:
        with TemporaryDirectory() as folder:
            asyncio.run(
                measure(name, Path(folder), options.updates, has_ids=options.ids)
            )


if __name__ == "__main__":
    main()
