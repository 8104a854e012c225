"""Whoever has an inbox of its own takes messages alone; see test_own_inboxes for bridges."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

import bridge.broker.alone
from bridge.broker.alone import ALONE, SHARED, Neighbours
from bridge.broker.connection import BrokerAddress, Purpose, open_connection
from bridge.broker.frame_reader import FrameReader
from bridge.errors import BrokerUnavailableError
from bridge.names import BrokerNames
from tests.conftest import eventually
from tests.integration.broker.conftest import open_raw


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
    return Neighbours(connection, names, address=address, has_own_inbox=has_own_inbox)


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


async def test_of_two_kinds_that_come_in_one_moment_not_both_take_messages(
    stack: AsyncExitStack, address: BrokerAddress, names: BrokerNames
) -> None:
    """Both have looked and seen nobody: each tells of itself and looks once more."""
    sharing = await one(stack, address, names, has_own_inbox=False)
    own = await one(stack, address, names, has_own_inbox=True)
    assert await sharing.in_the_way() is await own.in_the_way() is None

    async with asyncio.TaskGroup() as tasks:
        claims = [tasks.create_task(each._claim()) for each in (sharing, own)]
    won = [claim.result() for claim in claims]
    assert sum(won) <= 1
    if not any(won):  # each has seen the other: the next try is one after the other
        assert [await has_turn(sharing), await has_turn(own)] == [True, False]


async def test_a_token_that_is_renewed_stays_where_it_is(
    stack: AsyncExitStack,
    address: BrokerAddress,
    names: BrokerNames,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker closes the channel of who holds a message for half an hour."""
    monkeypatch.setattr(bridge.broker.alone, "_RENEW_EACH_S", 0.05)
    own = await one(stack, address, names, has_own_inbox=True)
    assert await has_turn(own)
    keeping = asyncio.create_task(own.keep_apart(), name="keep apart")
    other = await one(stack, address, names, has_own_inbox=True)
    for _ in range(20):
        assert not await has_turn(other)

    assert not keeping.done()
    keeping.cancel()
    await asyncio.wait([keeping])


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
    assert await own.is_one_alone()
    assert not keeping.done()
    async with open_raw(address.urls[0]) as operator:
        await operator.channel.queue_delete(names.token(ALONE))
    with pytest.raises(BrokerUnavailableError, match="is the queue deleted"):
        await keeping


async def test_a_claim_ends_with_its_connection_however_that_ends(
    stack: AsyncExitStack, address: BrokerAddress, names: BrokerNames
) -> None:
    """A bridge that is killed says no goodbye, and nobody else must wait for it."""
    gone = await open_connection(address, purpose=Purpose.CONSUME, reader=FrameReader)
    claimed = Neighbours(gone, names, address=address, has_own_inbox=True)
    assert await has_turn(claimed)
    gone.abort()

    other = await one(stack, address, names, has_own_inbox=True)
    await eventually(lambda: has_turn(other))
    await gone.leave()


@pytest.fixture(autouse=True)
async def tidy(address: BrokerAddress, names: BrokerNames) -> AsyncIterator[None]:
    """Delete the queue that these tests make."""
    yield
    async with open_raw(address.urls[0]) as cleaner:
        await cleaner.channel.queue_delete(names.token(ALONE))
        await cleaner.channel.queue_delete(names.token(SHARED))
