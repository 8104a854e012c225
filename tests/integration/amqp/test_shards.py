"""Shards on a real broker: users over queues, queues over bridges, and changes of the number."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Never

import pytest

from bridge.amqp.connection import (
    BrokerAddress,
    BrokerConnection,
    Purpose,
    open_connection,
)
from bridge.amqp.consume.consumer import IntakeLimits
from bridge.amqp.consume.intake import Intake
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.ownership import SHARED
from bridge.amqp.publish.publisher import Publisher
from bridge.amqp.shards.layout import ShardLayout, ShardPlan
from bridge.amqp.shards.migration import ShardMigration, publish_end_markers
from bridge.amqp.topology import Exchange, Queue
from bridge.core.broker_names import BrokerNames
from bridge.core.message import Delivery
from bridge.core.properties import PERSISTENT, Properties
from bridge.errors import ShardsError
from bridge.metrics import Metrics
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import open_raw, running

USERS = [
    f"user{number}" for number in range(24)
]  # enough that no shard of six stays empty


@dataclass
class Store:
    """The messages that all bridges of a test stored, in order."""

    stored: list[tuple[str, int]] = field(default_factory=list)
    goal: int = 0
    queues: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def of(self, user: str) -> list[int]:
        """Return the numbers of one user's messages."""
        return [number for name, number in self.stored if name == user]


@dataclass
class StoringBridge:
    """Consumes, stores and acks, as the pipeline does."""

    intake: Intake
    metrics: Metrics
    store: Store
    pause_s: float = 0.0

    async def run(self) -> None:
        """Store messages until cancelled."""
        while True:
            batch = await self.intake.next_batch()
            for delivery in batch.deliveries:
                if self.intake.is_end_marker(delivery):
                    batch.ended_queues.append(delivery.queue)
                else:
                    self._keep(delivery)
            await asyncio.sleep(self.pause_s)
            await self.intake.ack(batch)

    def _keep(self, delivery: Delivery) -> None:
        user = delivery.routing_key.decode()
        self.store.stored.append((user, int(delivery.body)))
        self.store.queues[user].add(delivery.queue)

    @property
    def active(self) -> int:
        """The number of shards on which it is active."""
        return int(self.metrics.registry.get_sample_value("bridge_shards_active") or 0)


@dataclass
class ShardedSetup:
    """A namespace on a broker, with bridges and a producer."""

    address: BrokerAddress
    names: BrokerNames
    worker: Publisher
    connection: BrokerConnection[FrameReader]
    store: Store = field(default_factory=Store)
    sent: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def plan(self, shards: int) -> ShardPlan:
        """Return the plan of a bridge with this setting, with short intervals."""
        return ShardPlan(
            self.names,
            (1.0,),
            shards=shards,
            timeout_s=10 * SLOW_FACTOR,
            marker_interval_s=0.3,
            assignment_interval_s=0.1,
        )

    def migration(self) -> ShardMigration:
        """Return what `bridge shards` uses."""
        return ShardMigration(self.connection, self.plan(1))

    @asynccontextmanager
    async def bridge(
        self, shards: int, *, pause_s: float = 0.0, prefetch_count: int = 50
    ) -> AsyncIterator[StoringBridge]:
        """Run a bridge with this setting; it is consuming when the block starts."""
        metrics = Metrics()
        intake = Intake(
            self.address,
            self.plan(shards),
            prefetch_count=prefetch_count,
            metrics=metrics,
            limits=IntakeLimits(poll_s=0.1),
        )
        storing = StoringBridge(intake, metrics, self.store, pause_s)
        async with running(intake, storing):
            await eventually(lambda: intake.is_consuming, within_s=30)
            yield storing
            await intake.stop_consuming()
            async with asyncio.timeout(10 * SLOW_FACTOR):
                await intake.settled()

    async def publish(self, rounds: int = 1) -> None:
        """Publish the next `rounds` numbers to each user, each after the confirm of the last."""
        async with asyncio.TaskGroup() as tasks:
            for user in USERS:
                tasks.create_task(self._publish_to(user, rounds))

    async def _publish_to(self, user: str, rounds: int) -> None:
        for _ in range(rounds):
            self.sent[user] += 1
            await self.worker.publish(
                self.names.messages,
                user.encode(),
                body=b"%d" % self.sent[user],
                properties=Properties(delivery_mode=PERSISTENT),
            )

    @property
    def backlog(self) -> int:
        """The number of messages that were published and are not stored yet."""
        return sum(self.sent.values()) - len(self.store.stored)

    async def all_stored(self) -> None:
        """Wait until as many messages are stored as were published."""
        await eventually(lambda: self.backlog <= 0, within_s=30)

    def check_each_once_and_in_order(self) -> None:
        """Check that no message is lost, duplicated or out of order."""
        for user in USERS:
            assert self.store.of(user) == list(range(1, self.sent[user] + 1)), user


@pytest.fixture
async def sharded(
    address: BrokerAddress, names: BrokerNames
) -> AsyncIterator[ShardedSetup]:
    """Yield a namespace whose intervals are short; its queues are deleted at the end."""
    worker = Publisher(address, names, metrics=Metrics())
    connection = await open_connection(
        address, purpose=Purpose.OPERATE, reader=FrameReader
    )
    try:
        async with running(worker):
            yield ShardedSetup(address, names, worker, connection)
    finally:
        await connection.disconnect()
        async with open_raw(address.urls[0]) as cleaner:
            queues = [names.inbound_queues(shards) for shards in range(1, 7)]
            for queue in (
                *itertools.chain(*queues),
                names.dead,
                names.bridges,
                names.lock_queue(SHARED),
            ):
                await cleaner.channel.queue_delete(queue)
            await cleaner.channel.queue_delete(names.retry_queue(1000))


async def changed(sharded: ShardedSetup, shards: int) -> None:
    """Change the number as the command does, and wait until the migration is complete."""
    migration = sharded.migration()
    layout = await migration.change(shards)
    async with asyncio.timeout(30 * SLOW_FACTOR):
        while await migration.records.previous_queues(layout):
            await asyncio.sleep(sharded.plan(1).marker_interval_s)
            await publish_end_markers(sharded.connection, sharded.plan(1), layout)
    await migration.complete(layout)


async def test_users_are_distributed_over_the_shards_and_each_keeps_its_order(
    sharded: ShardedSetup,
) -> None:
    """One bridge consumes all shards, and each user has one queue."""
    async with sharded.bridge(4) as storing:
        await sharded.publish(5)
        await sharded.all_stored()

        assert storing.active > 1

    sharded.check_each_once_and_in_order()
    assert all(len(queues) == 1 for queues in sharded.store.queues.values())
    used = set.union(*sharded.store.queues.values())
    assert used <= set(sharded.names.inbound_queues(4))
    assert len(used) > 1


async def test_one_shard_is_the_plain_topology(
    sharded: ShardedSetup,
) -> None:
    """Without shards there is no further exchange, queue or plugin."""
    async with sharded.bridge(1):
        await sharded.publish()
        await sharded.all_stored()

    migration = sharded.migration()
    assert await migration.records.read() == ShardLayout()
    assert not await migration.records.exists(Queue(sharded.names.bridges, {}))
    assert not await migration.records.exists(
        Exchange(sharded.names.shards_entry(1), "fanout")
    )


async def test_a_change_under_load_loses_duplicates_and_reorders_nothing(
    sharded: ShardedSetup,
) -> None:
    """Up, down and back to one, while a producer publishes and a backlog waits."""
    is_over = asyncio.Event()

    async def keep_publishing() -> None:
        while not is_over.is_set():
            await sharded.publish()
            await eventually(lambda: sharded.backlog < 100, within_s=60)

    async with (
        sharded.bridge(1, pause_s=0.02, prefetch_count=5),
        sharded.bridge(1, pause_s=0.02, prefetch_count=5),
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(keep_publishing())
        await eventually(lambda: len(sharded.store.stored) > 20)
        for shards in (3, 2, 1):
            await changed(sharded, shards)
            assert (await sharded.migration().records.read()).shards == shards
            sharded.store.goal = len(sharded.store.stored) + 20
            await eventually(lambda: len(sharded.store.stored) > sharded.store.goal)
        is_over.set()
        await sharded.all_stored()

    sharded.check_each_once_and_in_order()


class CrashError(Exception):
    """The process dies here."""


async def crash(*_: object, **__: object) -> Never:
    """Stand in for a step that the process does not reach."""
    raise CrashError


async def test_a_change_that_crashed_at_any_step_is_completed_by_repeating_it(
    sharded: ShardedSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step can be repeated, and no message is lost in between."""
    async with sharded.bridge(1):
        for step in ("_declare", "_prepare", "_leave_previous"):
            with monkeypatch.context() as broken:
                broken.setattr(ShardMigration, step, crash)
                with pytest.raises(CrashError):
                    await sharded.migration().change(3)
            await sharded.publish(2)
        if not (await sharded.migration().records.read()).revision:
            with monkeypatch.context() as broken:
                broken.setattr(ShardMigration, "_leave_previous", crash)
                with pytest.raises(CrashError):
                    await sharded.migration().change(3)
        await sharded.publish(2)
        await sharded.all_stored()

        await changed(sharded, 3)
        await sharded.publish(2)
        await sharded.all_stored()

    sharded.check_each_once_and_in_order()


async def test_a_change_whose_command_died_is_completed_by_bridges(
    sharded: ShardedSetup,
) -> None:
    """Once its record exists, a change does not need the command any more."""
    async with sharded.bridge(1):
        await sharded.publish(2)
    await sharded.migration().change(3)  # the command exits without waiting
    await sharded.publish(2)

    async with sharded.bridge(1), sharded.bridge(3):
        await sharded.publish(2)
        await sharded.all_stored()

    sharded.check_each_once_and_in_order()
    assert not (await sharded.migration().records.read()).is_migrating


async def test_an_incomplete_first_start_is_not_mistaken_for_one_shard(
    sharded: ShardedSetup,
) -> None:
    """Bridges that start together on an empty broker see the others' first steps."""
    migration = ShardMigration(sharded.connection, sharded.plan(3))
    await migration._prepare(ShardLayout(3, 1, 1, is_migrating=True))
    assert await migration.records.exists(Exchange(sharded.names.inbound, "fanout"))

    assert (await migration.ensure()).shards == 3
    assert not await migration.records.exists(Queue(sharded.names.inbound_queue(), {}))


async def test_a_change_is_refused_during_another_one(sharded: ShardedSetup) -> None:
    """Messages in the third set of queues would overtake those in the first."""
    await sharded.migration().ensure()
    await sharded.publish()
    await sharded.migration().change(3)

    with pytest.raises(ShardsError, match=r"from 1 to 3 is not complete.*inbound\.0"):
        await sharded.migration().change(2)


async def test_a_bridge_with_another_setting_follows_the_broker(
    sharded: ShardedSetup,
) -> None:
    """During a rolling restart, bridges with old and new settings run side by side."""
    async with sharded.bridge(3), sharded.bridge(1), sharded.bridge(2):
        await sharded.publish(3)
        await sharded.all_stored()

    sharded.check_each_once_and_in_order()
    assert (await sharded.migration().records.read()).shards == 3


async def test_bridges_share_the_shards_and_take_over_those_of_a_bridge_that_stops(
    sharded: ShardedSetup,
) -> None:
    """The first bridge has all shards until others start; then the assignment is stable."""

    async def are_shared(*bridges: StoringBridge, share: int) -> bool:
        await sharded.publish()
        return all(storing.active == share for storing in bridges)

    async with sharded.bridge(6) as first:
        await sharded.publish(2)
        async with sharded.bridge(6) as second:
            async with sharded.bridge(6) as third:
                everyone = (first, second, third)
                await eventually(lambda: are_shared(*everyone, share=2), within_s=30)
                held = [queues_of(storing) for storing in everyone]
                for _ in range(20):
                    await sharded.publish()
                assert [queues_of(storing) for storing in everyone] == held
            await eventually(lambda: are_shared(first, second, share=3), within_s=30)
        await sharded.all_stored()

    sharded.check_each_once_and_in_order()


def queues_of(storing: StoringBridge) -> Sequence[str]:
    session = storing.intake._session
    assert session is not None
    return sorted(one.queue for one in session.consumers if one.is_single_active)


async def test_the_prefetch_limits_all_shards_together_and_can_be_changed(
    sharded: ShardedSetup,
) -> None:
    """It limits the memory of a bridge, whatever the number of queues."""
    async with sharded.bridge(3, pause_s=0.5, prefetch_count=9) as storing:
        await sharded.publish(5)
        await eventually(lambda: storing.intake.in_flight == 9)
        await storing.intake.set_prefetch(60)
        await eventually(lambda: storing.intake.in_flight > 9)
        assert storing.intake.in_flight <= 60
        storing.pause_s = 0.0
        await sharded.all_stored()

    sharded.check_each_once_and_in_order()
