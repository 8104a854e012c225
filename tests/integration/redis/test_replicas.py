"""What is acked only when replicas have it: `?replicas=N`, with real replicas."""

import asyncio
from pathlib import Path

import pytest

from bridge.core.redis_address import parse_redis
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis import connection as redis_link
from bridge.inbox.redis import store as redis
from bridge.inbox.redis.store import RedisInbox
from tests.conftest import eventually
from tests.redis_bridges import RETENTION, bridge_on, messages
from tests.redis_fleet_servers import replicated


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give replicas less time, and look again sooner."""
    monkeypatch.setattr(redis_link, "REPLICAS_MS", 100)
    monkeypatch.setattr(redis, "_PROBE_S", 0.05)


async def test_nothing_is_acked_while_too_few_replicas_follow(tmp_path: Path) -> None:
    """Readiness says so until one is back; then it goes on, with everything there once."""
    async with (
        replicated(tmp_path) as (master, (replica,)),
        bridge_on(f"{master.url}?replicas=1") as bridge,
    ):
        assert await bridge.append(messages("ann", b"1")) == [1]
        assert "ann" in replica.command("KEYS", "*m:ann")

        replica.pause()
        batch = messages("ann", b"2") + messages("bob", b"1", message_id="m")
        with pytest.raises(StoreUnavailableError, match="0 of 1 replicas have"):
            await bridge.inbox.append(batch)
        # Also after it was looked at again: the master alone takes what is written.
        probed = bridge.inbox._appending.is_refused.is_set
        for _ in range(3):
            with pytest.raises(StoreUnavailableError, match="0 of 1"):
                await bridge.inbox.check()
            assert probed()
            assert "replicas have followed" in str(bridge.inbox.problem)

        replica.go_on()
        await bridge.until_usable()
        assert await bridge.append(batch) == [2, 1]
        assert await bridge.texts("ann") == [b"1", b"2"]
        assert await bridge.texts("bob") == [b"1"]


async def test_more_replicas_than_there_are_is_told_at_once(tmp_path: Path) -> None:
    """By `bridge check`, which writes as this does, and at the first message."""
    async with replicated(tmp_path) as (master, _):
        inbox = RedisInbox(parse_redis(f"{master.url}?replicas=2"), RETENTION)
        try:
            await inbox.open()
            with pytest.raises(StoreUnavailableError, match="of 2 replicas have"):
                await inbox.check()
        finally:
            await inbox.close()


async def test_what_is_acked_is_on_a_replica_that_takes_over(tmp_path: Path) -> None:
    """The master's disk is lost at the moment of the ack."""
    async with replicated(tmp_path) as (master, (replica,)):
        async with bridge_on(f"{master.url}?replicas=1") as bridge:
            appending = asyncio.create_task(bridge.append(messages("ann", b"1", b"2")))
            assert await appending == [1, 2]
            await asyncio.to_thread(master.kill)

        replica.command("REPLICAOF", "NO", "ONE")
        async with bridge_on(replica.url) as bridge:
            assert await bridge.texts("ann") == [b"1", b"2"]
            assert await bridge.append(messages("ann", b"3")) == [3]
            await eventually(lambda: bridge.inbox.problem is None)
