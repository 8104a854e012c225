"""Bridges whose inboxes nobody shares, on one namespace: one takes the messages, no other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from bridge.demo.private_node import LocalNode
from tests.conftest import eventually
from tests.integration.running import (
    RunningBridge,
    Worker,
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
)
from tests.redis_server import RedisServer

USERS = [f"user{number}" for number in range(12)]
OWN = "another bridge with an inbox of its own consumes"
SHARED = "bridges with a shared inbox consume"


def problem_of(running: RunningBridge) -> str:
    """Return who is in its way, as /health/ready says."""
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
    """Run a bridge that somebody is in the way of; entered when it says so."""
    settings = settings_for(broker, namespace, **changes)
    async with running_bridge(settings, until_ready=False) as running:
        await eventually(lambda: running.bridge.components.intake.problem, within_s=20)
        yield running


@pytest.mark.parametrize("shards", [1, 3])
async def test_a_second_bridge_takes_no_share_and_takes_over_when_the_first_has_gone(
    broker: LocalNode, namespace: str, shards: int
) -> None:
    """
    Else each would have a part of what a user gets, and its windows would see that alone.

    Every message of before is in the first inbox and every later one in the second.
    """
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(open_worker(broker, namespace))
        first = await stack.enter_async_context(
            running_bridge(settings_for(broker, namespace, shards=shards))
        )
        await publish_to_all(worker, 1)  # so that every shard is active here
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


async def test_of_two_that_come_in_one_moment_one_takes_the_messages(
    broker: LocalNode, namespace: str
) -> None:
    """Each tells of itself before it looks, so not both can miss the other."""
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


async def test_the_bridge_that_goes_on_with_a_file_waits_for_nobody_else(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """A restart that overlaps: the new one has the file, and the messages, after the old."""
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
        # Alone, it keeps every shard, whoever else might count as a bridge.
        assert new.bridge.components.intake.shards_active > 1


async def test_bridges_that_share_an_inbox_and_one_that_does_not_keep_apart(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """Whoever came first stays; the other is not ready, and says what is in its way."""
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
