"""Shards against a real broker: spread over queues and bridges, and another number of them."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Never

import pytest

import bridge.amqp.consume.session
import bridge.amqp.shards.assignment
import bridge.amqp.shards.layout
import bridge.amqp.shards.migration
from bridge.amqp.connection import (
    BrokerAddress,
    BrokerConnection,
    Purpose,
    open_connection,
)
from bridge.amqp.consume.intake import Intake
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.ownership import SHARED
from bridge.amqp.publish.publisher import Publisher
from bridge.amqp.shards.layout import Layout, ShardDesk, ShardPlan
from bridge.amqp.shards.migration import put_marks
from bridge.amqp.topology import Exchange, Queue, topology
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
    """What all bridges of a test stored, in the order in which they did."""

    stored: list[tuple[str, int]] = field(default_factory=list)
    goal: int = 0
    queues: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def of(self, user: str) -> list[int]:
        """The numbers of one user."""
        return [number for name, number in self.stored if name == user]


@dataclass
class Carrier:
    """Takes, stores and acks, as the pump does."""

    intake: Intake
    metrics: Metrics
    store: Store
    pause_s: float = 0.0

    async def run(self) -> None:
        """Carry, for ever."""
        while True:
            batch = await self.intake.next_batch()
            for delivery in batch.deliveries:
                if not self.intake.is_mark(delivery):
                    self._keep(delivery)
            await asyncio.sleep(self.pause_s)
            await self.intake.ack(batch)

    def _keep(self, delivery: Delivery) -> None:
        user = delivery.routing_key.decode()
        self.store.stored.append((user, int(delivery.body)))
        self.store.queues[user].add(delivery.queue)

    @property
    def active(self) -> int:
        """Shards that it is active on."""
        return int(self.metrics.registry.get_sample_value("bridge_shards_active") or 0)


@dataclass
class Stage:
    """A broker, bridges, a worker."""

    address: BrokerAddress
    names: BrokerNames
    worker: Publisher
    connection: BrokerConnection[FrameReader]
    store: Store = field(default_factory=Store)
    sent: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def plan(self, shards: int) -> ShardPlan:
        """Return the plan of a bridge with this setting."""
        timeout_s = 10 * SLOW_FACTOR
        return ShardPlan(self.names, (1.0,), shards=shards, timeout_s=timeout_s)

    def desk(self) -> ShardDesk:
        """Return an operator's desk."""
        return ShardDesk(self.connection, self.plan(1))

    @asynccontextmanager
    async def bridge(
        self, shards: int, *, pause_s: float = 0.0, prefetch_count: int = 50
    ) -> AsyncIterator[Carrier]:
        """Run a bridge with this setting, ready when entered."""
        metrics = Metrics()
        intake = Intake(
            self.address,
            topology(self.names, (1.0,)),
            queue=self.names.inbound_queue(),
            prefetch_count=prefetch_count,
            metrics=metrics,
            shards=self.plan(shards),
        )
        carrier = Carrier(intake, metrics, self.store, pause_s)
        async with running(intake, carrier):
            await eventually(lambda: intake.is_consuming, within_s=30)
            yield carrier
            await intake.stop_consuming()
            async with asyncio.timeout(10 * SLOW_FACTOR):
                await intake.settled()

    async def publish(self, rounds: int = 1) -> None:
        """Publish the next number to each user, so many times, confirmed one by one."""
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
        """How much was published and is not stored."""
        return sum(self.sent.values()) - len(self.store.stored)

    async def all_stored(self) -> None:
        """Wait until there is as much in the store as was sent."""
        await eventually(lambda: self.backlog <= 0, within_s=30)

    def check_each_once_and_in_order(self) -> None:
        """No loss, no repeat, no disorder."""
        for user in USERS:
            assert self.store.of(user) == list(range(1, self.sent[user] + 1)), user


@pytest.fixture
async def stage(
    address: BrokerAddress, names: BrokerNames, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    """A stage on which a second is a tenth of one."""
    monkeypatch.setattr(bridge.amqp.shards.migration, "ARRIVED_AFTER_S", 0.3)
    monkeypatch.setattr(bridge.amqp.consume.session, "_LOOK_EACH_S", 0.1)
    monkeypatch.setattr(bridge.amqp.shards.assignment, "_LOOK_EACH_S", 0.1)
    worker = Publisher(address, names, metrics=Metrics())
    connection = await open_connection(
        address, purpose=Purpose.OPERATE, reader=FrameReader
    )
    try:
        async with running(worker):
            yield Stage(address, names, worker, connection)
    finally:
        await connection.leave()
        async with open_raw(address.urls[0]) as cleaner:
            queues = [names.inbound_queues(shards) for shards in range(1, 7)]
            for queue in (
                *itertools.chain(*queues),
                names.dead,
                names.bridges,
                names.token(SHARED),
            ):
                await cleaner.channel.queue_delete(queue)
            await cleaner.channel.queue_delete(names.retry_queue(1000))


async def changed(stage: Stage, shards: int) -> None:
    """Change the number as the command does, and wait until it is over."""
    desk = stage.desk()
    layout = await desk.change(shards)
    async with asyncio.timeout(30 * SLOW_FACTOR):
        while await desk.left_of_before(layout):
            await asyncio.sleep(bridge.amqp.shards.migration.ARRIVED_AFTER_S)
            await put_marks(stage.connection, stage.plan(1), layout)
    await desk.finish(layout)


async def test_users_are_spread_over_the_shards_and_each_keeps_its_order(
    stage: Stage,
) -> None:
    """One bridge consumes them all, and a user has one queue."""
    async with stage.bridge(4) as carrier:
        await stage.publish(5)
        await stage.all_stored()

        assert carrier.active > 1

    stage.check_each_once_and_in_order()
    assert all(len(queues) == 1 for queues in stage.store.queues.values())
    used = set.union(*stage.store.queues.values())
    assert used <= set(stage.names.inbound_queues(4))
    assert len(used) > 1


async def test_one_shard_is_the_plain_topology_and_needs_nothing_else(
    stage: Stage,
) -> None:
    """Who does not shard has no exchange or plugin more than before, and no queue for it."""
    async with stage.bridge(1):
        await stage.publish()
        await stage.all_stored()

    desk = stage.desk()
    assert await desk.read() == Layout()
    assert not await desk.is_there(Queue(stage.names.bridges, {}))
    assert not await desk.is_there(Exchange(stage.names.shards_entry(1), "fanout"))


async def test_the_number_changes_under_load_without_loss_repeat_or_disorder(
    stage: Stage,
) -> None:
    """Up, down and back to one, while a worker publishes and a backlog waits."""
    is_over = asyncio.Event()

    async def keep_publishing() -> None:
        while not is_over.is_set():
            await stage.publish()
            await eventually(lambda: stage.backlog < 100, within_s=60)

    async with (
        stage.bridge(1, pause_s=0.02, prefetch_count=5),
        stage.bridge(1, pause_s=0.02, prefetch_count=5),
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(keep_publishing())
        await eventually(lambda: len(stage.store.stored) > 20)
        for shards in (3, 2, 1):
            await changed(stage, shards)
            assert (await stage.desk().read()).shards == shards
            stage.store.goal = len(stage.store.stored) + 20
            await eventually(lambda: len(stage.store.stored) > stage.store.goal)
        is_over.set()
        await stage.all_stored()

    stage.check_each_once_and_in_order()


class BreaksOffError(Exception):
    """The process dies here."""


async def break_off(*_: object, **__: object) -> Never:
    """Be a step that is not reached."""
    raise BreaksOffError


async def test_a_change_that_breaks_off_anywhere_is_ended_by_calling_it_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was done by then, nothing is lost, and doing it again does no harm."""
    async with stage.bridge(1):
        for step in ("_declare", "_prepare", "_unbind_the_old"):
            with monkeypatch.context() as broken:
                broken.setattr(ShardDesk, step, break_off)
                with pytest.raises(BreaksOffError):
                    await stage.desk().change(3)
            await stage.publish(2)
        if not (await stage.desk().read()).change:
            with monkeypatch.context() as broken:
                broken.setattr(ShardDesk, "_unbind_the_old", break_off)
                with pytest.raises(BreaksOffError):
                    await stage.desk().change(3)
        await stage.publish(2)
        await stage.all_stored()

        await changed(stage, 3)
        await stage.publish(2)
        await stage.all_stored()

    stage.check_each_once_and_in_order()


async def test_what_a_dead_command_left_is_ended_by_the_bridges_that_start(
    stage: Stage,
) -> None:
    """Behind its record a change needs nobody who waits for it."""
    async with stage.bridge(1):
        await stage.publish(2)
    await stage.desk().change(3)  # and its process dies
    await stage.publish(2)

    async with stage.bridge(1), stage.bridge(3):
        await stage.publish(2)
        await stage.all_stored()

    stage.check_each_once_and_in_order()
    assert not (await stage.desk().read()).is_moving


async def test_a_first_start_that_is_half_done_is_not_taken_for_one_shard(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bridges that start together on an empty broker each see what the others began."""
    desk = ShardDesk(stage.connection, stage.plan(3))
    with monkeypatch.context() as broken:
        broken.setattr(bridge.amqp.shards.layout, "bind", break_off)
        with pytest.raises(BreaksOffError):
            await desk.settle()
    assert await desk.is_there(Exchange(stage.names.inbound, "fanout"))

    assert (await desk.settle()).shards == 3
    assert not await desk.is_there(Queue(stage.names.inbound_queue(), {}))


async def test_a_change_is_refused_while_another_is_not_over(stage: Stage) -> None:
    """With nobody to empty the old queues, the third kind would overtake the first."""
    await stage.desk().settle()
    await stage.publish()
    await stage.desk().change(3)

    with pytest.raises(ShardsError, match=r"from 1 to 3 is not over.*inbound\.0"):
        await stage.desk().change(2)


async def test_a_bridge_with_another_setting_follows_the_broker(stage: Stage) -> None:
    """In a rolling restart old and new settings run side by side."""
    async with stage.bridge(3), stage.bridge(1), stage.bridge(2):
        await stage.publish(3)
        await stage.all_stored()

    stage.check_each_once_and_in_order()
    assert (await stage.desk().read()).shards == 3


async def test_bridges_share_the_shards_and_others_go_on_with_those_of_one_that_leaves(
    stage: Stage,
) -> None:
    """Who came first has all of them, until others are there; it stays as it is then."""

    async def are_shared(*carriers: Carrier, share: int) -> bool:
        await stage.publish()
        return all(carrier.active == share for carrier in carriers)

    async with stage.bridge(6) as first:
        await stage.publish(2)
        async with stage.bridge(6) as second:
            async with stage.bridge(6) as third:
                everybody = (first, second, third)
                await eventually(lambda: are_shared(*everybody, share=2), within_s=30)
                held = [queues_of(carrier) for carrier in everybody]
                for _ in range(20):
                    await stage.publish()
                assert [queues_of(carrier) for carrier in everybody] == held
            await eventually(lambda: are_shared(first, second, share=3), within_s=30)
        await stage.all_stored()

    stage.check_each_once_and_in_order()


def queues_of(carrier: Carrier) -> Sequence[str]:
    session = carrier.intake._session
    assert session is not None
    return sorted(one.queue for one in session.consumers if one.is_active)


async def test_the_prefetch_is_that_of_all_shards_together_and_can_be_changed(
    stage: Stage,
) -> None:
    """It is the bound on the bridge's memory, however many queues there are."""
    async with stage.bridge(3, pause_s=0.5, prefetch_count=9) as carrier:
        await stage.publish(5)
        await eventually(lambda: carrier.intake.in_flight == 9)
        await carrier.intake.set_prefetch(60)
        await eventually(lambda: carrier.intake.in_flight > 9)
        assert carrier.intake.in_flight <= 60
        carrier.pause_s = 0.0
        await stage.all_stored()

    stage.check_each_once_and_in_order()
