"""The first start with several shards: by two bridges at once, or stopped in between."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from structlog.testing import capture_logs

from bridge.amqp.shards.layout import gate_name, marker_exchange_name, record_name
from bridge.amqp.shards.migration import ShardMigration
from bridge.amqp.topology import Exchange, Queue
from bridge.errors import BrokerUnavailableError, ShardsError
from tests.conftest import eventually
from tests.integration.amqp.test_shards import CrashError, ShardedSetup, crash, sharded
from tests.integration.operator.commands import run_with

__all__ = ["sharded"]


async def begin_start(
    at: ShardedSetup, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run a first start with `shards` shards that crashes before its record."""
    migration = ShardMigration(at.connection, at.plan(shards))
    steps: Iterator[Callable[[ShardMigration, Exchange], Awaitable[None]]] = iter(
        [ShardMigration._declare, crash]
    )
    with monkeypatch.context() as broken:

        async def declare(self: ShardMigration, exchange: Exchange) -> None:
            await next(steps)(self, exchange)

        broken.setattr(ShardMigration, "_declare", declare)
        with pytest.raises(CrashError):
            await migration.ensure()


async def test_after_a_crashed_start_one_shard_stores_each_message_once(
    sharded: ShardedSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the other queues would fill, and deliver everything again at the next change."""
    await begin_start(sharded, 3, monkeypatch)

    async with sharded.bridge(1):
        await sharded.publish()
        await sharded.all_stored()
        counts = [
            await count(sharded, queue) for queue in sharded.names.inbound_queues(3)
        ]

    sharded.check_each_once_and_in_order()
    assert counts == [0, 0, 0]


async def test_a_bridge_waits_for_a_start_with_another_number(
    sharded: ShardedSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two settings may meet on an empty broker; the bridge starts when the other is complete."""
    await begin_start(sharded, 3, monkeypatch)
    with pytest.raises(BrokerUnavailableError, match="bridge shards set 3"):
        await ShardMigration(sharded.connection, sharded.plan(2)).ensure()
    with pytest.raises(ShardsError, match="`bridge shards set 3` completes it"):
        await sharded.migration().change(2)

    async with asyncio.TaskGroup() as tasks:
        storing = tasks.create_task(store_all(sharded))
        await asyncio.sleep(0)
        await sharded.migration().change(3)
        await storing
    sharded.check_each_once_and_in_order()


async def store_all(at: ShardedSetup) -> None:
    """Run a bridge with another setting."""
    async with at.bridge(2):
        await at.publish()
        await at.all_stored()


async def test_one_shard_can_be_set_on_an_empty_broker_with_any_setting(
    sharded: ShardedSetup,
) -> None:
    """The setting only counts if no number was set."""
    migration = ShardMigration(sharded.connection, sharded.plan(3))

    assert (await migration.records.expect()).shards == 3
    assert (await migration.change(1)).shards == 1
    assert (await migration.records.expect()).shards == 1
    assert await migration.records.exists(Queue(sharded.names.inbound_queue(), {}))
    assert not await migration.records.exists(
        Exchange(gate_name(sharded.names, 1), "fanout")
    )


async def test_a_bridge_that_cannot_publish_markers_continues_and_retries(
    sharded: ShardedSetup,
) -> None:
    """Another exchange has the name or a permission is missing; an operator fixes it."""
    await sharded.migration().ensure()
    marker_exchange = marker_exchange_name(sharded.names)
    channel = await sharded.connection.open_channel(confirms=False)
    await channel.exchange_declare(
        marker_exchange, exchange_type="fanout", durable=True
    )
    await sharded.publish()
    await sharded.migration().change(3)

    with capture_logs() as logs:
        async with sharded.bridge(1):
            await sharded.all_stored()
            await eventually(
                lambda: any(
                    one["event"] == "shards.end_marker_unpublished" for one in logs
                )
            )
            await channel.exchange_delete(marker_exchange)
            await sharded.publish()
            await sharded.all_stored()
    await channel.close()
    sharded.check_each_once_and_in_order()


async def test_a_dry_run_reports_the_change_and_declares_nothing(
    sharded: ShardedSetup,
) -> None:
    """A command that has nothing to do leaves no trace on the broker."""
    given = {
        "BRIDGE_AMQP_URL": sharded.address.urls[0],
        "BRIDGE_NAMESPACE": sharded.names.namespace,
        "BRIDGE_JWT_SECRET": "a-32-byte-secret-for-these-tests",
        "BRIDGE_SHARDS": "3",
    }

    async def run(*words: str, expect: int = 0) -> str:
        done = await asyncio.to_thread(run_with, given, "shards", *words, expect=expect)
        return done.stdout + done.stderr

    assert await run() == "3 shards\n"  # the first bridge will declare them
    assert "1 shard" in await run("set", "1")
    done = Exchange(f"{record_name(sharded.names, 0)}.done", "fanout")
    assert not await sharded.migration().records.exists(done)

    await sharded.publish()
    assert "from 1 to 3" in await run("set", "3", "--dry-run")
    assert "3 shards" in await run("set", "3", "--no-wait")
    assert "wait for" in await run("set", "3", "--dry-run")
    assert "from 1 to 3 is not complete" in await run("set", "2", "--dry-run", expect=1)


async def count(at: ShardedSetup, queue: str) -> int:
    """Return how many messages wait in a queue."""
    channel = await at.connection.open_channel(confirms=False)
    reply = await channel.queue_declare(queue, passive=True)
    await channel.close()
    return reply.message_count or 0
