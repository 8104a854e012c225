"""Consuming from a real broker: every byte arrives, in batches, within the prefetch."""

import asyncio
from dataclasses import replace

import pytest

from bridge.amqp.connection import BrokerAddress
from bridge.amqp.consume.consumer import IntakeLimits
from bridge.amqp.consume.intake import Intake
from bridge.amqp.shards.layout import ShardPlan
from bridge.core.broker_names import BrokerNames
from bridge.core.properties import (
    Properties,
    header_bytes,
    iter_table,
    parse_properties,
)
from bridge.metrics import Metrics
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import (
    IntakeMaker,
    Raw,
    reconnects,
    running,
)
from tests.integration.amqp.poison import EXPIRATION, POISON, properties
from tests.unit.amqp.wire import short


def comparable(raw_properties: bytes) -> tuple[Properties, set[bytes]]:
    """Return headers as a set: RabbitMQ 4.0 sorts them and keeps one of each name."""
    found = parse_properties(raw_properties)
    entries = {entry for _, _, entry in iter_table(found.headers or b"")}
    return replace(found, headers=None), entries


async def test_poison_properties_among_good_messages_lose_nothing_and_close_nothing(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames, metrics: Metrics
) -> None:
    """The plain library would lose its connection over each of them, again and again."""
    async with consuming() as taker:
        for number, poison in enumerate(POISON.values()):
            await raw.publish(names.messages, body=b"good %d" % number)
            await raw.publish(
                names.messages, body=b"odd %d" % number, raw_properties=poison
            )

        taken = await taker.take(2 * len(POISON))

    assert [delivery.body for delivery in taken] == [
        kind % number
        for number in range(len(POISON))
        for kind in (b"good %d", b"odd %d")
    ]
    # As they were sent, except that the broker writes the letter L as l.
    assert [comparable(delivery.raw_properties) for delivery in taken[1::2]] == [
        comparable(poison.replace(b"\x01hL", b"\x01hl")) for poison in POISON.values()
    ]
    assert reconnects(metrics, "consume") == 0


async def test_routing_keys_of_any_bytes_arrive(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """Producers choose the key, which need not be UTF-8."""
    keys = [b"", b"\xff\xfe", b"a.b.#", b"x" * 255, "naïve".encode()]
    async with consuming() as taker:
        for key in keys:
            await raw.publish(names.messages, key)

        taken = await taker.take(len(keys))

    assert [delivery.routing_key for delivery in taken] == keys


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 3_000_000])
async def test_bodies_of_any_size_arrive(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames, size: int
) -> None:
    """A body has no frame, one, or many, and chunks end anywhere."""
    body = bytes(byte % 251 for byte in range(1000)) * (size // 1000 + 1)
    async with consuming() as taker:
        await raw.publish(names.messages, body=b"before")
        await raw.publish(names.messages, body=body[:size])
        await raw.publish(names.messages, body=b"after")

        await taker.take(3)

    assert taker.bodies == [b"before", body[:size], b"after"]


async def test_acking_a_batch_twice_is_harmless(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames, metrics: Metrics
) -> None:
    """The broker would close the channel and redeliver everything in flight."""
    async with consuming() as taker:
        await raw.publish(names.messages)
        batch = await taker.next()
        assert await taker.intake.ack(batch)
        assert await taker.intake.ack(batch)
        await raw.publish(names.messages)
        await taker.take(1)

    assert reconnects(metrics, "consume") == 0


async def test_no_more_than_prefetch_is_in_flight(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames, metrics: Metrics
) -> None:
    """It bounds the memory of the bridge; the broker keeps the rest."""
    async with consuming(prefetch_count=3) as taker:
        for number in range(10):
            await raw.publish(names.messages, body=b"%d" % number)
        await eventually(lambda: taker.intake.in_flight == 3)
        assert metrics.registry.get_sample_value("bridge_in_flight") == 3
        assert (
            metrics.registry.get_sample_value("bridge_deliveries_consumed_total") == 3
        )

        await taker.take(10)

        assert taker.intake.in_flight == 0
    assert taker.bodies == [b"%d" % number for number in range(10)]


async def test_a_new_prefetch_applies_at_once_and_keeps_deliveries_in_flight(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames, metrics: Metrics
) -> None:
    """SIGHUP changes it while messages arrive; none is handed out twice."""
    async with consuming(prefetch_count=2) as taker:
        for number in range(40):
            await raw.publish(names.messages, body=b"%d" % number)
        await eventually(lambda: taker.intake.in_flight == 2)
        await taker.intake.set_prefetch(5)
        batch = await taker.take_from_one()
        await eventually(lambda: taker.intake.in_flight == 5)

        assert await taker.intake.ack(batch)
        taker.taken += batch.deliveries
        await taker.take(40)

    assert taker.bodies == [b"%d" % number for number in range(40)]
    assert reconnects(metrics, "consume") == 0


async def test_a_batch_holds_waiting_deliveries_within_its_limits(
    consuming: IntakeMaker, names: BrokerNames, raw: Raw
) -> None:
    """Batches adapt to the load, but a transaction must not grow without bound."""
    limits = IntakeLimits(batch_deliveries=4, batch_bytes=100)
    async with consuming(prefetch_count=50, limits=limits) as taker:
        for size in (10, 10, 10, 10, 10, 150, 60, 60):
            await raw.publish(names.messages, body=b"x" * size)
        await eventually(lambda: taker.intake.in_flight == 8)

        batches = [await taker.next() for _ in range(5)]

    sizes = [[len(delivery.body) for delivery in batch.deliveries] for batch in batches]
    assert sizes == [[10, 10, 10, 10], [10], [150], [60], [60]]


async def test_large_messages_lower_the_prefetch(
    consuming: IntakeMaker, names: BrokerNames, metrics: Metrics, raw: Raw
) -> None:
    """A prefetch that suits small messages would fill the memory with large ones."""
    bodies = [b"%02d" % number + b"x" * 98 for number in range(40)]
    limits = IntakeLimits(batch_bytes=1000, waiting_bytes=1000)
    async with consuming():
        pass  # it declares the queue
    for body in bodies:  # a backlog is delivered at once
        await raw.publish(names.messages, body=body)
    async with consuming(prefetch_count=40, limits=limits) as taker:
        await eventually(lambda: taker.intake.in_flight > 10)
        first = await taker.next()
        taker.taken += first.deliveries
        assert await taker.intake.ack(first)
        await taker.take(40)
        assert metrics.registry.get_sample_value("bridge_in_flight") == 0

        for body in bodies:  # the prefetch is five now
            await raw.publish(names.messages, body=body)
        await eventually(lambda: taker.intake.in_flight == 5)
        await taker.take(80)

    assert taker.bodies == bodies * 2
    assert not any(delivery.redelivered for delivery in taker.taken)
    assert reconnects(metrics, "consume") == 0


async def test_deliveries_of_a_failed_session_are_not_handed_out(
    address: BrokerAddress,
    plan: ShardPlan,
    raw: Raw,
    names: BrokerNames,
    metrics: Metrics,
) -> None:
    """The broker redelivers them; stored now, they would be stored twice."""
    intake = Intake(
        address,
        plan,
        prefetch_count=100,
        metrics=metrics,
        limits=IntakeLimits(batch_deliveries=1),
    )
    async with running(intake):
        await eventually(lambda: intake.is_consuming, within_s=30)
        for number in range(3):
            await raw.publish(names.messages, body=b"%d" % number)
        await eventually(lambda: intake.in_flight == 3)
        first = await intake.next_batch()
        assert await intake.ack(first)

        first.session.fail("a test")
        async with asyncio.timeout(30 * SLOW_FACTOR):
            second = await intake.next_batch()

        assert await intake.ack(second)
        assert [one.body for one in second.deliveries] == [b"1"]


async def test_deliveries_in_flight_can_be_acked_after_consuming_stopped(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """A drain settles what the broker has delivered, and leaves the rest to other bridges."""
    async with consuming() as taker:
        await raw.publish(names.messages, body=b"one")
        await eventually(lambda: taker.intake.in_flight == 1)

        await taker.intake.stop_consuming()

        assert not taker.intake.is_consuming
        await taker.take(1)
        async with asyncio.timeout(5 * SLOW_FACTOR):
            await taker.intake.settled()
        await raw.publish(names.messages, body=b"two")
        assert await raw.holds(names.inbound_queue(), 1)
    assert taker.bodies == [b"one"]


async def test_a_message_that_expires_in_the_queue_becomes_a_dead_letter(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """Every undelivered message is accounted for, here by the broker."""
    async with consuming(prefetch_count=1) as taker:
        await raw.publish(names.messages, body=b"first")  # uses up the prefetch
        batch = await taker.next()
        await raw.publish(
            names.messages,
            body=b"late",
            raw_properties=properties(EXPIRATION, short(b"50")),
        )

        async def is_dead_lettered() -> bool:
            return await raw.count(names.dead) == 1

        await eventually(is_dead_lettered)
        assert await taker.intake.ack(batch)
        dead = await raw.channel.basic_get(names.dead, no_ack=True)

    assert dead.body == b"late"
    assert dead.routing_key == "ann"
    assert dead.header.properties.headers
    assert dead.header.properties.headers["x-first-death-reason"] == "expired"


async def test_headers_that_the_broker_adds_can_be_parsed(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """The bridge has a parser of its own for header tables."""
    async with consuming() as taker:
        await raw.publish(f"{names.retry_queue(200)}", b"ann", body=b"back")
        taken = await taker.take(1)

    assert taken[0].routing_key == b"ann"
    table = taken[0].properties.headers
    assert header_bytes(table, "x-first-death-reason") == b"expired"


async def test_deliveries_collect_in_the_socket_and_are_read_at_once(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """Each read wakes the process. What came before the wait is in the same batch."""
    async with consuming(prefetch_count=65535) as taker:
        await raw.publish(names.messages)
        await eventually(lambda: taker.intake.in_flight == 1)
        collecting = asyncio.create_task(taker.intake.collect(1.3), name="collect")
        await asyncio.sleep(0)
        for _ in range(3):
            await raw.publish(names.messages)
        assert taker.intake.in_flight == 1 or collecting.done()
        await collecting

        batch = await taker.next()

    assert len(batch.deliveries) == 4


async def test_a_wait_for_more_deliveries_that_is_cancelled_resumes_reading(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """Otherwise a pipeline that is started again would never receive anything."""
    async with consuming(prefetch_count=65535) as taker:
        collecting = asyncio.create_task(taker.intake.collect(60), name="collect")
        await asyncio.sleep(0)
        collecting.cancel()
        await asyncio.wait([collecting])

        await raw.publish(names.messages, body=b"one")
        await taker.take(1)

    assert taker.bodies == [b"one"]


async def test_a_small_prefetch_shortens_the_wait_for_more_deliveries(
    consuming: IntakeMaker,
) -> None:
    """No more than the prefetch can collect, so a long wait would only limit the rate."""
    async with consuming(prefetch_count=100) as taker:
        async with asyncio.timeout(20 * SLOW_FACTOR):
            await taker.intake.collect(3600)


async def test_a_batch_that_is_large_already_does_not_wait_for_more(
    consuming: IntakeMaker, raw: Raw, names: BrokerNames
) -> None:
    """A backlog is settled without pauses."""
    async with consuming(prefetch_count=65535) as taker:
        for _ in range(200):
            await raw.publish(names.messages)
        await eventually(lambda: taker.intake.in_flight == 200)

        async with asyncio.timeout(20 * SLOW_FACTOR):
            await taker.intake.collect(3600)
