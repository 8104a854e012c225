"""
The clocks of the bridges of one store, which agree through the store.

Each bridge stores readings of its clock for the bridges that start later (clock.py). While
its clock is ahead of the server's, it judges ages by the server's time, because its own clock
may be wrong, and the other bridges' messages have the stamps of theirs.
"""

from typing import Final

from bridge.clock import SteadyClock
from bridge.inbox.redis.protocol import RedisConnection

_FIELD: Final = b"\x01clock"
_MICROSECONDS: Final = 1_000_000


async def resume_clock(
    clock: SteadyClock, connection: RedisConnection, prefix: str
) -> bool:
    """
    Continue from the reading stored last; return whether there was one.

    `prefix` is the prefix of the first tag.
    """
    (stored,) = await connection.ask(b"HMGET", f"{prefix}h", _FIELD)
    clock.resume(stored)
    await _compare(clock, connection)
    return stored is not None


async def store_clock(
    clock: SteadyClock, connection: RedisConnection, prefix: str
) -> None:
    """Compare the clock with the server's, and store a reading."""
    await _compare(clock, connection)
    await connection.ask(b"HSET", f"{prefix}h", _FIELD, clock.read().render())


async def _compare(clock: SteadyClock, connection: RedisConnection) -> None:
    info = await connection.info(b"server")
    clock.compare(int(info["server_time_usec"]) / _MICROSECONDS)
