"""
A bridge freezes with messages in hand and loses its queue; what it had comes not too late.

None of the messages has an id: the store cannot tell that it has had them.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.core.redis_address import parse_redis
from bridge.demo.private_node import LocalNode
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
from tests.redis_server import RedisServer

USER = "ann"
READY_WITHIN_S = 30.0 * SLOW_FACTOR
RETENTION = Retention(max_messages=1000, max_age_s=1000, dedupe_s=60)


class Store:
    """What is in the inbox of `USER`, as any bridge would read it."""

    def __init__(self, inbox: RedisInbox) -> None:
        self._inbox = inbox

    async def numbers(self) -> list[int]:
        """Return all that is kept, in order; nothing while there is no store."""
        try:
            page = await self._inbox.read(
                USER, after=0, max_messages=999, max_bytes=1 << 20
            )
        except StoreUnavailableError:  # somebody has emptied it
            return []
        return [int(stored.message.data) for stored in page.messages]

    async def comes_to(self, *numbers: int) -> None:
        """Wait until it holds these and no others, in this order."""

        async def is_there() -> bool:
            return await self.numbers() == list(numbers)

        try:
            await eventually(is_there)
        except AssertionError:
            assert await self.numbers() == list(numbers)
            raise


@asynccontextmanager
async def store_of(server: RedisServer, namespace: str) -> AsyncIterator[Store]:
    """Open the store that the bridges of `namespace` have on `server`."""
    inbox = RedisInbox(parse_redis(server.url), RETENTION, namespace=namespace)
    try:
        await inbox.open()
        yield Store(inbox)
    finally:
        await inbox.close()


async def acks_are_told() -> None:
    """Let more time pass than acks of small batches wait for each other; then ask the bridge."""
    await asyncio.sleep(0.05 * SLOW_FACTOR)


async def publish(worker: Worker, *numbers: int) -> None:
    for number in numbers:
        await worker.publish(USER, number)


@dataclass
class Line:
    """The bridge that has the queue, and the ways that it goes."""

    first: RunningBridge
    to_broker: Proxy
    to_store: Proxy
    server: RedisServer
    store: Store
    worker: Worker

    def lose_queue(self) -> None:
        """Let the broker cut it off."""
        self.to_broker.refuse()
        self.to_broker.cut()


@pytest.fixture
async def line(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> AsyncIterator[Line]:
    """A bridge that has the queue, and has ways of its own to everything."""
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
        yield Line(first, to_broker, to_store, server, store, worker)


@asynccontextmanager
async def a_second_bridge(
    line: Line, broker: LocalNode, namespace: str
) -> AsyncIterator[RunningBridge]:
    """Run another one, next in the line."""
    settings = settings_for(broker, namespace, inbox=line.server.url)
    async with running_bridge(settings) as second:
        yield second


async def test_what_hung_on_its_way_to_the_store_comes_too_late(
    line: Line, broker: LocalNode, namespace: str
) -> None:
    """
    The network to Redis hangs, the broker gives the queue away, the network goes on.

    The script stands there already and runs by itself: only the store can refuse it.
    """
    store, worker = line.store, line.worker
    async with a_second_bridge(line, broker, namespace) as second:
        await publish(worker, 1, 2)
        await store.comes_to(1, 2)
        await acks_are_told()
        line.to_store.freeze()
        await publish(worker, 3, 4, 5)
        await eventually(lambda: line.first.bridge.components.intake.in_flight == 3)

        line.lose_queue()
        await publish(worker, 6)
        await store.comes_to(1, 2, 3, 4, 5, 6)
        line.to_store.heal()

        await eventually(
            lambda: line.first.sample("bridge_handed_over_batches_total") == 1
        )
        assert await store.numbers() == [1, 2, 3, 4, 5, 6]
        line.to_broker.heal()
        await eventually(lambda: not line.first.bridge.unready_reasons(), within_s=30)
        # What else it had in hand it did not even try to store.
        assert line.first.sample("bridge_handed_over_batches_total") == 1
        assert second.sample("bridge_handed_over_batches_total") == 0


async def test_a_token_that_is_claimed_too_late_is_never_used(
    line: Line, broker: LocalNode, namespace: str
) -> None:
    """
    The first bridge has stored nothing yet when it hangs: its token is the larger one.

    That it lost the queue, the broker tells it; and the claim alone keeps nobody out.
    """
    store, worker = line.store, line.worker
    async with a_second_bridge(line, broker, namespace) as second:
        line.to_store.freeze()
        await publish(worker, 1, 2)
        await eventually(lambda: line.first.bridge.components.intake.in_flight == 2)
        line.lose_queue()
        await publish(worker, 3)
        await store.comes_to(1, 2, 3)
        line.to_store.heal()

        stale = {"outcome": "stale", "reason": ""}
        await eventually(
            lambda: line.first.sample("bridge_deliveries_settled_total", **stale) > 0
        )
        await publish(worker, 4)
        await store.comes_to(1, 2, 3, 4)
        for bridge in (line.first, second):
            assert bridge.sample("bridge_handed_over_batches_total") == 0


async def test_a_bridge_that_lost_its_queue_gets_it_back_later(
    line: Line, broker: LocalNode, namespace: str
) -> None:
    """Queues move back and forth all the time: whoever has one stores, and nobody is shut out."""
    await publish(line.worker, 1)
    await line.store.comes_to(1)
    async with a_second_bridge(line, broker, namespace) as second:
        line.lose_queue()
        await publish(line.worker, 2)
        await line.store.comes_to(1, 2)
        line.to_broker.heal()
        await eventually(
            lambda: line.first.bridge.components.intake.is_consuming, within_s=30
        )
        assert second.sample("bridge_handed_over_batches_total") == 0

    await publish(line.worker, 3)
    await line.store.comes_to(1, 2, 3)
    assert line.first.sample("bridge_handed_over_batches_total") == 0


async def test_nobody_is_shut_out_of_a_store_that_was_emptied(line: Line) -> None:
    """FLUSHALL takes the tokens with everything else: what comes next is stored."""
    await publish(line.worker, 1)
    await line.store.comes_to(1)
    await asyncio.to_thread(line.server.command, "FLUSHALL")

    await publish(line.worker, 2)
    await line.store.comes_to(2)
    assert line.first.sample("bridge_handed_over_batches_total") == 0


@asynccontextmanager
async def a_process_in_front(
    broker: LocalNode, namespace: str, server: RedisServer, *, folder: Path, mutant: str
) -> AsyncIterator[tuple[BridgeProcess, Proxy]]:
    """Run a bridge of its own process, which has the queue, and can be frozen."""
    wire, public, operator = free_ports(3)
    process = BridgeProcess(folder, operator, OPERATOR_TOKEN, mutant)
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
    SIGSTOP between taking messages and sending them to the store.

    One that does not know of fences stores them behind the newer ones, twice.
    """
    async with (
        RedisServer.start(tmp_path / "redis", is_durable=False) as server,
        store_of(server, namespace) as store,
        a_process_in_front(
            broker, namespace, server, folder=tmp_path, mutant=mutant
        ) as (process, to_broker),
        running_bridge(settings_for(broker, namespace, inbox=server.url)),
        open_worker(broker, namespace) as worker,
    ):
        await publish(worker, 1, 2)
        await store.comes_to(1, 2)
        await acks_are_told()
        assert await process.wait_until_ready(within_s=READY_WITHIN_S)
        await process.arm(FREEZE_BEFORE_APPEND, count=1)
        await publish(worker, 3)
        await eventually(lambda: not process.control.exists())

        to_broker.cut()
        await publish(worker, 4, 5)
        await store.comes_to(1, 2, 3, 4, 5)
        assert process.resume()

        if mutant:
            await store.comes_to(1, 2, 3, 4, 5, 3)
            return
        handed_over = b"intake.handed_over"
        await eventually(lambda: handed_over in process.log.read_bytes())
        assert await store.numbers() == [1, 2, 3, 4, 5]
        assert await process.wait_until_ready(within_s=READY_WITHIN_S)
        assert process.anomalies == []
