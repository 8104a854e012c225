"""Whoever has an inbox of its own takes messages alone; see test_own_inboxes for bridges."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest

import bridge.amqp.lock_message
import bridge.amqp.ownership
from bridge.amqp.connection import BrokerAddress, Purpose, open_connection
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.lock_message import Token
from bridge.amqp.ownership import ALONE, SHARED, Neighbours
from bridge.core.broker_names import BrokerNames
from bridge.demo.private_node import LocalNode
from bridge.errors import BrokerUnavailableError
from tests.conftest import eventually
from tests.integration.amqp.conftest import open_raw


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


@asynccontextmanager
async def policy(
    broker: LocalNode, names: BrokerNames, definition: Mapping[str, int]
) -> AsyncIterator[None]:
    """Apply a policy to all queues of a namespace."""
    name = names.namespace
    text = json.dumps(definition)
    await broker.ctl("set_policy", name, rf"^{name}\.", text, "--apply-to", "queues")
    try:
        yield
    finally:
        await broker.ctl("clear_policy", name)


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


async def nobody_in_the_way(neighbours: Neighbours) -> bool:
    """Look once."""
    return await neighbours.in_the_way() is None


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
        for each in (sharing, own):  # the broker takes a moment to know that they left
            await eventually(partial(nobody_in_the_way, each))
        assert [await has_turn(sharing), await has_turn(own)] == [True, False]


async def test_a_token_that_is_renewed_stays_where_it_is(
    stack: AsyncExitStack,
    address: BrokerAddress,
    names: BrokerNames,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker closes the channel of who holds a message for half an hour."""
    monkeypatch.setattr(bridge.amqp.ownership, "_RENEW_EACH_S", 0.05)
    own = await one(stack, address, names, has_own_inbox=True)
    assert await has_turn(own)
    keeping = asyncio.create_task(own.keep_apart(), name="keep apart")
    other = await one(stack, address, names, has_own_inbox=True)
    for _ in range(20):
        assert not await has_turn(other)

    assert not keeping.done()
    keeping.cancel()
    await asyncio.wait([keeping])


async def test_a_token_that_a_policy_has_taken_away_is_put_there_again(
    stack: AsyncExitStack,
    broker: LocalNode,
    address: BrokerAddress,
    names: BrokerNames,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each renewal counts against a delivery limit; the session would end over it."""
    monkeypatch.setattr(bridge.amqp.ownership, "_RENEW_EACH_S", 0.05)
    monkeypatch.setattr(bridge.amqp.lock_message, "_GIVEN_BACK_WITHIN_S", 0.5)
    async with policy(broker, names, {"delivery-limit": 1}):
        own = await one(stack, address, names, has_own_inbox=True)
        assert await has_turn(own)
        put: list[Token] = []
        put_one = Token._put

        async def note(token: Token) -> None:
            put.append(token)
            await put_one(token)

        monkeypatch.setattr(Token, "_put", note)
        keeping = asyncio.create_task(own.keep_apart(), name="keep apart")
        await eventually(lambda: len(put) == 2 or keeping.done())
        other = await one(stack, address, names, has_own_inbox=True)
        assert not await has_turn(other)

        assert not keeping.done()
        keeping.cancel()
        await asyncio.wait([keeping])


async def test_of_two_tokens_one_is_kept(
    stack: AsyncExitStack, address: BrokerAddress, names: BrokerNames
) -> None:
    """Two bridges may put one each into a new queue; they would come together with each loss."""
    own = await one(stack, address, names, has_own_inbox=True)
    assert await has_turn(own)
    token = own._ours
    await token._put()
    await eventually(lambda: token._held == 2)

    await token.renew()

    await own._ours.leave()
    async with open_raw(address.urls[0]) as operator:
        assert await operator.holds(token.queue, 1)


async def test_who_is_given_no_token_though_nobody_has_it_says_so(
    stack: AsyncExitStack,
    broker: LocalNode,
    address: BrokerAddress,
    names: BrokerNames,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bridge that waits for ever, and nobody knows for what."""
    monkeypatch.setattr(bridge.amqp.ownership, "_IN_VAIN", 1)
    told: list[str | None] = []
    async with policy(broker, names, {"message-ttl": 0}), asyncio.TaskGroup() as tasks:
        own = await one(stack, address, names, has_own_inbox=True)
        stopping = asyncio.Event()
        tasks.create_task(own.wait_until_gone(stopping=stopping, tell=told.append))
        await eventually(lambda: told)
        stopping.set()

    assert "does a policy take messages out of that queue" in str(told[0])


async def test_who_waits_tells_of_whoever_is_in_the_way_now(
    stack: AsyncExitStack,
    address: BrokerAddress,
    names: BrokerNames,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Readiness named the first of them for as long as it waited."""
    monkeypatch.setattr(bridge.amqp.ownership, "_LOOK_EACH_S", 0.001)
    own = await one(stack, address, names, has_own_inbox=True)
    answers = iter(("one", "one", "another", None))

    async def in_the_way() -> str | None:
        return next(answers)

    monkeypatch.setattr(own, "in_the_way", in_the_way)
    told: list[str | None] = []

    await own.wait_until_gone(stopping=asyncio.Event(), tell=told.append)

    assert told == ["one", "another", None]


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
