"""
A bridge freezes with deliveries in flight and loses its queue; it stores none of them late.

No message has an id, so the store cannot recognize duplicates.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.core.properties import PERSISTENT, Properties
from bridge.core.redis_address import parse_redis
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.redis.store import RedisInbox
from tests.conftest import SLOW_FACTOR, eventually
from tests.faults.suite.bridge_process import BridgeProcess
from tests.faults.suite.program import FREEZE_BEFORE_APPEND
from tests.faults.suite.proxy import Proxy, free_ports
from tests.integration.running import (
    OPERATOR_TOKEN,
    SECRET,
    RunningBridge,
    Worker,
    open_worker,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode
from tests.redis_server import RedisServer

USER = "ann"
READY_WITHIN_S = 30.0 * SLOW_FACTOR
RETENTION = Retention(max_messages=1000, max_age_s=1000, dedupe_s=60)


class Store:
    """The inbox of `USER`, as any bridge would read it."""

    def __init__(self, inbox: RedisInbox) -> None:
        self._inbox = inbox

    async def numbers(self) -> list[int]:
        """Return all stored numbers in order; none while the store is away."""
        try:
            page = await self._inbox.read(
                USER, after=0, max_messages=999, max_bytes=1 << 20
            )
        except StoreUnavailableError:  # the store was emptied just now
            return []
        return [int(stored.message.data) for stored in page.messages]

    async def becomes(self, *numbers: int) -> None:
        """Wait until it holds exactly these numbers, in this order."""

        async def is_so() -> bool:
            return await self.numbers() == list(numbers)

        try:
            await eventually(is_so)
        except AssertionError:
            assert await self.numbers() == list(numbers)
            raise


@asynccontextmanager
async def store_of(server: RedisServer, namespace: str) -> AsyncIterator[Store]:
    """Open the store of the bridges of `namespace` on `server`."""
    inbox = RedisInbox(parse_redis(server.url), RETENTION, namespace=namespace)
    try:
        await inbox.open()
        yield Store(inbox)
    finally:
        await inbox.close()


async def publish(worker: Worker, *numbers: int) -> None:
    for number in numbers:
        await worker.publish(USER, number)


async def publish_once(worker: Worker, *numbers: int) -> None:
    """Publish with ids: an ack may be on its way when the bridge is lost."""
    for number in numbers:
        properties = Properties(
            message_id=str(number).encode(), delivery_mode=PERSISTENT
        )
        await worker.publish(USER, number, properties=properties)


@dataclass
class FirstBridge:
    """The bridge that consumes first, with proxies to the broker and to the store."""

    first: RunningBridge
    to_broker: Proxy
    to_store: Proxy
    server: RedisServer
    store: Store
    worker: Worker

    def lose_queue(self) -> None:
        """Cut it off from the broker, for the time being."""
        self.to_broker.refuse()
        self.to_broker.cut()


@pytest.fixture
async def bridge_setup(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> AsyncIterator[FirstBridge]:
    """Run a bridge that consumes the queue, behind proxies."""
    wire, port = free_ports(2)
    async with (
        RedisServer.start(tmp_path, is_durable=False) as server,
        store_of(server, namespace) as store,
        Proxy.open(port=wire, target_port=broker.port) as to_broker,
        Proxy.open(port=port, target_port=server.port) as to_store,
        running_bridge(
            settings_for(
                broker,
                namespace,
                amqp_url=broker.url_at(wire),
                inbox=f"redis://127.0.0.1:{port}/0",
            )
        ) as first,
        open_worker(broker, namespace) as worker,
    ):
        yield FirstBridge(first, to_broker, to_store, server, store, worker)


@asynccontextmanager
async def second_bridge(
    bridge_setup: FirstBridge, broker: LocalNode, namespace: str
) -> AsyncIterator[RunningBridge]:
    """Run another bridge, which waits for the queue."""
    settings = settings_for(broker, namespace, inbox=bridge_setup.server.url)
    async with running_bridge(settings) as second:
        yield second


async def test_an_append_that_was_delayed_in_the_network_is_refused(
    bridge_setup: FirstBridge, broker: LocalNode, namespace: str
) -> None:
    """
    The network to Redis hangs, another bridge receives the queue, the network resumes.

    The request is on its way and needs no action of the bridge: only the store can refuse it.
    """
    store, worker = bridge_setup.store, bridge_setup.worker
    async with second_bridge(bridge_setup, broker, namespace) as second:
        await publish_once(worker, 1, 2)
        await store.becomes(1, 2)
        intake = bridge_setup.first.bridge.components.intake
        await eventually(lambda: intake.in_flight == 0)  # it has the store's reply
        bridge_setup.to_store.freeze()
        await publish(worker, 3, 4, 5)
        await eventually(lambda: intake.in_flight == 3)

        bridge_setup.lose_queue()
        await publish(worker, 6)
        await store.becomes(1, 2, 3, 4, 5, 6)
        bridge_setup.to_store.heal()

        await eventually(
            lambda: bridge_setup.first.sample("bridge_handed_over_batches_total") == 1
        )
        assert await store.numbers() == [1, 2, 3, 4, 5, 6]
        bridge_setup.to_broker.heal()
        await eventually(
            lambda: not bridge_setup.first.bridge.unready_reasons(), within_s=30
        )
        # It did not even try to store its other deliveries.
        assert bridge_setup.first.sample("bridge_handed_over_batches_total") == 1
        assert second.sample("bridge_handed_over_batches_total") == 0


async def test_a_token_that_is_claimed_too_late_is_never_used(
    bridge_setup: FirstBridge, broker: LocalNode, namespace: str
) -> None:
    """
    The first bridge has stored nothing when it hangs, so its token would be the larger one.

    The broker does not confirm its consumer, and the claim alone excludes no other bridge.
    """
    store, worker = bridge_setup.store, bridge_setup.worker
    async with second_bridge(bridge_setup, broker, namespace) as second:
        bridge_setup.to_store.freeze()
        await publish(worker, 1, 2)
        await eventually(
            lambda: bridge_setup.first.bridge.components.intake.in_flight == 2
        )
        bridge_setup.lose_queue()
        await publish(worker, 3)
        await store.becomes(1, 2, 3)
        bridge_setup.to_store.heal()

        stale = {"outcome": "stale", "reason": ""}
        await eventually(
            lambda: (
                bridge_setup.first.sample("bridge_deliveries_settled_total", **stale)
                > 0
            )
        )
        await publish(worker, 4)
        await store.becomes(1, 2, 3, 4)
        for bridge in (bridge_setup.first, second):
            assert bridge.sample("bridge_handed_over_batches_total") == 0


async def test_a_bridge_that_lost_its_queue_gets_it_back_later(
    bridge_setup: FirstBridge, broker: LocalNode, namespace: str
) -> None:
    """Queues move between bridges all the time, and each stores while it consumes."""
    await publish_once(bridge_setup.worker, 1)
    await bridge_setup.store.becomes(1)
    async with second_bridge(bridge_setup, broker, namespace) as second:
        bridge_setup.lose_queue()
        await publish(bridge_setup.worker, 2)
        await bridge_setup.store.becomes(1, 2)
        bridge_setup.to_broker.heal()
        await eventually(
            lambda: bridge_setup.first.bridge.components.intake.is_consuming,
            within_s=30,
        )
        assert second.sample("bridge_handed_over_batches_total") == 0

    await publish(bridge_setup.worker, 3)
    await bridge_setup.store.becomes(1, 2, 3)
    assert bridge_setup.first.sample("bridge_handed_over_batches_total") == 0


async def test_a_bridge_can_store_after_the_store_was_emptied(
    bridge_setup: FirstBridge,
) -> None:
    """FLUSHALL deletes the tokens as well; later messages are stored."""
    await publish(bridge_setup.worker, 1)
    await bridge_setup.store.becomes(1)
    await asyncio.to_thread(bridge_setup.server.command, "FLUSHALL")

    await publish(bridge_setup.worker, 2)
    await bridge_setup.store.becomes(2)
    assert bridge_setup.first.sample("bridge_handed_over_batches_total") == 0


@asynccontextmanager
async def frozen_process(
    broker: LocalNode, namespace: str, server: RedisServer, *, folder: Path, mutant: str
) -> AsyncIterator[tuple[BridgeProcess, Proxy]]:
    """Run a bridge that consumes the queue in a process of its own, which can be frozen."""
    wire, public, operator = free_ports(3)
    process = BridgeProcess(folder, operator, OPERATOR_TOKEN, (mutant,))
    process.write_settings(
        amqp_url=broker.url_at(wire),
        namespace=namespace,
        port=public,
        operator_port=operator,
        operator_token=OPERATOR_TOKEN,
        jwt_secret=SECRET,
        inbox=server.url,
    )
    process.allow_start()
    async with (
        Proxy.open(port=wire, target_port=broker.port) as to_broker,
        asyncio.TaskGroup() as tasks,
    ):
        running = tasks.create_task(process.run(), name="bridge")
        assert await process.wait_until_ready(within_s=READY_WITHIN_S)
        yield process, to_broker
        running.cancel()


@pytest.mark.parametrize("mutant", ["", "forget_fences"])
async def test_a_bridge_that_was_frozen_stores_nothing_late(
    broker: LocalNode, namespace: str, tmp_path: Path, mutant: str
) -> None:
    """
    SIGSTOP hits it after it took deliveries and before it sends them to the store.

    A bridge without fencing tokens stores them behind newer messages, twice.
    """
    async with (
        RedisServer.start(tmp_path / "redis", is_durable=False) as server,
        store_of(server, namespace) as store,
        frozen_process(broker, namespace, server, folder=tmp_path, mutant=mutant) as (
            process,
            to_broker,
        ),
        running_bridge(settings_for(broker, namespace, inbox=server.url)),
        open_worker(broker, namespace) as worker,
    ):
        await publish_once(worker, 1, 2)
        await store.becomes(1, 2)
        assert await process.wait_until_ready(within_s=READY_WITHIN_S)
        await process.arm(FREEZE_BEFORE_APPEND, count=1)
        await publish(worker, 3)
        await eventually(lambda: not process.control.exists())

        to_broker.cut()
        await publish(worker, 4, 5)
        await store.becomes(1, 2, 3, 4, 5)
        assert process.resume()

        if mutant:
            await store.becomes(1, 2, 3, 4, 5, 3)
            return
        handed_over = b"intake.handed_over"
        await eventually(lambda: handed_over in process.log.read_bytes())
        assert await store.numbers() == [1, 2, 3, 4, 5]
        assert await process.wait_until_ready(within_s=READY_WITHIN_S)
        assert process.anomalies == []
