"""Background writes to Redis: `flush` waits for running writes, and failed ones are kept."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest

from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.background_writes import BackgroundWrites
from bridge.inbox.redis.encoding import key_prefixes, tag_of
from bridge.inbox.redis.servers import RedisServers
from tests.conftest import eventually

USERS = [f"user-{number}" for number in range(1200)]


class FakeServer:
    """A server that records the written marks while it is available."""

    def __init__(self) -> None:
        self.written: dict[str, int] = {}
        self.deleted: list[bytes] = []
        self.is_away = False
        self.was_asked = asyncio.Event()
        self.may_reply = asyncio.Event()
        self.may_reply.set()

    async def write_marks(self, *arguments: Any) -> None:
        """Answer the script MARK."""
        await self._reply()
        for start in range(0, len(arguments), 4):
            _, user, _, offset = arguments[start : start + 4]
            self.written[user] = offset

    async def ask(self, *arguments: Any) -> None:
        """Answer DEL."""
        await self._reply()
        self.deleted += arguments[1:]

    async def _reply(self) -> None:
        self.was_asked.set()
        await self.may_reply.wait()
        if self.is_away:
            raise StoreUnavailableError("redis", "it is away")


class FakeServers:
    """Several servers; the tags are assigned round-robin."""

    def __init__(self, *servers: FakeServer) -> None:
        self.connections: Sequence[FakeServer] = servers
        self.prefixes = key_prefixes("bridge", 0)

    def for_tag(self, tag: int) -> FakeServer:
        """Return the server of the tag."""
        return self.connections[tag % len(self.connections)]

    async def run_script(self, _script: object, tag: int, *arguments: Any) -> None:
        """Run the script MARK."""
        await self.for_tag(tag).write_marks(*arguments)


@asynccontextmanager
async def running(servers: FakeServers) -> AsyncIterator[BackgroundWrites]:
    """Run the background writes as a store does."""
    writes = BackgroundWrites(cast("RedisServers", servers))
    task = asyncio.create_task(writes.run())
    try:
        yield writes
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_flush_waits_for_marks_in_flight() -> None:
    """The connections close right after it; lost marks mean repeated messages."""
    server = FakeServer()
    server.may_reply.clear()
    async with running(FakeServers(server)) as writes:
        for user in USERS:
            writes.mark(user, "epoch", 1)
        await server.was_asked.wait()

        flushing = asyncio.create_task(writes.flush())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not flushing.done()
        server.may_reply.set()
        await flushing

        assert set(server.written) == set(USERS)


async def test_an_unavailable_server_does_not_hold_up_marks_on_the_others() -> None:
    """Each master of a cluster can fail alone."""
    away, available = FakeServer(), FakeServer()
    away.is_away = True
    async with running(FakeServers(away, available)) as writes:
        for user in USERS:
            writes.mark(user, "epoch", 1)
        writes.forget_trial(b"key")
        with pytest.raises(StoreUnavailableError):
            await writes.flush()

        on_available = {user for user in USERS if tag_of(user) % 2}
        assert set(available.written) == on_available
        assert all(
            (writes.unwritten_mark(user, "epoch") == 1) is (user not in on_available)
            for user in USERS
        )

        away.is_away = False
        await eventually(lambda: set(away.written) == set(USERS) - on_available)
        assert len(away.deleted) == 1
