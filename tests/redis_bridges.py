"""Inboxes in Redis as several bridges use them, for tests."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import time

from bridge.core.message import Message, Stored
from bridge.core.redis_address import parse_redis
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.redis.store import RedisInbox
from bridge.inbox.redis.timing import DEFAULT_TIMING, RedisTiming
from tests.conftest import eventually
from tests.faults.suite.proxy import Proxy
from tests.redis_server import RedisServer, free_port

RETENTION = Retention(max_messages=100_000, max_age_s=1000, dedupe_s=60)


@dataclass
class BridgeInbox:
    """The inbox of one bridge, and what its subscriber received."""

    inbox: RedisInbox
    fed: list[Stored] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)

    async def append(self, messages: Sequence[Message]) -> list[int | None]:
        """Append like the pipeline: repeat the same sequence until it is stored."""
        while True:
            try:
                return await self.inbox.append(messages)
            except StoreUnavailableError:
                await asyncio.sleep(0.02)

    async def texts(self, user: str) -> list[bytes]:
        """Return the data of all messages of `user`."""
        page = await self.inbox.read(
            user, after=0, max_messages=100_000, max_bytes=1 << 26
        )
        return [stored.message.data for stored in page.messages]

    def received(self, user: str) -> list[bytes]:
        """Return the data that the feed delivered for `user`."""
        return [s.message.data for s in self.fed if s.message.user == user]

    async def until_usable(self) -> None:
        """Wait until the inbox reports no problem."""
        await eventually(lambda: self.inbox.problem is None)


@asynccontextmanager
async def bridge_on(
    url: str, *, namespace: str = "bridge", timing: RedisTiming = DEFAULT_TIMING
) -> AsyncIterator[BridgeInbox]:
    """Open the inbox of one more bridge."""
    inbox = RedisInbox(parse_redis(url), RETENTION, namespace=namespace, timing=timing)
    bridge = BridgeInbox(inbox)
    inbox.subscribe(bridge.fed.extend, bridge.renewed.extend)
    try:
        await inbox.open()
        yield bridge
    finally:
        await inbox.close()


@asynccontextmanager
async def cut_off(server: RedisServer) -> AsyncIterator[tuple[Proxy, str]]:
    """Open a proxy between a bridge and its server."""
    port = free_port()
    async with Proxy.open(port=port, target_port=server.port) as proxy:
        yield proxy, f"redis://127.0.0.1:{port}"


def messages(user: str, *data: bytes, message_id: str | None = None) -> list[Message]:
    """Return a batch for one user."""
    return [Message(user, "message", each, time(), message_id) for each in data]


def of_each(users: Sequence[str], data: bytes) -> list[Message]:
    """Return a batch with one message for each user."""
    return [message for user in users for message in messages(user, data)]
