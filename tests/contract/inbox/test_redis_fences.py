"""Fences in Redis, on one server and in a cluster: whose turn it is to store."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import time

import pytest

from bridge.core.message import Message
from bridge.core.redis_address import parse_redis
from bridge.errors import OwnershipLostError
from bridge.inbox.contract import Retention
from bridge.inbox.redis.store import RedisInbox
from tests.contract.inbox import conftest
from tests.redis_server import RedisServer

RETENTION = Retention(max_messages=1000, max_age_s=1000, dedupe_s=60)
QUEUE = "bridge.inbound.0"
# Under different tags: in a cluster that is two steps.
ANN, BOB = "ann", "bob"


class Shared:
    """A store that several bridges have open, each with a clock of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._namespace = f"t{secrets.token_hex(4)}"

    @asynccontextmanager
    async def bridge(self, *, late_s: float = 0.0) -> AsyncIterator[RedisInbox]:
        """Open it as one more bridge does, whose clock is `late_s` behind."""
        inbox = RedisInbox(
            parse_redis(self._url),
            RETENTION,
            namespace=self._namespace,
            now=lambda: time() - late_s,
        )
        try:
            await inbox.open()
            yield inbox
        finally:
            await inbox.close()

    async def forget_claims(self, inbox: RedisInbox) -> None:
        """Take away which token was given out last, and no more."""
        (host,) = parse_redis(self._url).hosts
        server = RedisServer(Path(), port=host.port, options={})
        words = "HDEL", f"{inbox.prefixes[0]}h", f"\1claim {QUEUE}"
        assert await asyncio.to_thread(server.command, *words) == ":1"


@pytest.fixture(params=["redis", "redis_cluster"])
def shared(request: pytest.FixtureRequest) -> Shared:
    """Return a store that nobody has used, of each kind."""
    return Shared(getattr(conftest, request.param).url)


def batch(*users: str, data: bytes = b"1") -> list[Message]:
    return [Message(user, "message", data, time()) for user in users]


async def count(inbox: RedisInbox, user: str) -> int:
    return (await inbox.state(user)).last


async def test_tokens_grow_whatever_clocks_say(shared: Shared) -> None:
    """The bridge that comes next may be a minute behind the one before."""
    async with shared.bridge() as one, shared.bridge(late_s=60) as other:
        claimed = [await each.claim(QUEUE) for each in (one, other, one, other)]

        tokens = [fence.token for fence in claimed]
        assert tokens == sorted(set(tokens))
        assert {fence.queue for fence in claimed} == {QUEUE}


async def test_an_append_under_a_smaller_token_stores_nothing(shared: Shared) -> None:
    """It comes from a bridge that lost the queue: what it brings is there already."""
    async with shared.bridge() as one, shared.bridge() as other:
        old = await one.claim(QUEUE)
        assert await one.append(batch(ANN, BOB), fences=[old]) == [1, 1]
        new = await other.claim(QUEUE)
        assert await other.append(batch(ANN, BOB), fences=[new]) == [2, 2]

        with pytest.raises(OwnershipLostError) as refusal:
            await one.append(batch(ANN, BOB), fences=[old])

        assert refusal.value.queue == QUEUE
        assert [await count(one, user) for user in (ANN, BOB)] == [2, 2]
        assert one.problem is None  # of the store, there is none
        assert await other.append(batch(BOB), fences=[new]) == [3]


async def test_who_was_refused_goes_on_with_a_new_token(shared: Shared) -> None:
    """Its queue came back to it, as they do."""
    async with shared.bridge() as one, shared.bridge() as other:
        old = await one.claim(QUEUE)
        await other.append(batch(ANN), fences=[await other.claim(QUEUE)])
        with pytest.raises(OwnershipLostError):
            await one.append(batch(ANN), fences=[old])

        assert await one.append(batch(ANN), fences=[await one.claim(QUEUE)]) == [2]


async def test_a_claim_alone_keeps_nobody_out(shared: Shared) -> None:
    """It may come from a bridge that woke up just now, and has no queue any more."""
    async with shared.bridge() as one, shared.bridge() as other:
        in_use = await one.claim(QUEUE)
        await one.append(batch(ANN), fences=[in_use])
        await other.claim(QUEUE)

        assert await one.append(batch(ANN), fences=[in_use]) == [2]


async def test_queues_are_fenced_apart(shared: Shared) -> None:
    """A bridge has some shards and loses others."""
    async with shared.bridge() as one, shared.bridge() as other:
        mine = await one.claim("bridge.inbound.1")
        lost = await one.claim(QUEUE)
        await other.append(batch(ANN), fences=[await other.claim(QUEUE)])

        assert await one.append(batch(ANN), fences=[mine]) == [2]
        with pytest.raises(OwnershipLostError):
            await one.append(batch(ANN), fences=[mine, lost])
        assert await count(one, ANN) == 2


async def test_what_was_stored_in_time_is_said_again_however_late(
    shared: Shared,
) -> None:
    """Its answer was lost. It is no append any more, only a question."""
    async with shared.bridge() as one, shared.bridge() as other:
        old, messages = await one.claim(QUEUE), batch(ANN)
        asking = asyncio.ensure_future(one.append(messages, fences=[old]))
        await asyncio.sleep(0)  # it is sent, and nobody hears the answer
        asking.cancel()
        await asyncio.wait({asking})
        assert await other.append(batch(ANN), fences=[await other.claim(QUEUE)]) == [2]

        assert await one.append(messages, fences=[old]) == [1]
        assert await count(one, ANN) == 2


async def test_a_store_that_lost_the_last_claim_shuts_nobody_out_for_long(
    shared: Shared,
) -> None:
    """
    The master died before its replica knew of a claim; the next clock is behind.

    One batch is refused; the next claim is above what it was refused for.
    """
    async with shared.bridge() as one, shared.bridge(late_s=60) as other:
        await one.append(batch(ANN), fences=[await one.claim(QUEUE)])
        await shared.forget_claims(one)

        too_small = await other.claim(QUEUE)
        with pytest.raises(OwnershipLostError):
            await other.append(batch(ANN), fences=[too_small])

        again = await other.claim(QUEUE)
        assert await other.append(batch(ANN), fences=[again]) == [2]
