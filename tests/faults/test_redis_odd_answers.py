"""Redis says what it seldom says: the bridge waits, and goes on when that is over."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from time import time

import pytest

from bridge.core.message import Message
from bridge.core.redis_address import parse_redis
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.redis import connection as redis_link
from bridge.inbox.redis.cluster import Cluster
from bridge.inbox.redis.encoding import slot_of_tag, tag_names, tag_of
from bridge.inbox.redis.protocol import Link
from bridge.inbox.redis.server_info import server_facts
from bridge.inbox.redis.servers import ALL_TAGS, Tags
from bridge.inbox.redis.store import RedisInbox
from tests.conftest import SLOW_FACTOR, eventually
from tests.redis_server import RedisServer

RETENTION = Retention(max_messages=1000, max_age_s=1000, dedupe_s=60)


@asynccontextmanager
async def inbox_on(url: str) -> AsyncIterator[RedisInbox]:
    """Hand out the store as a bridge has it, open or not."""
    inbox = RedisInbox(parse_redis(url), RETENTION)
    try:
        with suppress(StoreUnavailableError):
            await inbox.open()
        yield inbox
    finally:
        await inbox.close()


def message(user: str, data: bytes) -> Message:
    """Return one without an id."""
    return Message(user, "message", data, time())


async def test_a_server_that_forgot_the_scripts_is_told_them_again(
    tmp_path: Path,
) -> None:
    """Whoever shares it may say SCRIPT FLUSH; nothing would ever be stored after that."""
    async with RedisServer.start(tmp_path) as server, inbox_on(server.url) as inbox:
        assert await inbox.append([message("ann", b"1")]) == [1]
        server.command("SCRIPT", "FLUSH")
        batch = [message("ann", b"2")]

        async def is_stored() -> bool:
            with suppress(StoreUnavailableError):
                return await inbox.append(batch) == [2]
            return False

        await eventually(is_stored)


async def test_a_server_that_refuses_the_beginning_is_tried_again(
    tmp_path: Path,
) -> None:
    """It may be mended; a bridge that gave up would have to be started again by hand."""
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


async def test_a_user_without_a_password_is_logged_in_as(tmp_path: Path) -> None:
    """Else the bridge works as another user, who may do more, or nothing."""
    async with RedisServer.start(tmp_path) as server:
        server.command("ACL", "SETUSER", "bridge", "on", "nopass", "~*", "&*", "+@all")
        server.command("ACL", "SETUSER", "default", "off")

        async with inbox_on(server.url.replace("://", "://bridge@")) as inbox:
            assert inbox.problem is None
            assert await inbox.append([message("ann", b"1")]) == [1]


async def test_nobody_waits_long_for_a_host_that_answers_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`bridge check` and `bridge inbox carry` have no other deadline for a connection."""
    monkeypatch.setattr(redis_link, "CONNECT_S", 0.2)
    with black_hole() as port:
        async with asyncio.timeout(20 * SLOW_FACTOR):
            with pytest.raises(StoreUnavailableError, match="no connection within"):
                await server_facts(parse_redis(f"redis://127.0.0.1:{port}"))


@contextmanager
def black_hole() -> Iterator[int]:
    """Hand out a port whose system drops what asks for one more connection."""
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


async def test_a_slot_that_goes_away_and_comes_back_is_heard_of_again(
    tmp_path: Path,
) -> None:
    """The node ends its subscriptions by itself, and the slots look as they did before."""
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


async def test_slots_that_come_while_a_node_is_greeted_are_greeted_too(
    tmp_path: Path,
) -> None:
    """Else windows of their users hear nothing: nobody has subscribed to them there."""
    greeted: list[Tags] = []
    may_go_on = asyncio.Event()
    may_go_on.set()

    async def greet(_link: Link, tags: Tags) -> None:
        greeted.append(tags)
        await may_go_on.wait()

    async def let_in(_link: Link) -> None: ...

    half, rest = ("0", "8191"), ("8192", "16383")
    options = {"cluster-enabled": "yes", "cluster-require-full-coverage": "no"}
    async with RedisServer.start(tmp_path, options=options) as server:
        server.command("CLUSTER", "ADDSLOTSRANGE", *half)
        address = parse_redis(f"redis+cluster://127.0.0.1:{server.port}")
        cluster = Cluster(address, pushed=lambda _: None, greet=greet, admit=let_in)
        running = asyncio.create_task(cluster.run())
        try:
            await eventually(lambda: len(greeted) == 1 and cluster.of(0).link)
            may_go_on.clear()
            server.command("CLIENT", "KILL", "TYPE", "normal")
            await eventually(lambda: len(greeted) == 2)
            server.command("CLUSTER", "ADDSLOTSRANGE", *rest)
            await eventually(lambda: "no master" not in str(cluster.problem))
            may_go_on.set()

            await eventually(lambda: greeted[-1] == ALL_TAGS)
            await eventually(lambda: cluster.problem is None)
        finally:
            running.cancel()
            await asyncio.wait({running})
