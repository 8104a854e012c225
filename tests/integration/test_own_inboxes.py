"""Bridges with stores of their own in one namespace: only one of them consumes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.conftest import eventually
from tests.integration.running import (
    RunningBridge,
    Worker,
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode
from tests.redis_server import RedisServer

USERS = [f"user{number}" for number in range(12)]
OWN = "another bridge with an inbox of its own consumes"
SHARED = "bridges with a shared inbox consume"


def problem_of(running: RunningBridge) -> str:
    """Return why the bridge is not ready."""
    return "; ".join(running.bridge.unready_reasons())


async def publish_to_all(worker: Worker, number: int) -> None:
    """Publish one message to each user."""
    async with asyncio.TaskGroup() as tasks:
        for user in USERS:
            tasks.create_task(worker.publish(user, number))


@asynccontextmanager
async def waiting_bridge(
    broker: LocalNode, namespace: str, **changes: object
) -> AsyncIterator[RunningBridge]:
    """Run a bridge that another one keeps from consuming; wait until it reports that."""
    settings = settings_for(broker, namespace, **changes)
    async with running_bridge(settings, until_ready=False) as running:
        await eventually(lambda: running.bridge.components.intake.problem, within_s=20)
        yield running


@pytest.mark.parametrize("shards", [1, 3])
async def test_a_second_bridge_consumes_only_after_the_first_has_stopped(
    broker: LocalNode, namespace: str, shards: int
) -> None:
    """
    If both consumed, each store would hold only some of a user's messages.

    The first store receives all messages until the first bridge stops, the second all
    later ones.
    """
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(open_worker(broker, namespace))
        first = await stack.enter_async_context(
            running_bridge(settings_for(broker, namespace, shards=shards))
        )
        await publish_to_all(worker, 1)  # activates every shard here
        second = await stack.enter_async_context(
            waiting_bridge(broker, namespace, shards=shards)
        )
        assert OWN in problem_of(second)
        for number in range(2, 6):
            await publish_to_all(worker, number)
        await eventually(
            lambda: first.sample("bridge_deliveries_consumed_total") == 5 * len(USERS)
        )
        assert second.sample("bridge_deliveries_consumed_total") == 0
        assert first.bridge.unready_reasons() == []

        first.stop.set()
        await eventually(lambda: not second.bridge.unready_reasons(), within_s=20)
        await publish_to_all(worker, 6)
        await eventually(
            lambda: second.sample("bridge_deliveries_consumed_total") == len(USERS)
        )


async def test_of_bridges_that_start_concurrently_one_consumes(
    broker: LocalNode, namespace: str
) -> None:
    """Each announces itself before it checks for others, so they cannot miss each other."""
    async with AsyncExitStack() as stack:
        settings = settings_for(broker, namespace, shards=2)
        bridges = [
            await stack.enter_async_context(running_bridge(settings, until_ready=False))
            for _ in range(3)
        ]

        def ready() -> list[bool]:
            return [not each.bridge.unready_reasons() for each in bridges]

        def waiting() -> list[bool]:
            return [
                each.bridge.components.intake.problem is not None for each in bridges
            ]

        await eventually(lambda: any(ready()) and sum(waiting()) == 2, within_s=20)
        assert sum(ready()) == 1


async def test_a_bridge_that_takes_over_a_file_consumes_without_waiting(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """In an overlapping restart, the new bridge gets the file and the messages after the old."""
    inbox = f"sqlite:{tmp_path / 'inbox'}"
    settings = settings_for(broker, namespace, inbox=inbox, shards=3)
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(open_worker(broker, namespace))
        old = await stack.enter_async_context(running_bridge(settings))
        await eventually(lambda: old.bridge.components.intake.is_consuming)
        await publish_to_all(worker, 1)
        new = await stack.enter_async_context(
            running_bridge(settings, until_ready=False)
        )
        await publish_to_all(worker, 2)
        old.stop.set()
        await publish_to_all(worker, 3)
        await eventually(lambda: not new.bridge.unready_reasons(), within_s=20)
        await publish_to_all(worker, 4)
        tokens = [new.token(user) for user in USERS]
        async with open_windows(new.listening.public_url, tokens) as windows:
            await eventually(lambda: all(w.data() == [1, 2, 3, 4] for w in windows))
        # It is the only bridge, so it keeps every shard.
        assert new.bridge.components.intake.shards_active > 1


async def test_bridges_with_a_shared_store_and_one_with_its_own_do_not_mix(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """The first to consume continues; the other is not ready and reports why."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(
            RedisServer.start(tmp_path, is_durable=False)
        )
        first = await stack.enter_async_context(
            running_bridge(settings_for(broker, namespace))
        )
        shared = await stack.enter_async_context(
            waiting_bridge(broker, namespace, inbox=redis.url)
        )
        assert OWN in problem_of(shared)
        first.stop.set()
        await eventually(lambda: not shared.bridge.unready_reasons(), within_s=20)

        stray = await stack.enter_async_context(waiting_bridge(broker, namespace))
        assert SHARED in problem_of(stray)
        more = await stack.enter_async_context(
            running_bridge(settings_for(broker, namespace, inbox=redis.url))
        )
        assert stray.bridge.components.intake.problem is not None
        assert more.bridge.unready_reasons() == []
