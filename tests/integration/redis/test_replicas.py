"""`?replicas=N`: a message is acked only after that many real replicas have it."""

import asyncio
from pathlib import Path

import pytest

from bridge.core.redis_address import parse_redis
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.store import RedisInbox
from bridge.inbox.redis.timing import RedisTiming
from tests.conftest import eventually
from tests.redis_bridges import RETENTION, bridge_on, messages
from tests.redis_fleet_servers import replicated

TIMING = RedisTiming(replicas_ms=100, probe_interval_s=0.05)


async def test_nothing_is_acked_while_too_few_replicas_follow(tmp_path: Path) -> None:
    """Readiness says so until a replica is back; then each message is stored once."""
    async with (
        replicated(tmp_path) as (master, (replica,)),
        bridge_on(f"{master.url}?replicas=1", timing=TIMING) as bridge,
    ):
        assert await bridge.append(messages("ann", b"1")) == [1]
        assert "ann" in replica.command("KEYS", "*m:ann")

        replica.pause()
        batch = messages("ann", b"2") + messages("bob", b"1", message_id="m")
        with pytest.raises(StoreUnavailableError, match="0 of 1 replicas have"):
            await bridge.inbox.append(batch)
        # Probes do not clear the problem, although the master itself accepts writes.
        probed = bridge.inbox._appender.was_refused.is_set
        for _ in range(3):
            with pytest.raises(StoreUnavailableError, match="0 of 1"):
                await bridge.inbox.check()
            assert probed()
            assert "replicas have acknowledged" in str(bridge.inbox.problem)

        replica.resume()
        await bridge.until_usable()
        assert await bridge.append(batch) == [2, 1]
        assert await bridge.texts("ann") == [b"1", b"2"]
        assert await bridge.texts("bob") == [b"1"]


async def test_requiring_more_replicas_than_exist_is_reported_at_once(
    tmp_path: Path,
) -> None:
    """By `bridge check`, which uses the same test write, and at the first message."""
    async with replicated(tmp_path) as (master, _):
        inbox = RedisInbox(
            parse_redis(f"{master.url}?replicas=2"), RETENTION, timing=TIMING
        )
        try:
            await inbox.open()
            with pytest.raises(StoreUnavailableError, match="of 2 replicas have"):
                await inbox.check()
        finally:
            await inbox.close()


async def test_acked_messages_are_on_the_replica_that_takes_over(
    tmp_path: Path,
) -> None:
    """The master and its disk are lost right after the ack."""
    async with replicated(tmp_path) as (master, (replica,)):
        async with bridge_on(f"{master.url}?replicas=1", timing=TIMING) as bridge:
            appending = asyncio.create_task(bridge.append(messages("ann", b"1", b"2")))
            assert await appending == [1, 2]
            await asyncio.to_thread(master.kill)

        replica.command("REPLICAOF", "NO", "ONE")
        async with bridge_on(replica.url) as bridge:
            assert await bridge.texts("ann") == [b"1", b"2"]
            assert await bridge.append(messages("ann", b"3")) == [3]
            await eventually(lambda: bridge.inbox.problem is None)
