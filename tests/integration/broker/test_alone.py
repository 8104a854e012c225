"""Whoever has an inbox of its own takes messages alone; see test_own_inboxes for bridges."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from bridge.broker.alone import Neighbours
from bridge.broker.connection import BrokerAddress, Purpose, open_connection
from bridge.broker.frame_reader import FrameReader
from bridge.broker.shards import ShardPlan
from bridge.errors import BrokerUnavailableError
from bridge.names import BrokerNames
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.broker.conftest import open_raw

PLAN_TIMEOUT_S = 10 * SLOW_FACTOR


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def one(
    stack: AsyncExitStack,
    address: BrokerAddress,
    names: BrokerNames,
    *,
    has_own_inbox: bool,
) -> Neighbours:
    """Connect a bridge that looks, and does nothing else."""
    connection = await open_connection(
        address, purpose=Purpose.CONSUME, reader=FrameReader
    )
    stack.push_async_callback(connection.leave)
    plan = ShardPlan(names, (1.0,), timeout_s=PLAN_TIMEOUT_S)
    return Neighbours(connection, plan, has_own_inbox=has_own_inbox)


async def has_turn(neighbours: Neighbours) -> bool:
    """Wait for its turn for a moment."""
    told: list[str | None] = []
    async with asyncio.TaskGroup() as tasks:
        stopping = asyncio.Event()
        waiting = tasks.create_task(
            neighbours.wait_until_gone(stopping=stopping, tell=told.append)
        )
        await eventually(lambda: waiting.done() or any(told))
        stopping.set()
    assert told[-1] is None
    return len(told) == 1


async def test_a_bridge_that_shares_its_inbox_steps_back_if_both_looked_too_early(
    stack: AsyncExitStack, address: BrokerAddress, names: BrokerNames
) -> None:
    """It looks, the other looks and tells of itself, it consumes: so it looks once more."""
    sharing = await one(stack, address, names, has_own_inbox=False)
    assert await has_turn(sharing)
    own = await one(stack, address, names, has_own_inbox=True)
    assert await has_turn(own)

    with pytest.raises(BrokerUnavailableError, match="its inbox is its own"):
        await sharing.keep_apart()
    assert not await has_turn(sharing)


async def test_one_with_an_inbox_of_its_own_stays_as_long_as_others_can_see_it(
    stack: AsyncExitStack, address: BrokerAddress, names: BrokerNames
) -> None:
    """Who came first has taken messages already; who cannot be seen any more begins anew."""
    own = await one(stack, address, names, has_own_inbox=True)
    assert await has_turn(own)
    other = await one(stack, address, names, has_own_inbox=True)
    assert not await has_turn(other)

    keeping = asyncio.create_task(own.keep_apart(), name="keep apart")
    assert not await has_turn(other)
    assert await own.count_alone() == 1
    assert not keeping.done()
    async with open_raw(address.urls[0]) as operator:
        await operator.channel.queue_delete(names.alone)
    with pytest.raises(BrokerUnavailableError, match="is the queue deleted"):
        await keeping


async def test_a_claim_ends_with_its_connection_however_that_ends(
    stack: AsyncExitStack, address: BrokerAddress, names: BrokerNames
) -> None:
    """A bridge that is killed says no goodbye, and nobody else must wait for it."""
    gone = await open_connection(address, purpose=Purpose.CONSUME, reader=FrameReader)
    plan = ShardPlan(names, (1.0,), timeout_s=PLAN_TIMEOUT_S)
    assert await has_turn(Neighbours(gone, plan, has_own_inbox=True))
    gone.abort()

    other = await one(stack, address, names, has_own_inbox=True)
    await eventually(lambda: has_turn(other))
    await gone.leave()


@pytest.fixture(autouse=True)
async def tidy(address: BrokerAddress, names: BrokerNames) -> AsyncIterator[None]:
    """Delete the queue that these tests make."""
    yield
    async with open_raw(address.urls[0]) as cleaner:
        await cleaner.channel.queue_delete(names.alone)
