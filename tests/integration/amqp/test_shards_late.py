"""Bridges that are slow to declare a number of shards, while it is changed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import aiormq
import pytest
from aiormq.abc import AbstractConnection
from pamqp.base import Frame

from bridge.amqp.connection import Purpose, connected
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.shards.migration import ShardMigration
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.test_shards import USERS, ShardedSetup, changed, sharded

__all__ = ["sharded"]

# As many calls as a bridge needs to declare everything, and some more.
CALLS = range(60)


@dataclass
class LateCalls:
    """Each of several connections waits before one of its calls to the broker."""

    steps: dict[AbstractConnection, int] = field(default_factory=dict)
    waiting: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def before_call(self, connection: AbstractConnection) -> None:
        """Count the call, and wait if it is the one."""
        left = self.steps.get(connection)
        if left is None:
            return
        self.steps[connection] = left - 1
        if left == 0:
            self.waiting += 1
            await self.go.wait()


@pytest.fixture
def late_calls(monkeypatch: pytest.MonkeyPatch) -> LateCalls:
    """Delay the calls of the connections in `steps`."""
    late = LateCalls()
    send = aiormq.Channel.rpc

    async def rpc(
        self: aiormq.Channel, frame: Frame, timeout: float | None = None
    ) -> object:
        await late.before_call(self.connection)
        return await send(self, frame, timeout=timeout)

    monkeypatch.setattr(aiormq.Channel, "rpc", rpc)
    return late


@asynccontextmanager
async def publishing(at: ShardedSetup) -> AsyncIterator[None]:
    """Publish to all users until the block ends."""
    is_over = asyncio.Event()

    async def keep_publishing() -> None:
        while not is_over.is_set():
            await at.publish()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(keep_publishing())
        try:
            yield
        finally:
            is_over.set()


@pytest.mark.parametrize("before", [1, 3])
async def test_bridges_that_declare_the_previous_number_late_reorder_nothing(
    sharded: ShardedSetup, late_calls: LateCalls, before: int
) -> None:
    """They have read it before the change, and each was slow at another step."""
    # A call that waits here takes no longer than the test.
    address = replace(sharded.address, timeout_s=60 * SLOW_FACTOR)
    plan = replace(sharded.plan(1), timeout_s=60 * SLOW_FACTOR)
    await sharded.migration().ensure()
    if before > 1:
        async with sharded.bridge(1):
            await changed(sharded, before)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        bridges = []
        for step in CALLS:
            connection = await stack.enter_async_context(
                connected(address, purpose=Purpose.OPERATE, reader=FrameReader)
            )
            late_calls.steps[connection.wire] = step
            ensuring = ShardMigration(connection, plan).ensure()
            bridges.append(tasks.create_task(ensuring))
        await eventually(
            lambda: (
                late_calls.waiting + sum(one.done() for one in bridges) == len(CALLS)
            ),
            within_s=30,
        )
        async with publishing(sharded):
            await eventually(lambda: sharded.backlog > len(USERS))
            await sharded.migration().change(2)
            late_calls.go.set()
            await asyncio.wait(bridges, timeout=30 * SLOW_FACTOR)

    async with sharded.bridge(1):
        await sharded.all_stored()
    sharded.check_each_once_and_in_order()
    assert {(await one).shards for one in bridges} == {before, 2}
