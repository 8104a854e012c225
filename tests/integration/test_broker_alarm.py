"""A memory or disk alarm of the broker: publishing is blocked, and users get their messages."""

import asyncio
from functools import partial

import aiohttp
import pytest

from bridge.core.broker_names import BrokerNames
from tests.conftest import eventually
from tests.integration.dead_letters import take_all
from tests.integration.running import (
    RawWindow,
    RunningBridge,
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode

USERS = ["ann", "bob", "cem", "dan", "eva", "fay"]
BEFORE, AFTER = 5, 95  # messages of each user around the malformed ones


async def publish_around(broker: LocalNode, namespace: str, malformed: int) -> None:
    """Publish numbers to all users, and malformed bodies to ann among them."""
    async with open_worker(broker, namespace) as worker:

        async def publish_numbers(user: str, first: int, count: int) -> None:
            for number in range(first, first + count):
                await worker.publish(user, number)

        for first, count in ((0, BEFORE), (BEFORE, AFTER)):
            async with asyncio.TaskGroup() as tasks:
                for user in USERS:
                    tasks.create_task(publish_numbers(user, first, count))
            if first == 0:
                for number in range(malformed):
                    await worker.publish("ann", body=b"{%d" % number)


def has_all(window: RawWindow) -> bool:
    return len(window.data()) >= BEFORE + AFTER


async def health(running: RunningBridge) -> dict[str, object]:
    """Return the answer of `/health/ready`."""
    url = f"{running.listening.public_url}/health/ready"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        answer: dict[str, object] = await response.json()
        return answer


@pytest.mark.parametrize("malformed", [1, 30])
async def test_a_dead_letter_that_cannot_be_published_holds_up_no_message(
    broker: LocalNode, namespace: str, malformed: int
) -> None:
    """It is published once, after the alarm; until then the bridge reports why it waits."""
    settings = settings_for(broker, namespace, prefetch=200, broker_timeout="1s")
    names = BrokerNames(namespace)
    async with running_bridge(settings):
        pass  # it declares the queues and publishes the lock message
    await publish_around(broker, namespace, malformed)

    async with broker.memory_alarm(), running_bridge(settings) as running:
        url = running.listening.public_url
        tokens = [running.token(user) for user in USERS]
        async with open_windows(url, tokens) as windows:
            for window in windows:
                await eventually(partial(has_all, window), within_s=20)
                assert window.data() == list(range(BEFORE + AFTER))
            await eventually(
                lambda: running.bridge.components.intake.in_flight == malformed
            )

            async def warns() -> bool:
                return "memory" in str((await health(running))["warnings"])

            await eventually(warns)
            assert (await health(running))["ready"]
            held = running.sample("bridge_held_deliveries", outcome="dead_letter")
            assert held == malformed
            # Longer than a publish may take: it must not be sent twice.
            await asyncio.sleep(2)
            await broker.end_memory_alarm()
            await eventually(lambda: not running.bridge.components.intake.in_flight)

            async def is_quiet() -> bool:
                return (await health(running))["warnings"] == []

            await eventually(is_quiet)

    letters = await take_all(broker, names.dead)
    assert [letter.body for letter in letters] == [b"{%d" % n for n in range(malformed)]
    assert running.settled("dead_letter", "malformed_body") == malformed
    assert await take_all(broker, names.inbound_queue()) == []


async def test_a_bridge_that_stops_during_an_alarm_leaves_only_held_deliveries(
    broker: LocalNode, namespace: str
) -> None:
    """Everything around them was acked; the next bridge publishes their dead letters."""
    settings = settings_for(broker, namespace, prefetch=200)
    async with running_bridge(settings):
        pass
    await publish_around(broker, namespace, 3)

    async with broker.memory_alarm(), running_bridge(settings) as running:
        intake = running.bridge.components.intake
        await eventually(lambda: running.settled("stored") == len(USERS) * 100)
        await eventually(lambda: intake.in_flight == 3)

    left = await take_all(broker, BrokerNames(namespace).inbound_queue())
    assert [delivery.body for delivery in left] == [b"{0", b"{1", b"{2"]
