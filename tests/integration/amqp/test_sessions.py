"""Sessions that end and queues that are released: no outdated delivery is handed out."""

import asyncio

import pytest

from bridge.amqp.connection import BrokerAddress, Purpose, open_connection
from bridge.amqp.consume.consumer import Consumer, IntakeLimits
from bridge.amqp.consume.intake import Intake
from bridge.amqp.consume.session import IntakeSession
from bridge.amqp.frame_reader import DeliveryReader
from bridge.amqp.shards.layout import ShardPlan
from bridge.core.broker_names import BrokerNames
from bridge.metrics import Metrics
from tests.conftest import eventually
from tests.integration.amqp.conftest import Raw, open_raw


async def test_a_session_that_ends_while_a_batch_grows_hands_out_nothing(
    address: BrokerAddress,
    plan: ShardPlan,
    raw: Raw,
    names: BrokerNames,
    metrics: Metrics,
) -> None:
    """
    In a flood a batch grows for a moment, and the session may end meanwhile.

    The broker redelivers all of it; stored now, it would be stored twice.
    """
    intake = Intake(
        address,
        plan,
        prefetch_count=500,
        metrics=metrics,
    )

    async def take() -> bool:
        return intake.is_current(await intake.next_batch())

    running = asyncio.create_task(intake.run(), name="intake")
    await eventually(lambda: intake.is_consuming, within_s=30)
    for _ in range(300):
        await raw.publish(names.messages)
    await eventually(lambda: intake.in_flight == 300)
    taking = asyncio.create_task(take(), name="take")
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])

    assert not taking.done() or taking.result()
    taking.cancel()
    await asyncio.wait([taking])


async def test_a_consumer_on_a_reused_channel_number_receives_deliveries(
    address: BrokerAddress,
    names: BrokerNames,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    A bridge releases several shards at once, and the library reuses numbers at once.

    The deliveries of the new consumer were dropped, never acked, and its shard stood still.
    """
    queues = names.inbound_queues(2)
    close = Consumer._close
    async with open_raw(address.urls[0]) as raw:
        for queue in queues:
            await raw.channel.queue_declare(queue, durable=True)
        connection = await open_connection(
            address, purpose=Purpose.CONSUME, reader=DeliveryReader
        )
        session = IntakeSession(
            connection,
            queues,
            prefetch_count=10,
            arrived=asyncio.Event(),
            metrics=metrics,
            limits=IntakeLimits(),
        )
        await session.consume(queues[0])
        (old,) = session.consumers

        async def close_while_another_starts(consumer: Consumer) -> None:
            await close(consumer)
            await session.consume(queues[1])

        monkeypatch.setattr(Consumer, "_close", close_while_another_starts)
        await session._leave(old)
        (new,) = session.consumers
        assert new._channel.number == old._channel.number
        await raw.publish("", queues[1].encode())

        await eventually(lambda: session.waiting == 1)
        await connection.disconnect()
        for queue in queues:
            await raw.channel.queue_delete(queue)
