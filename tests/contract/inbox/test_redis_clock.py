"""Redis: sweeping without times to live, and bridges with different clocks."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import time

from bridge.clock import SteadyClock
from bridge.core.message import Message
from bridge.core.redis_address import parse_redis
from bridge.inbox.contract import Retention
from bridge.inbox.redis.encoding import key_prefixes, tag_of
from bridge.inbox.redis.store import RedisInbox
from tests.contract.inbox.files import Clock
from tests.redis_server import RedisServer

RETENTION = Retention(max_messages=100, max_age_s=1000, dedupe_s=60)


@asynccontextmanager
async def opened(
    server: RedisServer, namespace: str, clock: SteadyClock
) -> AsyncIterator[RedisInbox]:
    """Open the store as one more bridge with a clock of its own."""
    address = parse_redis(server.url)
    inbox = RedisInbox(address, RETENTION, namespace=namespace, clock=clock)
    await inbox.open()
    try:
        yield inbox
    finally:
        await inbox.close()


async def test_a_sweep_deletes_old_messages_of_all_users(
    redis_server: RedisServer, clock: Clock
) -> None:
    """Also if a tag has more users than one call handles."""
    namespace = f"t{secrets.token_hex(4)}"
    names = [f"user-{n}" for n in range(40_000)]
    users = [name for name in names if tag_of(name) == 7][:120] + names[:10]

    async with opened(redis_server, namespace, clock.steady) as inbox:
        for user in users:
            message = Message(user, "message", b"1", clock.now_s, "id")
            await inbox.append([message])
        clock.now_s += 1001
        await inbox.sweep()

        keys = [
            f"{key_prefixes(namespace, 0)[tag_of(user)]}{kind}:{user}"
            for user in users
            for kind in "mi"
        ]
        count = await asyncio.to_thread(redis_server.command, "EXISTS", *keys)
        state = await inbox.state(users[0])

    assert count == ":0"
    assert (state.first, state.last) == (1025, 1024)


async def test_the_clock_of_the_server_deletes_no_inbox(
    redis_server: RedisServer, clock: Clock
) -> None:
    """A time to live would end with a jump of that clock; earlier versions set one."""
    namespace = f"t{secrets.token_hex(4)}"
    prefix = key_prefixes(namespace, 0)[tag_of("alice")]

    async with opened(redis_server, namespace, clock.steady) as inbox:
        message = Message("alice", "message", b"1", clock.now_s, "id")
        await inbox.append([message])
        redis_server.command("PEXPIRE", f"{prefix}m:alice", "100000")
        await inbox.sweep()

    lives = [redis_server.command("PTTL", f"{prefix}{kind}:alice") for kind in "mi"]
    assert lives == [":-1", ":-1"]


async def test_a_bridge_that_is_ahead_of_the_server_expires_no_messages_of_others(
    redis_server: RedisServer,
) -> None:
    """It judges them by the server's clock, from its start on."""
    namespace = f"t{secrets.token_hex(4)}"
    ahead = SteadyClock(wall=lambda: time() + 2000)
    now_s = time()

    async with (
        opened(redis_server, namespace, SteadyClock()) as right,
        opened(redis_server, namespace, ahead) as wrong,
    ):
        await right.append(
            [
                Message("alice", "message", b"1", now_s),
                Message("alice", "message", b"2", now_s, deadline_s=now_s + 600),
            ]
        )
        await wrong.sweep()
        await wrong.append([Message("alice", "message", b"3", now_s + 2000)])
        page = await wrong.read("alice", after=0, max_messages=9, max_bytes=999)

    assert [each.message.data for each in page.messages] == [b"1", b"2", b"3"]
