"""Fixtures of the AMQP tests: a raw producer, an intake, a publisher."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol, cast

import aiormq
import pytest
from aiormq.abc import ChannelFrame

from bridge.amqp.connection import BrokerAddress, BrokerConnection, broker_call
from bridge.amqp.consume.consumer import Consumer, IntakeLimits
from bridge.amqp.consume.intake import Intake
from bridge.amqp.consume.session import Batch
from bridge.amqp.frame_reader import DeliveryReader
from bridge.amqp.ownership import SHARED
from bridge.amqp.publish.publisher import Publisher
from bridge.amqp.shards.layout import ShardPlan
from bridge.amqp.topology import Topology, topology
from bridge.core.broker_names import BrokerNames
from bridge.core.message import Delivery
from bridge.core.properties import PERSISTENT, Properties
from bridge.metrics import Metrics
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.proxy import TcpProxy
from tests.local_node import LocalNode
from tests.unit.amqp.wire import publish

NO_PROPERTIES = b"\x00\x00"
RETRY_DELAYS_S = (0.2, 30.0)


class Raw:
    """The channel of another program, which publishes any bytes and counts messages."""

    def __init__(self, channel: aiormq.Channel) -> None:
        self.channel = channel

    async def publish(
        self,
        exchange: str,
        routing_key: bytes = b"ann",
        *,
        body: bytes = b"{}",
        raw_properties: bytes = NO_PROPERTIES,
    ) -> None:
        """Send the bytes, and wait until the broker has processed them."""
        payload = publish(
            self.channel.number,
            exchange.encode(),
            routing_key,
            raw_properties=raw_properties,
            body=body,
        )
        await self.channel.write_queue.put(ChannelFrame(payload, should_close=False))
        await self.channel.basic_qos(prefetch_count=0)  # its answer follows the publish

    async def count(self, queue: str) -> int:
        """Return the number of ready messages in `queue`."""
        reply = await self.channel.queue_declare(queue, passive=True)
        return reply.message_count or 0

    async def holds(self, queue: str, count: int) -> bool:
        """Wait until `queue` holds `count` messages; a quorum queue counts with a delay."""

        async def is_so() -> bool:
            return await self.count(queue) == count

        await eventually(is_so)
        return True


@asynccontextmanager
async def open_raw(url: str) -> AsyncIterator[Raw]:
    connection = aiormq.Connection(url)
    async with asyncio.timeout(10 * SLOW_FACTOR):
        await connection.connect()
    try:
        channel = await connection.channel(publisher_confirms=False)
        assert isinstance(channel, aiormq.Channel)
        yield Raw(channel)
    finally:
        await connection.close()


@pytest.fixture
def names(namespace: str) -> BrokerNames:
    return BrokerNames(namespace)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def raw(broker: LocalNode) -> AsyncIterator[Raw]:
    async with open_raw(broker.url) as connected:
        yield connected


@pytest.fixture
async def wanted(broker: LocalNode, names: BrokerNames) -> AsyncIterator[Topology]:
    """The topology of the bridge; deleted at the end."""
    yield (declared := topology(names, RETRY_DELAYS_S))
    lock = names.lock_queue(SHARED)
    async with open_raw(broker.url) as cleaner:
        for queue in (*[queue.name for queue in declared.queues], lock):
            await cleaner.channel.queue_delete(queue)
        for exchange in (*[exchange.name for exchange in declared.exchanges], lock):
            await cleaner.channel.exchange_delete(exchange)


@pytest.fixture
def plan(wanted: Topology, names: BrokerNames) -> ShardPlan:  # noqa: ARG001 - deletes it
    """The plan of a bridge with one shard."""
    return ShardPlan(names, RETRY_DELAYS_S, timeout_s=10 * SLOW_FACTOR)


@pytest.fixture
def address(broker: LocalNode) -> BrokerAddress:
    return BrokerAddress((broker.url,), timeout_s=10 * SLOW_FACTOR)


@pytest.fixture
async def proxy(broker: LocalNode) -> AsyncIterator[TcpProxy]:
    async with TcpProxy.open(broker.url) as opened:
        yield opened


class Runs(Protocol):
    """An intake or a publisher."""

    async def run(self) -> None:
        """Run until cancelled."""


@asynccontextmanager
async def running(*workers: Runs) -> AsyncIterator[None]:
    """Run them until the block ends, and wait until they have ended."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(worker.run()) for worker in workers]
        try:
            yield
        finally:
            for task in running:
                task.cancel()


@dataclass
class Taker:
    """Takes and acks the batches of an intake, as the pipeline does."""

    intake: Intake
    taken: list[Delivery] = field(default_factory=list)

    @property
    def bodies(self) -> list[bytes]:
        """The bodies in order."""
        return [delivery.body for delivery in self.taken]

    async def next(self) -> Batch:
        """Take one batch without acking it."""
        async with asyncio.timeout(20 * SLOW_FACTOR):
            return await self.intake.next_batch()

    async def take(self, count: int) -> Sequence[Delivery]:
        """Take and ack batches until there are `count` deliveries in all."""
        while len(self.taken) < count:
            batch = await self.next()
            if await self.intake.ack(batch):
                self.taken += batch.deliveries
        return self.taken

    async def take_from_one(self) -> Batch:
        """Take and ack until another consumer delivers a batch; return that one, not acked."""
        batch = await self.next()
        first = batch.consumers
        while batch.consumers == first:
            assert await self.intake.ack(batch)
            self.taken += batch.deliveries
            batch = await self.next()
        return batch

    async def consuming(self) -> None:
        """Wait until the broker has the consumer."""
        await eventually(lambda: self.intake.is_consuming, within_s=30)


@dataclass
class RecordingConnection:
    """Stands in for a connection and records the frames that are written to it."""

    reader: DeliveryReader = field(default_factory=DeliveryReader)
    frames: list[bytes] = field(default_factory=list)

    def write(self, frame: bytes) -> bool:
        """Record `frame`."""
        self.frames.append(frame)
        return True

    def call(self, doing: str) -> AbstractAsyncContextManager[None]:
        """Limit the time of a call."""
        return broker_call(doing, timeout_s=10 * SLOW_FACTOR)


def consumer_on(
    raw: Raw,
    queue: str,
    connection: RecordingConnection | None = None,
    *,
    limits: IntakeLimits | None = None,
) -> Consumer:
    """Return a consumer on the channel of `raw`, with a prefetch of 40, not started."""
    return Consumer(
        cast("BrokerConnection[DeliveryReader]", connection or RecordingConnection()),
        raw.channel,
        queue=queue,
        prefetch_count=40,
        limits=limits or IntakeLimits(),
        arrived=asyncio.Event(),
        changed=asyncio.Event(),
        metrics=Metrics(),
    )


IntakeMaker = Callable[..., AbstractAsyncContextManager[Taker]]


@pytest.fixture
def consuming(address: BrokerAddress, plan: ShardPlan, metrics: Metrics) -> IntakeMaker:
    """Open an intake that consumes, from the broker or another address."""

    @asynccontextmanager
    async def make(
        at: BrokerAddress | None = None,
        *,
        prefetch_count: int = 100,
        limits: IntakeLimits | None = None,
    ) -> AsyncIterator[Taker]:
        intake = Intake(
            at or address,
            plan,
            prefetch_count=prefetch_count,
            metrics=metrics,
            limits=limits,
        )
        taker = Taker(intake)
        async with running(intake):
            await taker.consuming()
            yield taker

    return make


PublisherMaker = Callable[..., AbstractAsyncContextManager[Publisher]]


@pytest.fixture
def publishing(
    address: BrokerAddress, wanted: Topology, names: BrokerNames, metrics: Metrics
) -> PublisherMaker:
    """Open a connected publisher, to the broker or another address."""

    @asynccontextmanager
    async def make(at: BrokerAddress | None = None) -> AsyncIterator[Publisher]:
        publisher = Publisher(at or address, names, metrics=metrics, declares=wanted)
        async with running(publisher):
            # Waits for the connection and its topology; the message reaches no queue.
            await publisher.publish(
                "",
                b"",
                body=b"",
                properties=Properties(delivery_mode=PERSISTENT),
                mandatory=False,
            )
            yield publisher

    return make


def reconnects(metrics: Metrics, purpose: str) -> float:
    return (
        metrics.registry.get_sample_value(
            "bridge_broker_reconnects_total", {"purpose": purpose}
        )
        or 0.0
    )
