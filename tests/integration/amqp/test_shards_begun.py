"""The first number of shards on an empty broker: begun by two, or begun and not ended."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from structlog.testing import capture_logs

from bridge.amqp.shards.layout import ShardDesk, gate_name, mark_name, record_name
from bridge.amqp.topology import Exchange, Queue
from bridge.errors import BrokerUnavailableError, ShardsError
from tests.conftest import eventually
from tests.integration.amqp.test_shards import BreaksOffError, Stage, break_off, stage
from tests.integration.operator.commands import run_with

__all__ = ["stage"]


async def begun(at: Stage, shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a first start with so many shards behind that ended before its record."""
    desk = ShardDesk(at.connection, at.plan(shards))
    steps: Iterator[Callable[[ShardDesk, Exchange], Awaitable[None]]] = iter(
        [ShardDesk._declare, break_off]
    )
    with monkeypatch.context() as broken:

        async def declare(self: ShardDesk, exchange: Exchange) -> None:
            await next(steps)(self, exchange)

        broken.setattr(ShardDesk, "_declare", declare)
        with pytest.raises(BreaksOffError):
            await desk.settle()


async def test_one_shard_after_a_start_that_broke_off_gives_each_message_one_queue(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever goes back to one would else get all of it again at the next change."""
    await begun(stage, 3, monkeypatch)

    async with stage.bridge(1):
        await stage.publish()
        await stage.all_stored()
        counts = [await count(stage, queue) for queue in stage.names.inbound_queues(3)]

    stage.check_each_once_and_in_order()
    assert counts == [0, 0, 0]


async def test_a_bridge_waits_for_another_number_that_was_begun(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two settings may meet on an empty broker; it goes on when the other is done."""
    await begun(stage, 3, monkeypatch)
    with pytest.raises(BrokerUnavailableError, match="bridge shards set 3"):
        await ShardDesk(stage.connection, stage.plan(2)).settle()
    with pytest.raises(ShardsError, match="`bridge shards set 3` does that"):
        await stage.desk().change(2)

    async with asyncio.TaskGroup() as tasks:
        carrying = tasks.create_task(carry(stage))
        await asyncio.sleep(0)
        await stage.desk().change(3)
        await carrying
    stage.check_each_once_and_in_order()


async def carry(at: Stage) -> None:
    """Be a bridge with another setting."""
    async with at.bridge(2):
        await at.publish()
        await at.all_stored()


async def test_one_can_be_set_on_an_empty_broker_whatever_the_setting_is(
    stage: Stage,
) -> None:
    """The command is told a number; the setting counts where nobody said one."""
    desk = ShardDesk(stage.connection, stage.plan(3))

    assert (await desk.expect()).shards == 3
    assert (await desk.change(1)).shards == 1
    assert (await desk.expect()).shards == 1
    assert await desk.is_there(Queue(stage.names.inbound_queue(), {}))
    assert not await desk.is_there(Exchange(gate_name(stage.names, 1), "fanout"))


async def test_a_bridge_that_can_put_no_mark_goes_on_and_tries_again(
    stage: Stage,
) -> None:
    """Something else has the name, or a right is missing: an operator mends it."""
    await stage.desk().settle()
    mark = mark_name(stage.names)
    channel = await stage.connection.open_channel(confirms=False)
    await channel.exchange_declare(mark, exchange_type="fanout", durable=True)
    await stage.publish()
    await stage.desk().change(3)

    with capture_logs() as logs:
        async with stage.bridge(1):
            await stage.all_stored()
            await eventually(
                lambda: any(one["event"] == "shards.no_mark_yet" for one in logs)
            )
            await channel.exchange_delete(mark)
            await stage.publish()
            await stage.all_stored()
    await channel.close()
    stage.check_each_once_and_in_order()


async def test_the_command_says_what_it_would_do_and_makes_nothing_odd(
    stage: Stage,
) -> None:
    """A dry run is believed; and what no change was needed for leaves no trace."""
    given = {
        "BRIDGE_AMQP_URL": stage.address.urls[0],
        "BRIDGE_NAMESPACE": stage.names.namespace,
        "BRIDGE_JWT_SECRET": "x" * 32,
        "BRIDGE_SHARDS": "3",
    }

    async def run(*words: str, expect: int = 0) -> str:
        done = await asyncio.to_thread(run_with, given, "shards", *words, expect=expect)
        return done.stdout + done.stderr

    assert await run() == "3 shards\n"  # as the first bridge will make it
    assert "1 shard" in await run("set", "1")
    done = Exchange(f"{record_name(stage.names, 0)}.done", "fanout")
    assert not await stage.desk().is_there(done)

    await stage.publish()
    assert "from 1 to 3" in await run("set", "3", "--dry-run")
    assert "3 shards" in await run("set", "3", "--no-wait")
    assert "wait for" in await run("set", "3", "--dry-run")
    assert "from 1 to 3 is not over" in await run("set", "2", "--dry-run", expect=1)


async def count(at: Stage, queue: str) -> int:
    """Return how many messages wait in a queue."""
    channel = await at.connection.open_channel(confirms=False)
    told = await channel.queue_declare(queue, passive=True)
    await channel.close()
    return told.message_count or 0
