"""Rare replies of Redis: the bridge waits, and resumes when the cause is gone."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from time import time

import pytest

from bridge.clock import SteadyClock
from bridge.core.message import Message
from bridge.core.redis_address import parse_redis
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.redis.cluster import RedisCluster
from bridge.inbox.redis.connection_setup import ConnectionSetup
from bridge.inbox.redis.encoding import (
    ALL_TAGS,
    Tags,
    key_prefixes,
    slot_of_tag,
    tag_names,
    tag_of,
)
from bridge.inbox.redis.feed import Feed
from bridge.inbox.redis.protocol import RedisConnection
from bridge.inbox.redis.revocations import RedisRevocations
from bridge.inbox.redis.server_info import server_facts
from bridge.inbox.redis.store import RedisInbox
from bridge.inbox.redis.timing import DEFAULT_TIMING, RedisTiming
from tests.conftest import SLOW_FACTOR, eventually
from tests.redis_server import RedisServer

RETENTION = Retention(max_messages=1000, max_age_s=1000, dedupe_s=60)


@asynccontextmanager
async def inbox_on(url: str) -> AsyncIterator[RedisInbox]:
    """Open the store as a bridge does, whether that succeeds or not."""
    inbox = RedisInbox(parse_redis(url), RETENTION)
    try:
        with suppress(StoreUnavailableError):
            await inbox.open()
        yield inbox
    finally:
        await inbox.close()


def message(user: str, data: bytes) -> Message:
    """Return a message without an id."""
    return Message(user, "message", data, time())


async def test_the_scripts_are_loaded_again_after_script_flush(
    tmp_path: Path,
) -> None:
    """Another client of the server may run it; every append would fail from then on."""
    async with RedisServer.start(tmp_path) as server, inbox_on(server.url) as inbox:
        assert await inbox.append([message("ann", b"1")]) == [1]
        server.command("SCRIPT", "FLUSH")
        batch = [message("ann", b"2")]

        async def is_stored() -> bool:
            with suppress(StoreUnavailableError):
                return await inbox.append(batch) == [2]
            return False

        await eventually(is_stored)


async def test_the_bridge_keeps_trying_a_server_that_refuses_the_setup_of_a_connection(
    tmp_path: Path,
) -> None:
    """An administrator can resolve it; the bridge must not need a restart then."""
    more = tmp_path / "more.conf"
    more.write_text('rename-command INFO ""\n')
    options = {"include": str(more)}
    async with (
        RedisServer.start(tmp_path / "redis", options=options) as server,
        inbox_on(server.url) as inbox,
    ):
        assert "unknown command" in str(inbox.problem)
        with pytest.raises(StoreUnavailableError):  # as `bridge check` asks
            await server_facts(parse_redis(server.url))

        more.write_text("")
        await asyncio.to_thread(server.restart)

        await eventually(lambda: inbox.problem is None)
        assert await inbox.append([message("ann", b"1")]) == [1]


async def test_a_user_without_a_password_logs_in(tmp_path: Path) -> None:
    """Without AUTH the bridge would be the default user, with other permissions."""
    async with RedisServer.start(tmp_path) as server:
        server.command("ACL", "SETUSER", "bridge", "on", "nopass", "~*", "&*", "+@all")
        server.command("ACL", "SETUSER", "default", "off")

        async with inbox_on(server.url.replace("://", "://bridge@")) as inbox:
            assert inbox.problem is None
            assert await inbox.append([message("ann", b"1")]) == [1]


async def test_a_connection_to_a_host_that_drops_packets_times_out() -> None:
    """`bridge check` and `bridge inbox migrate` have no other timeout for a connection."""
    timing = RedisTiming(connect_s=0.2)
    with black_hole() as port:
        async with asyncio.timeout(20 * SLOW_FACTOR):
            with pytest.raises(StoreUnavailableError, match="no connection within"):
                await server_facts(
                    parse_redis(f"redis://127.0.0.1:{port}"), timing=timing
                )


@contextmanager
def black_hole() -> Iterator[int]:
    """Yield a port whose backlog is full, so that the kernel drops new connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        try:
            for each in waiting:
                each.settimeout(0)
                each.connect_ex(("127.0.0.1", port))
            yield port
        finally:
            for each in waiting:
                each.close()


async def test_a_slot_that_leaves_and_returns_is_subscribed_to_again(
    tmp_path: Path,
) -> None:
    """The node ends its subscriptions, and then reports the same slots as before."""
    fed: list[bytes] = []
    options = {"cluster-enabled": "yes"}
    async with RedisServer.start(tmp_path, options=options) as server:
        server.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        await asyncio.to_thread(
            server.wait_until, "cluster_state:ok", "CLUSTER", "INFO"
        )
        async with inbox_on(f"redis+cluster://127.0.0.1:{server.port}") as inbox:
            inbox.subscribe(lambda found: fed.extend(one.message.data for one in found))
            await eventually(lambda: inbox.problem is None)
            await inbox.follow("ann")
            slot = str(slot_of_tag(tag_names()[tag_of("ann")]))
            server.command("CLUSTER", "DELSLOTS", slot)
            server.command("CLUSTER", "ADDSLOTS", slot)
            batch = [message("ann", b"1")]

            async def is_stored() -> bool:
                with suppress(StoreUnavailableError):
                    return await inbox.append(batch) == [1]
                return False

            await eventually(is_stored)
            await eventually(lambda: fed[-1:] == [b"1"])


async def test_slots_that_arrive_during_the_setup_of_a_connection_are_set_up_too(
    tmp_path: Path,
) -> None:
    """Without a subscription the windows of their users would receive nothing."""
    prepared: list[Tags] = []
    may_proceed = asyncio.Event()
    may_proceed.set()

    class SlowSetup(ConnectionSetup):
        async def prepare(self, connection: RedisConnection, tags: Tags) -> None:
            del connection
            prepared.append(tags)
            await may_proceed.wait()

        async def admit(self, connection: RedisConnection) -> None:
            """Admit every bridge."""

    half, rest = ("0", "8191"), ("8192", "16383")
    options = {"cluster-enabled": "yes", "cluster-require-full-coverage": "no"}
    async with RedisServer.start(tmp_path, options=options) as server:
        server.command("CLUSTER", "ADDSLOTSRANGE", *half)
        address = parse_redis(f"redis+cluster://127.0.0.1:{server.port}")
        prefixes = key_prefixes("bridge", 0)
        clock = SteadyClock()
        revocations = RedisRevocations(prefixes, clock, is_cluster=True)
        feed = Feed("redis", prefixes, revocations, is_cluster=True, subscribe_s=1)
        setup = SlowSetup(address, prefixes, feed, revocations, clock)
        cluster = RedisCluster(address, setup, DEFAULT_TIMING)
        running = asyncio.create_task(cluster.run())
        try:
            await eventually(
                lambda: len(prepared) == 1 and cluster.for_tag(0).connection
            )
            may_proceed.clear()
            server.command("CLIENT", "KILL", "TYPE", "normal")
            await eventually(lambda: len(prepared) == 2)
            server.command("CLUSTER", "ADDSLOTSRANGE", *rest)
            await eventually(lambda: "no master" not in str(cluster.problem))
            may_proceed.set()

            await eventually(lambda: prepared[-1] == ALL_TAGS)
            await eventually(lambda: cluster.problem is None)
        finally:
            running.cancel()
            await asyncio.wait({running})
