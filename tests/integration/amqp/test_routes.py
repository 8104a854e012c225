"""A confirmed message has a route: before, while and after the topology is declared."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiormq
import pytest
from aiormq.exceptions import AMQPError, ChannelInvalidStateError

from bridge.amqp.connection import (
    BrokerAddress,
    BrokerConnection,
    Purpose,
    open_connection,
)
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.shards.layout import ShardPlan
from bridge.amqp.shards.migration import ShardMigration
from bridge.amqp.topology import (
    ComparisonState,
    Exchange,
    Queue,
    Topology,
    compare,
    inbound_queue,
    send_declare,
)
from bridge.core.broker_names import BrokerNames
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import RETRY_DELAYS_S, Raw, open_raw

WORKERS = 4


@dataclass
class LoopingWorkers:
    """Workers that publish to one exchange with confirms, in loops, without `mandatory`."""

    url: str
    exchange: str
    confirmed: int = 0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def _publish(self, connection: aiormq.Connection) -> None:
        channel: aiormq.abc.AbstractChannel | None = None
        while not self.stopping.is_set():
            if channel is None or channel.is_closed:
                channel = await connection.channel(publisher_confirms=True)
            try:
                await channel.basic_publish(
                    b"{}", exchange=self.exchange, routing_key=f"ann{self.confirmed}"
                )
            except (AMQPError, ChannelInvalidStateError):
                continue  # the exchange does not exist
            self.confirmed += 1

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[None]:
        """Publish until the block ends."""
        connection = aiormq.Connection(self.url)
        await connection.connect()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(WORKERS):
                tasks.create_task(self._publish(connection))
            yield
            before = self.confirmed
            await eventually(lambda: self.confirmed > before + WORKERS)
            # No publish is cancelled: its message could arrive without being counted.
            self.stopping.set()
        await connection.close()


@dataclass
class Routes:
    """The routes of one namespace."""

    raw: Raw
    workers: LoopingWorkers
    connection: BrokerConnection[FrameReader]
    plan: ShardPlan

    async def ensure(self) -> Topology:
        """Declare the topology as a bridge does when it connects."""
        layout = await ShardMigration(self.connection, self.plan).ensure()
        return self.plan.topology(layout)

    async def inbound(self) -> int:
        """Return how many messages wait in the inbound queues."""
        names = self.plan.names.inbound_queues(self.plan.shards)
        return sum([await self.raw.count(name) for name in names])

    async def dead(self) -> int:
        """Return how many dead letters there are."""
        return await self.raw.count(self.plan.names.dead)


@pytest.fixture
async def connection(
    address: BrokerAddress,
) -> AsyncIterator[BrokerConnection[FrameReader]]:
    opened = await open_connection(address, purpose=Purpose.CHECK, reader=FrameReader)
    yield opened
    await opened.disconnect()


@pytest.fixture(params=[1, 3])
async def routes(
    request: pytest.FixtureRequest,
    raw: Raw,
    names: BrokerNames,
    address: BrokerAddress,
    connection: BrokerConnection[FrameReader],
) -> AsyncIterator[Routes]:
    """The routes of an empty namespace, for one shard and for three."""
    plan = ShardPlan(
        names, RETRY_DELAYS_S, shards=request.param, timeout_s=10 * SLOW_FACTOR
    )
    workers = LoopingWorkers(address.urls[0], names.messages)
    yield (opened := Routes(raw, workers, connection, plan))
    async with open_raw(address.urls[0]) as cleaner:
        declared = await opened.ensure()
        for queue in declared.queues:
            await cleaner.channel.queue_delete(queue.name)
        for exchange in declared.exchanges:
            await cleaner.channel.exchange_delete(exchange.name)


async def test_no_confirmed_message_vanishes_at_the_first_start(routes: Routes) -> None:
    """Producers often start before the bridge, and a confirm is all that they see."""
    async with routes.workers.publishing():
        await routes.ensure()

    async def all_arrived() -> bool:
        return await routes.inbound() == routes.workers.confirmed

    await eventually(all_arrived)
    assert await routes.dead() == 0


async def test_no_confirmed_message_vanishes_while_the_queues_are_deleted(
    routes: Routes,
) -> None:
    """An operator may delete a queue that has the wrong arguments."""
    await routes.ensure()
    for queue in routes.plan.names.inbound_queues(routes.plan.shards):
        await routes.raw.channel.queue_delete(queue)

    async with routes.workers.publishing():
        await eventually(lambda: routes.workers.confirmed > 2 * WORKERS)
        await routes.ensure()

    async def all_counted() -> bool:
        return await routes.inbound() + await routes.dead() == routes.workers.confirmed

    await eventually(all_counted)
    assert await routes.dead() > 0
    assert await routes.inbound() > 0


@pytest.mark.parametrize("routes", [1], indirect=True)
async def test_no_confirmed_message_vanishes_without_the_inbound_exchange(
    routes: Routes,
) -> None:
    """Every exchange on the way is covered, not only the last one."""
    await routes.ensure()
    await routes.raw.channel.exchange_delete(routes.plan.names.inbound)

    await routes.raw.publish(routes.plan.names.messages)

    await routes.raw.holds(routes.plan.names.dead, 1)


@pytest.mark.parametrize("routes", [1], indirect=True)
async def test_an_unrouted_message_does_not_expire_as_a_dead_letter(
    routes: Routes, names: BrokerNames
) -> None:
    """Its time to live would end in the dead letter queue, and it would vanish there."""
    await routes.ensure()
    await routes.raw.channel.queue_delete(names.inbound_queue())

    await routes.raw.channel.basic_publish(
        b"{}",
        exchange=names.messages,
        routing_key="ann",
        properties=aiormq.spec.Basic.Properties(expiration="200"),
    )
    await routes.raw.holds(names.dead, 1)

    reply = await routes.raw.channel.basic_get(names.dead, no_ack=True)
    assert reply.header is not None
    assert reply.header.properties.expiration is None


async def declare_as_before(raw: Raw, names: BrokerNames) -> None:
    """Declare what earlier versions declared, without any alternate exchange."""
    channel = raw.channel
    for name, kind in ((names.messages, "topic"), (names.inbound, "fanout")):
        await channel.exchange_declare(name, exchange_type=kind, durable=True)
    queue = inbound_queue(names, names.inbound_queue())
    await send_declare(channel, queue)
    await channel.exchange_bind(names.inbound, names.messages, "#")
    await channel.queue_bind(queue.name, names.inbound, "")


@pytest.mark.parametrize("routes", [1], indirect=True)
async def test_a_topology_of_an_earlier_version_is_completed_while_it_is_used(
    routes: Routes, names: BrokerNames
) -> None:
    """An upgrade needs no step of an operator, and each message arrives once."""
    await declare_as_before(routes.raw, names)

    async with routes.workers.publishing():
        wanted = await routes.ensure()
    await routes.raw.holds(names.inbound_queue(), routes.workers.confirmed)
    await routes.raw.channel.queue_delete(names.inbound_queue())
    await routes.raw.publish(names.messages)

    await routes.raw.holds(names.dead, 1)
    comparisons = await compare(routes.connection, wanted, timeout_s=10 * SLOW_FACTOR)
    texts = {one.name: one.text for one in comparisons}
    assert "has no alternate exchange" in texts[f"exchange {names.messages}"]
    assert {one.state for one in comparisons} == {
        ComparisonState.OK,
        ComparisonState.MISSING,  # the deleted queue
    }


@pytest.mark.parametrize("routes", [1], indirect=True)
async def test_a_topology_of_an_earlier_version_can_be_sharded(
    routes: Routes, names: BrokerNames
) -> None:
    """Its queue is bound in two ways until the change unbinds both."""
    await declare_as_before(routes.raw, names)
    migration = ShardMigration(routes.connection, routes.plan)

    await migration.change(3)
    for number in range(20):
        await routes.raw.publish(names.messages, f"user{number}".encode())

    sharded = names.inbound_queues(3)

    async def all_arrived() -> bool:
        return sum([await routes.raw.count(queue) for queue in sharded]) == 20

    await eventually(all_arrived)
    assert await routes.raw.count(names.inbound_queue()) == 0
    for queue in (*sharded, names.inbound_queue()):
        await routes.raw.channel.queue_delete(queue)
    await migration.records.exists(Exchange(names.inbound, "fanout"))
    assert not await migration.records.exists(Queue(sharded[0], {}))
