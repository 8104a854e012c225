"""After any failure of the broker, nothing is lost and consuming resumes automatically."""

import asyncio

import pytest

from bridge.amqp.connection import BrokerAddress
from bridge.amqp.consume.intake import Intake
from bridge.amqp.shards.layout import ShardPlan
from bridge.amqp.topology import Topology
from bridge.core.broker_names import BrokerNames
from bridge.errors import TopologyError
from bridge.metrics import Metrics
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import (
    IntakeMaker,
    Raw,
    open_raw,
    reconnects,
)
from tests.integration.amqp.proxy import TcpProxy
from tests.local_node import LocalNode


async def test_a_queue_that_was_deleted_is_declared_and_consumed_again(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames, metrics: Metrics
) -> None:
    """The broker reports it with Basic.Cancel, and the connection stays open."""
    async with consuming() as taker:
        await raw.channel.queue_delete(names.inbound_queue())
        await eventually(lambda: reconnects(metrics, "consume") == 1)
        await taker.consuming()
        await raw.publish(names.messages, body=b"after")

        await taker.take(1)

    assert taker.bodies == [b"after"]


async def test_a_channel_that_the_broker_closed_is_replaced(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """An open connection with a dead channel looks alive and receives nothing."""
    async with consuming() as taker:
        await raw.publish(names.messages, body=b"one")
        batch = await taker.next()
        channel = batch.session.consumers[0]._channel
        await channel.basic_ack(4711)  # an unknown tag closes the channel with 406

        await eventually(lambda: not taker.intake.is_current(batch))
        assert not await taker.intake.ack(batch)
        await taker.take(1)

    assert taker.bodies == [b"one"]
    assert taker.taken[0].redelivered


async def test_a_consumer_that_disappeared_silently_is_replaced(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """Connection and channel are open, and the broker has reported nothing."""
    async with consuming() as taker:
        session = taker.intake._session
        assert session is not None
        consumer = session.consumers[0]
        assert consumer._consumer_tag is not None
        await consumer._channel.basic_cancel(consumer._consumer_tag)

        await raw.publish(names.messages, body=b"after")
        await taker.take(1)

    assert taker.bodies == [b"after"]


async def test_a_broker_that_freezes_for_a_moment_costs_no_connection(
    broker: LocalNode, consuming: IntakeMaker, names: BrokerNames, metrics: Metrics
) -> None:
    """The pause is shorter than the heartbeats allow."""
    async with open_raw(broker.url) as raw, consuming() as taker:
        await raw.publish(names.messages, body=b"before")
        await taker.take(1)
        await broker.freeze()
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await taker.intake.next_batch()
        finally:
            await broker.thaw()
        await raw.publish(names.messages, body=b"after")

        await taker.take(2)

    assert taker.bodies == [b"before", b"after"]
    assert reconnects(metrics, "consume") == 0


async def test_a_connection_that_stays_frozen_is_replaced(
    proxy: TcpProxy,
    consuming: IntakeMaker,
    raw: Raw,
    names: BrokerNames,
    metrics: Metrics,
) -> None:
    """Only missing heartbeats reveal a half-open connection."""
    async with consuming(proxy.address) as taker:
        proxy.freeze()
        await raw.publish(names.messages, body=b"after")
        await eventually(lambda: reconnects(metrics, "consume") == 1, within_s=20)
        proxy.thaw()

        await taker.take(1)

    assert taker.bodies == [b"after"]


async def test_consuming_resumes_after_a_restart_of_the_broker(
    consuming: IntakeMaker, names: BrokerNames
) -> None:
    """
    Confirmed messages are on disk, and the bridge needs no restart.

    The test uses a node of its own. A shared one has had thousands of quorum queues, and
    once restarted in a state in which none could be declared (rabbitmq-server #4512).
    """
    async with LocalNode.start(ready_within_s=90 * SLOW_FACTOR) as node:
        address = BrokerAddress((node.url,), timeout_s=10 * SLOW_FACTOR)
        async with consuming(address) as taker:
            async with open_raw(node.url) as raw:
                for number in range(10):
                    await raw.publish(names.messages, body=b"%d" % number)
            batch = await taker.next()
            await node.shut_down()
            await eventually(lambda: not taker.intake.is_consuming)
            assert not await taker.intake.ack(batch)
            assert taker.intake.in_flight == 0
            await node.restart()
            await taker.consuming()

            await taker.take(10)

    assert taker.bodies == [b"%d" % number for number in range(10)]


@pytest.mark.parametrize("bytes_from_broker", [5, 40, 200, 5_000, 140_000])
async def test_a_connection_cut_in_the_middle_of_a_body_loses_nothing(
    proxy: TcpProxy,
    consuming: IntakeMaker,
    raw: Raw,
    names: BrokerNames,
    bytes_from_broker: int,
) -> None:
    """The broker redelivers an incomplete delivery on the next connection."""
    body = b"x" * 300_000
    async with consuming(proxy.address) as taker:
        connections = proxy.connections
        proxy.cut_after(bytes_from_broker)
        await raw.publish(names.messages, body=body)
        await raw.publish(names.messages, body=b"after")

        await taker.take(2)

    assert taker.bodies == [body, b"after"]
    assert proxy.connections == connections + 1


async def test_a_batch_of_a_lost_session_is_never_acked_on_the_next(
    proxy: TcpProxy,
    consuming: IntakeMaker,
    raw: Raw,
    names: BrokerNames,
) -> None:
    """Tags count from 1 on each channel: an old tag would ack another message."""
    async with consuming(proxy.address) as taker:
        await raw.publish(names.messages, body=b"one")
        old = await taker.next()
        proxy.cut()
        await eventually(lambda: taker.intake.in_flight == 0)
        await taker.consuming()
        new = await taker.next()

        assert not await taker.intake.ack(old)

        assert taker.intake.in_flight == 1
        assert [delivery.body for delivery in new.deliveries] == [b"one"]
        assert await taker.intake.ack(new)
    assert await raw.holds(names.inbound_queue(), 0)


async def test_a_session_that_is_lost_while_draining_is_not_replaced(
    proxy: TcpProxy,
    consuming: IntakeMaker,
    raw: Raw,
    names: BrokerNames,
) -> None:
    """The drain has nothing left to wait for, and the intake ends."""
    async with consuming(proxy.address) as taker:
        await raw.publish(names.messages, body=b"one")
        await taker.next()
        await taker.intake.stop_consuming()
        connections = proxy.connections
        proxy.cut()
        async with asyncio.timeout(10 * SLOW_FACTOR):
            await taker.intake.settled()
        await eventually(lambda: proxy.connections == connections + 1)
        assert not taker.intake.is_consuming


async def test_a_memory_alarm_does_not_stop_consuming(
    broker: LocalNode, consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """The broker stops reading from connections that publish, and acks must still arrive."""
    async with consuming(prefetch_count=2) as taker:
        for number in range(6):
            await raw.publish(names.messages, body=b"%d" % number)
        async with broker.memory_alarm():
            await taker.take(6)

    assert taker.bodies == [b"%d" % number for number in range(6)]


async def test_other_arguments_on_the_broker_end_the_start_with_an_explanation(
    address: BrokerAddress,
    wanted: Topology,
    plan: ShardPlan,
    names: BrokerNames,
    metrics: Metrics,
    raw: Raw,
) -> None:
    """Reconnecting does not fix it; an operator does."""
    queue = next(q for q in wanted.queues if q.name == names.retry_queue(200))
    await raw.channel.queue_declare(
        queue.name, durable=True, arguments={**queue.arguments, "x-message-ttl": 777}
    )
    intake = Intake(address, plan, prefetch_count=1, metrics=metrics)

    with pytest.raises(TopologyError) as caught:
        async with asyncio.timeout(10 * SLOW_FACTOR):
            await intake.run()

    assert str(caught.value) == (
        f"queue {queue.name}: has x-message-ttl = 777, the bridge needs "
        "200; drain and delete the queue, or set another BRIDGE_NAMESPACE"
    )


async def test_the_bridge_waits_while_other_arguments_appear_later(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames, metrics: Metrics
) -> None:
    """Windows are connected; when an operator has fixed it, consuming resumes."""
    queue = names.inbound_queue()
    async with consuming() as taker:
        # On one channel, in quick succession: the bridge cannot act in between.
        await raw.channel.queue_delete(names.dead)
        await raw.channel.queue_declare(names.dead, durable=True)
        await raw.channel.queue_delete(queue)
        await eventually(lambda: reconnects(metrics, "consume") >= 2)
        await raw.channel.queue_delete(names.dead)
        await taker.consuming()
        await raw.publish(names.messages, body=b"after")

        await taker.take(1)

    assert taker.bodies == [b"after"]
