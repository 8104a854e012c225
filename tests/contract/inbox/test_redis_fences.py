"""Fencing tokens in Redis, on one server and in a cluster."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import time

import pytest

from bridge.clock import SteadyClock
from bridge.core.message import Message
from bridge.core.redis_address import parse_redis
from bridge.errors import OwnershipLostError
from bridge.inbox.contract import Retention
from bridge.inbox.redis.store import RedisInbox
from tests.contract.inbox import conftest
from tests.redis_server import RedisServer

RETENTION = Retention(max_messages=1000, max_age_s=1000, dedupe_s=60)
QUEUE = "bridge.inbound.0"
# They have different tags, so a batch for both takes two steps in a cluster.
ANN, BOB = "ann", "bob"


class Shared:
    """A store that several bridges have open, each with its own clock."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._namespace = f"t{secrets.token_hex(4)}"

    @asynccontextmanager
    async def bridge(self, *, late_s: float = 0.0) -> AsyncIterator[RedisInbox]:
        """Open the store as one more bridge, whose clock is `late_s` behind."""
        inbox = RedisInbox(
            parse_redis(self._url),
            RETENTION,
            namespace=self._namespace,
            clock=SteadyClock(wall=lambda: time() - late_s),
        )
        try:
            await inbox.open()
            yield inbox
        finally:
            await inbox.close()

    async def forget_claims(self, inbox: RedisInbox) -> None:
        """Delete the token that was given out last, and nothing else."""
        (host,) = parse_redis(self._url).hosts
        server = RedisServer(Path(), port=host.port, options={})
        command = "HDEL", f"{inbox.prefixes[0]}h", f"\1claim {QUEUE}"
        assert await asyncio.to_thread(server.command, *command) == ":1"


@pytest.fixture(params=["redis", "redis_cluster"])
def shared(request: pytest.FixtureRequest) -> Shared:
    """Return an unused store, on one server and in a cluster."""
    return Shared(getattr(conftest, request.param).url)


def batch(*users: str, data: bytes = b"1") -> list[Message]:
    return [Message(user, "message", data, time()) for user in users]


async def count(inbox: RedisInbox, user: str) -> int:
    return (await inbox.state(user)).last


async def test_tokens_increase_even_if_clocks_disagree(shared: Shared) -> None:
    """The clock of the next bridge may be a minute behind."""
    async with shared.bridge() as one, shared.bridge(late_s=60) as other:
        claimed = [await each.claim(QUEUE) for each in (one, other, one, other)]

        tokens = [token.number for token in claimed]
        assert tokens == sorted(set(tokens))
        assert {token.queue for token in claimed} == {QUEUE}


async def test_an_append_under_a_smaller_token_stores_nothing(shared: Shared) -> None:
    """It comes from a bridge that lost the queue; its messages are stored already."""
    async with shared.bridge() as one, shared.bridge() as other:
        old = await one.claim(QUEUE)
        assert await one.append(batch(ANN, BOB), tokens=[old]) == [1, 1]
        new = await other.claim(QUEUE)
        assert await other.append(batch(ANN, BOB), tokens=[new]) == [2, 2]

        with pytest.raises(OwnershipLostError) as refusal:
            await one.append(batch(ANN, BOB), tokens=[old])

        assert refusal.value.queue == QUEUE
        assert [await count(one, user) for user in (ANN, BOB)] == [2, 2]
        assert one.problem is None  # the store itself has no problem
        assert await other.append(batch(BOB), tokens=[new]) == [3]


async def test_a_refused_bridge_can_append_with_a_new_token(shared: Shared) -> None:
    """The queue may return to it."""
    async with shared.bridge() as one, shared.bridge() as other:
        old = await one.claim(QUEUE)
        await other.append(batch(ANN), tokens=[await other.claim(QUEUE)])
        with pytest.raises(OwnershipLostError):
            await one.append(batch(ANN), tokens=[old])

        assert await one.append(batch(ANN), tokens=[await one.claim(QUEUE)]) == [2]


async def test_a_claim_alone_fences_no_bridge_off(shared: Shared) -> None:
    """It may come from a bridge that was frozen, and has lost the queue since."""
    async with shared.bridge() as one, shared.bridge() as other:
        in_use = await one.claim(QUEUE)
        await one.append(batch(ANN), tokens=[in_use])
        await other.claim(QUEUE)

        assert await one.append(batch(ANN), tokens=[in_use]) == [2]


async def test_queues_are_fenced_separately(shared: Shared) -> None:
    """A bridge may lose some of its shards and keep others."""
    async with shared.bridge() as one, shared.bridge() as other:
        mine = await one.claim("bridge.inbound.1")
        lost = await one.claim(QUEUE)
        await other.append(batch(ANN), tokens=[await other.claim(QUEUE)])

        assert await one.append(batch(ANN), tokens=[mine]) == [2]
        with pytest.raises(OwnershipLostError):
            await one.append(batch(ANN), tokens=[mine, lost])
        assert await count(one, ANN) == 2


async def test_the_result_of_a_stored_batch_is_repeated_however_late(
    shared: Shared,
) -> None:
    """The reply was lost. The retry stores nothing, so no token can forbid it."""
    async with shared.bridge() as one, shared.bridge() as other:
        old, messages = await one.claim(QUEUE), batch(ANN)
        appending = asyncio.ensure_future(one.append(messages, tokens=[old]))
        await asyncio.sleep(0)  # the batch is sent, and its reply is lost
        appending.cancel()
        await asyncio.wait({appending})
        assert await other.append(batch(ANN), tokens=[await other.claim(QUEUE)]) == [2]

        assert await one.append(messages, tokens=[old]) == [1]
        assert await count(one, ANN) == 2


async def test_after_the_last_claim_was_lost_a_bridge_is_refused_only_once(
    shared: Shared,
) -> None:
    """
    The master died before the claim was replicated, and the next clock is behind.

    The next claim is larger than the token that refused the first batch.
    """
    async with shared.bridge() as one, shared.bridge(late_s=60) as other:
        await one.append(batch(ANN), tokens=[await one.claim(QUEUE)])
        await shared.forget_claims(one)

        too_small = await other.claim(QUEUE)
        with pytest.raises(OwnershipLostError):
            await other.append(batch(ANN), tokens=[too_small])

        again = await other.claim(QUEUE)
        assert await other.append(batch(ANN), tokens=[again]) == [2]
