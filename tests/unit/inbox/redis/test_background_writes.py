"""Background writes to Redis: `flush` waits for running writes, and failed ones are kept."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any, cast

import pytest

from bridge.core.message import Message
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.background_writes import BackgroundWrites
from bridge.inbox.redis.encoding import key_prefixes, tag_of
from bridge.inbox.redis.receipts import RedisReceipts
from bridge.inbox.redis.servers import RedisServers
from tests.conftest import eventually

USERS = [f"user-{number}" for number in range(1200)]


class FakeServer:
    """A server that records the written marks while it is available."""

    def __init__(self) -> None:
        self.written: dict[str, int] = {}
        self.ages_s: dict[str, float] = {}
        self.deleted: list[bytes] = []
        self.is_away = False
        self.was_asked = asyncio.Event()
        self.may_reply = asyncio.Event()
        self.may_reply.set()

    async def write_marks(self, *arguments: Any) -> list[int]:
        """Answer the script MARK: no receipt is open."""
        await self._reply()
        for start in range(0, len(arguments), 5):
            _, user, _, offset, ago_s = arguments[start : start + 5]
            self.written[user] = offset
            self.ages_s[user] = float(ago_s)
        return [0] * (len(arguments) // 5)

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

    async def run_script(self, _script: object, tag: int, *arguments: Any) -> list[int]:
        """Run the script MARK."""
        return await self.for_tag(tag).write_marks(*arguments)


class Receipts(RedisReceipts):
    """Receipts on fake servers."""

    def __init__(self, servers: FakeServers) -> None:
        super().__init__(
            cast("RedisServers", servers),
            rules=tuple,
            real_s=lambda: 0.0,
            is_cluster=False,
            gone_s=15.0,
        )


def message(user: str) -> Message:
    """Return a message that windows receive."""
    return Message(user, "message", b"1", 0.0)


@asynccontextmanager
async def running(
    servers: FakeServers,
    *,
    receipts: Receipts | None = None,
    real_s: Callable[[], float] = monotonic,
) -> AsyncIterator[BackgroundWrites]:
    """Run the background writes as a store does."""
    writes = BackgroundWrites(
        cast("RedisServers", servers),
        receipts or Receipts(servers),
        rules=tuple,
        real_s=real_s,
    )
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


async def test_marks_of_users_with_receipts_are_written_with_their_times() -> None:
    """What was delivered in time counts as such, however long the write takes."""
    server, now_s = FakeServer(), 100.0
    servers = FakeServers(server)
    receipts = Receipts(servers)
    receipts.note_received(message("ann"))
    woken: list[int] = []
    receipts.on_events(lambda: woken.append(1))
    server.is_away = True
    async with running(servers, receipts=receipts, real_s=lambda: now_s) as writes:
        writes.mark("ann", "epoch", 1)
        await eventually(server.was_asked.is_set)
        now_s = 107.0
        server.is_away = False
        await writes.flush()

        assert (server.written, server.ages_s) == ({"ann": 1}, {"ann": 7.0})
        assert woken == [1]
        assert not receipts.users


async def test_a_mark_after_the_last_receipt_is_not_lost() -> None:
    """The user had receipts when the marks before it moved."""
    server = FakeServer()
    servers = FakeServers(server)
    receipts = Receipts(servers)
    receipts.note_received(message("ann"))
    async with running(servers, receipts=receipts) as writes:
        writes.mark("ann", "epoch", 1)
        receipts.users.clear()
        writes.mark("ann", "epoch", 2)
        await writes.flush()

        assert server.written == {"ann": 2}


async def test_a_message_that_arrives_before_the_reply_to_a_mark_is_tracked() -> None:
    """The script did not know it. Its mark must be timed, and its windows asked at once."""
    server = FakeServer()
    servers = FakeServers(server)
    receipts = Receipts(servers)
    receipts.note_received(message("ann"))
    server.may_reply.clear()
    async with running(servers, receipts=receipts) as writes:
        writes.mark("ann", "epoch", 1)
        await server.was_asked.wait()
        receipts.note_received(message("ann"))
        server.may_reply.set()
        await writes.flush()

        assert "ann" in receipts.users
        writes.mark("ann", "epoch", 2)
        await writes.flush()
        assert "ann" not in receipts.users
