"""RabbitMQ stops, freezes or loses a queue under load: the bridge resumes automatically."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from bridge.core.broker_names import BrokerNames
from bridge.core.properties import PERSISTENT, Properties
from bridge.errors import BrokerUnavailableError, PublishRefusedError
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.dead_letters import take_all
from tests.integration.operator.dead_letter_fixtures import ready
from tests.integration.running import (
    RawWindow,
    RunningBridge,
    Worker,
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode

NUMBER = 300
CLOSE_CONNECTIONS = (
    '[rabbit_networking:close_connection(P, "a test") '
    "|| P <- rabbit_networking:connections()], ok."
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def node() -> AsyncIterator[LocalNode]:
    """A node of this module's own, for faults."""
    async with LocalNode.start(ready_within_s=90 * SLOW_FACTOR) as node:
        yield node


async def publish_until_confirmed(worker: Worker, number: int) -> None:
    """Publish again with the same id until the publish is confirmed."""
    properties = Properties(
        delivery_mode=PERSISTENT, message_id=f"message-{number}".encode()
    )
    while True:
        try:
            await worker.publish("ann", number, properties=properties)
        except (BrokerUnavailableError, PublishRefusedError):
            # Only another attempt can tell whether the broker is back.
            await asyncio.sleep(0.05)
        else:
            return


@asynccontextmanager
async def traffic(
    node: LocalNode, namespace: str
) -> AsyncIterator[tuple[RunningBridge, RawWindow, asyncio.Task[None]]]:
    """Run a bridge, a window of ann, and a worker that publishes numbers meanwhile."""
    settings = settings_for(node, namespace, broker_timeout="3s")

    async def publish_all(worker: Worker) -> None:
        for number in range(NUMBER):
            await publish_until_confirmed(worker, number)

    async with (
        running_bridge(settings) as running,
        open_worker(node, namespace) as worker,
        open_windows(running.listening.public_url, [running.token("ann")]) as (ann,),
        asyncio.TaskGroup() as tasks,
    ):
        publishing = tasks.create_task(publish_all(worker), name="worker")
        await eventually(lambda: len(ann.data()) > NUMBER // 10)
        yield running, ann, publishing


async def all_arrive(ann: RawWindow, publishing: asyncio.Task[None]) -> None:
    """Wait until every confirmed message has arrived once, in order."""
    await eventually(publishing.done, within_s=60)
    publishing.result()
    await eventually(lambda: len(ann.data()) >= NUMBER, within_s=30)
    assert ann.data() == list(range(NUMBER))


@pytest.mark.parametrize("ending", ["stop", "kill"])
async def test_a_broker_that_is_stopped_or_killed_and_started_again_loses_nothing(
    node: LocalNode, namespace: str, ending: str
) -> None:
    """Readiness reports the outage, and consuming resumes automatically."""
    async with traffic(node, namespace) as (running, ann, publishing):
        await (node.shut_down() if ending == "stop" else node.kill())
        await eventually(running.bridge.unready_reasons)
        await node.restart()

        await all_arrive(ann, publishing)
        await eventually(lambda: running.bridge.unready_reasons() == [])


async def test_a_broker_that_freezes_and_thaws_loses_nothing(
    node: LocalNode, namespace: str
) -> None:
    """Like a machine that swaps, or a virtual machine that is migrated."""
    async with traffic(node, namespace) as (_, ann, publishing):
        seen = len(ann.data())
        await node.freeze()
        # Frozen for longer than a call may take, so that calls do fail.
        await asyncio.sleep(4)
        await node.thaw()

        await all_arrive(ann, publishing)
        assert len(ann.data()) > seen


async def test_a_queue_deleted_under_the_bridge_is_declared_again(
    node: LocalNode, namespace: str
) -> None:
    """
    Later messages arrive. Those that arrived without a queue are dead letters.

    Only the messages in the queue are lost with it; here it is empty.
    """
    names = BrokerNames(namespace)
    async with (
        running_bridge(settings_for(node, namespace)) as running,
        open_worker(node, namespace) as worker,
        open_windows(running.listening.public_url, [running.token("ann")]) as (ann,),
    ):
        await worker.publish("ann", 0)
        await eventually(lambda: ann.data() == [0])

        await node.ctl("delete_queue", names.inbound_queue())
        confirmed = 1
        async with asyncio.timeout(20 * SLOW_FACTOR):
            while len(ann.data()) == 1:
                await publish_until_confirmed(worker, confirmed)
                confirmed += 1
                await asyncio.sleep(0.05)  # a worker that publishes at a steady rate

        async def are_all_settled() -> bool:
            return len(ann.data()) + await ready(node, names.dead) == confirmed

        await eventually(are_all_settled, within_s=20)
        letters = await take_all(node, names.dead)
        assert [int(each.body) for each in letters] + ann.data()[1:] == list(
            range(1, confirmed)
        )
        await eventually(lambda: running.bridge.unready_reasons() == [])


async def test_connections_closed_one_by_one_lose_nothing(
    node: LocalNode, namespace: str
) -> None:
    """An operator may do this at any time in the management page."""
    async with traffic(node, namespace) as (running, ann, publishing):
        for _ in range(3):
            await node.evaluate(CLOSE_CONNECTIONS)
            await eventually(lambda: not running.bridge.unready_reasons(), within_s=20)

        await all_arrive(ann, publishing)


async def test_a_dead_letter_that_the_broker_refuses_waits_and_the_reason_is_reported(
    node: LocalNode, namespace: str
) -> None:
    """
    After a lowered limit, as in RabbitMQ 4.0, the body fits into no queue, not even dead.

    A dead letter without its body would be a loss. Other messages are delivered. When an
    operator raises the limit, the dead letter is published automatically.
    """
    # RabbitMQ 3.10 reads the first setting, 4.0 the second.
    limit = (
        "application:set_env(rabbit, max_message_size, {0}), "
        "persistent_term:put(max_message_size, {0})."
    )
    settings = settings_for(node, namespace)
    async with running_bridge(settings):
        pass  # it declares the queues; messages wait there for the next bridge
    async with open_worker(node, namespace) as worker:
        await worker.publish("ann", body=b"{" + b"x" * 20_000)
        await worker.publish("ann", "next")
    await node.evaluate(limit.format(10_000))

    async with running_bridge(settings) as running:
        readiness = running.bridge.components.readiness
        reason = "message size 20001 is larger than configured max size 10000"
        await eventually(lambda: reason in " ".join(readiness.warnings()))
        url = running.listening.public_url
        async with open_windows(url, [running.token("ann")]) as (ann,):
            await eventually(lambda: ann.data() == ["next"])

        await node.evaluate(limit.format(128 * 1024 * 1024))
        await eventually(lambda: not readiness.warnings(), within_s=20)
        letters = await take_all(node, BrokerNames(namespace).dead)
        assert [len(letter.body) for letter in letters] == [20_001]


async def test_a_dead_letter_that_the_broker_refuses_repeats_the_others_once_at_most(
    node: LocalNode, namespace: str
) -> None:
    """The broker closes the channel for it, on which others are in flight."""
    limit = (
        "application:set_env(rabbit, max_message_size, {0}), "
        "persistent_term:put(max_message_size, {0})."
    )
    settings = settings_for(node, namespace)
    async with running_bridge(settings):
        pass  # it declares the queues; messages wait there for the next bridge
    async with open_worker(node, namespace) as worker:
        for number in range(40):
            large = number in (7, 23)
            await worker.publish("ann", body=b"{%d" % number + b"x" * 20_000 * large)
    await node.evaluate(limit.format(10_000))

    async with running_bridge(settings) as running:
        held = {"name": "bridge_held_deliveries", "outcome": "dead_letter"}
        await eventually(lambda: running.settled("dead_letter", "malformed_body") == 38)
        assert running.sample(**held) == 2
        await node.evaluate(limit.format(128 * 1024 * 1024))
        await eventually(lambda: running.sample(**held) == 0, within_s=20)

    letters = await take_all(node, BrokerNames(namespace).dead)
    counts = Counter(letter.body for letter in letters)
    assert len(counts) == 40
    assert max(counts.values()) <= 2
