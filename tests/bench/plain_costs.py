"""
What a plain message costs to store and to emit, without a broker and windows.

Run by `older.py` in a process of its own, with the code of any checkout: it may use only what
older commits have, too.
"""

import asyncio
import statistics
import sys
from tempfile import TemporaryDirectory
from time import process_time, time
from typing import Any

from bridge.clock import SteadyClock
from bridge.core.identity import Identity
from bridge.core.message import Message, Stored
from bridge.core.redis_address import parse_redis
from bridge.inbox.contract import Retention
from bridge.inbox.memory.store import MemoryInbox
from bridge.inbox.redis.store import RedisInbox
from bridge.inbox.sqlite.store import SqliteInbox
from bridge.metrics import Metrics
from bridge.sockets.rooms import Rooms
from bridge.sockets.window import Window

USERS = BATCH = 100
DATA = b'{"a":"' + b"x" * 192 + b'"}'
RETENTION = Retention(max_messages=1000, max_age_s=7 * 86400, dedupe_s=60)


class Transport:
    """Writes nothing."""

    def get_write_buffer_size(self) -> int:
        """Nothing waits."""
        return 0

    def write(self, data: bytes) -> None:
        """Do nothing."""


class Session:
    """A session over such a transport."""

    def __init__(self) -> None:
        self.transport = Transport()


def batches(count: int, offsets: dict[str, int], per_user: int) -> list[list[Stored]]:
    """Return batches of messages with their offsets, `per_user` of each user in a row."""
    now_s, found = time(), []
    for _ in range(count):
        batch = []
        for number in range(BATCH):
            user = f"user-{number // per_user}"
            offset = offsets[user] = offsets.get(user, 0) + 1
            batch.append(Stored(Message(user, "message", DATA, now_s), offset))
        found.append(batch)
    return found


def emit_us(per_user: int) -> float:
    """Return what it costs to emit a message to a window; the least of many batches."""
    options: dict[str, Any] = {"outbound_bytes": 1 << 20, "clock": SteadyClock()}
    rooms = Rooms(Metrics(), catch_up=lambda *_: None, **options)
    for number in range(USERS):
        session: Any = Session()
        window = Window(
            f"sid-{number}",
            session,
            Identity(f"user-{number}", None),
            epoch="abcdef0123456789",
            offset=0,
            delivered=0,
            has_manual_acks=False,
            connected_s=0,
        )
        rooms.reserve(window.user, at_most=1)
        rooms.join(window)
        rooms.release(window.user)
        rooms.open_gate(window)
    offsets: dict[str, int] = {}
    costs = []
    for _ in range(150):
        some = batches(20, offsets, per_user)
        began_s = process_time()
        for batch in some:
            rooms.emit(batch)
        costs.append((process_time() - began_s) / len(some) / BATCH * 1e6)
    return min(costs)


async def append_us(inbox: MemoryInbox | SqliteInbox | RedisInbox) -> float:
    """Return what it costs to append a message; the median of many batches."""
    await inbox.open()
    costs = []
    for _ in range(15):
        some = [[each.message for each in batch] for batch in batches(40, {}, 1)]
        began_s = process_time()
        for batch in some:
            await inbox.append(batch)
        costs.append((process_time() - began_s) / len(some) / BATCH * 1e6)
    await inbox.close()
    return statistics.median(costs)


def measure(work: str, argument: str = "") -> float:
    """Return the microseconds of processor time that a message takes."""
    if work == "emit":
        return emit_us(int(argument))
    if work == "memory":
        return asyncio.run(append_us(MemoryInbox(RETENTION)))
    if work == "redis":
        return asyncio.run(append_us(RedisInbox(parse_redis(argument), RETENTION)))
    with TemporaryDirectory() as folder:
        return asyncio.run(append_us(SqliteInbox(f"{folder}/inbox.sqlite3", RETENTION)))


if __name__ == "__main__":
    print(measure(*sys.argv[1:]))
