"""Which bridges may consume a namespace; test_own_inboxes does the same with whole bridges."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
from aiormq.exceptions import ChannelNotFoundEntity
from structlog.testing import capture_logs

from bridge.amqp.connection import (
    BrokerAddress,
    Purpose,
    ignore_message,
    open_connection,
)
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.ownership import (
    ALONE,
    SHARED,
    LockMessage,
    NamespaceOwnership,
    OwnershipTiming,
)
from bridge.core.broker_names import BrokerNames
from bridge.errors import BrokerUnavailableError
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import open_raw
from tests.local_node import LocalNode


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def connect(
    stack: AsyncExitStack,
    address: BrokerAddress,
    names: BrokerNames,
    *,
    has_own_inbox: bool,
    timing: OwnershipTiming | None = None,
) -> NamespaceOwnership:
    """Connect a bridge that does nothing but acquire ownership."""
    connection = await open_connection(
        address, purpose=Purpose.CONSUME, reader=FrameReader
    )
    stack.push_async_callback(connection.disconnect)
    return NamespaceOwnership(
        connection, names, address=address, has_own_inbox=has_own_inbox, timing=timing
    )


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


async def acquires(ownership: NamespaceOwnership) -> bool:
    """Return whether it acquires ownership, and not a reason to wait."""
    async with asyncio.TaskGroup() as tasks:
        stopping = asyncio.Event()
        acquiring = tasks.create_task(ownership.acquire(stopping=stopping))
        await eventually(lambda: acquiring.done() or ownership.problem)
        has_acquired = acquiring.done()
        stopping.set()
    assert ownership.problem is None
    return has_acquired


async def has_no_conflict(ownership: NamespaceOwnership) -> bool:
    return await ownership.find_conflict() is None


async def test_two_kinds_of_bridges_that_start_together_do_not_both_consume(
    stack: AsyncExitStack, address: BrokerAddress, names: BrokerNames
) -> None:
    """Both have seen no other bridge: each claims its lock message and looks once more."""
    sharing = await connect(stack, address, names, has_own_inbox=False)
    own = await connect(stack, address, names, has_own_inbox=True)
    assert await has_no_conflict(sharing)
    assert await has_no_conflict(own)

    async with asyncio.TaskGroup() as tasks:
        claims = [tasks.create_task(each._claim()) for each in (sharing, own)]
    won = [claim.result() for claim in claims]
    assert sum(won) <= 1
    if not any(won):  # each has seen the other; their next attempts differ in time
        for each in (sharing, own):  # the broker notices a little later that they left
            await eventually(partial(has_no_conflict, each))
        assert [await acquires(sharing), await acquires(own)] == [True, False]


async def test_a_lock_message_is_kept_while_it_is_renewed(
    stack: AsyncExitStack, address: BrokerAddress, names: BrokerNames
) -> None:
    """The broker closes the channel of a bridge that holds a message for half an hour."""
    own = await connect(
        stack, address, names, has_own_inbox=True, timing=OwnershipTiming(renew_s=0.05)
    )
    assert await acquires(own)
    keeping = asyncio.create_task(own.keep(), name="keep ownership")
    other = await connect(stack, address, names, has_own_inbox=True)
    for _ in range(20):
        assert not await acquires(other)

    assert not keeping.done()
    keeping.cancel()
    await asyncio.wait([keeping])


async def test_a_lock_message_is_renewed_within_a_short_ack_timeout(
    stack: AsyncExitStack, names: BrokerNames
) -> None:
    """The owner lost it at each timeout of 6 s, and another bridge took over."""
    node = await stack.enter_async_context(
        LocalNode.start(ready_within_s=90 * SLOW_FACTOR)
    )
    for name, value_ms in (("consumer_timeout", 6000), ("channel_tick_interval", 100)):
        await node.evaluate(f"application:set_env(rabbit, {name}, {value_ms}).")
    address = BrokerAddress((node.url,))
    own = await connect(stack, address, names, has_own_inbox=True)
    assert await acquires(own)
    keeping = asyncio.create_task(own.keep(), name="keep ownership")
    other = await connect(stack, address, names, has_own_inbox=True)
    assert not await acquires(other)
    # A later delivery that is not acked: when it times out, the lock message would have.
    witness = await stack.enter_async_context(open_raw(node.url))
    await witness.channel.queue_declare("witness", auto_delete=True)
    await witness.channel.basic_publish(b"{}", routing_key="witness")
    await witness.channel.basic_consume("witness", ignore_message)

    await eventually(lambda: witness.channel.is_closed, within_s=20)

    assert own._lock.is_requested
    assert not await acquires(other)
    keeping.cancel()
    await asyncio.wait([keeping])


async def test_a_lock_message_that_is_lost_to_the_ack_timeout_is_reported_as_such(
    stack: AsyncExitStack, address: BrokerAddress, names: BrokerNames
) -> None:
    """The text of the broker says what happened; `is the queue deleted?` misled."""
    own = await connect(stack, address, names, has_own_inbox=True)
    assert await acquires(own)
    keeping = asyncio.create_task(own.keep(), name="keep ownership")
    channel, _ = own._lock._consumer or pytest.fail("not requested")
    with pytest.raises(ChannelNotFoundEntity):
        await channel.queue_declare(f"{names.namespace}.none", passive=True)

    with pytest.raises(BrokerUnavailableError, match="no queue"):
        await keeping


async def test_a_lock_message_that_a_policy_has_removed_is_published_again(
    stack: AsyncExitStack,
    broker: LocalNode,
    address: BrokerAddress,
    names: BrokerNames,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each renewal counts against a delivery limit, which must not end the session."""
    timing = OwnershipTiming(renew_s=0.05, redeliver_s=0.5)
    async with policy(broker, names, {"delivery-limit": 1}):
        own = await connect(stack, address, names, has_own_inbox=True, timing=timing)
        assert await acquires(own)
        published: list[LockMessage] = []
        publish = LockMessage._publish

        async def record(lock: LockMessage) -> None:
            published.append(lock)
            await publish(lock)

        monkeypatch.setattr(LockMessage, "_publish", record)
        keeping = asyncio.create_task(own.keep(), name="keep ownership")
        await eventually(lambda: len(published) == 2 or keeping.done())
        other = await connect(stack, address, names, has_own_inbox=True)
        assert not await acquires(other)

        assert not keeping.done()
        keeping.cancel()
        await asyncio.wait([keeping])


async def test_of_two_lock_messages_one_is_kept(
    stack: AsyncExitStack, address: BrokerAddress, names: BrokerNames
) -> None:
    """Two bridges may publish one each into a new queue."""
    own = await connect(stack, address, names, has_own_inbox=True)
    assert await acquires(own)
    lock = own._lock
    await lock._publish()
    await eventually(lambda: lock._count == 2)

    await lock.renew()

    await lock.release()
    async with open_raw(address.urls[0]) as operator:
        assert await operator.holds(lock.queue, 1)


async def test_a_lock_message_that_is_never_delivered_is_reported(
    stack: AsyncExitStack,
    broker: LocalNode,
    address: BrokerAddress,
    names: BrokerNames,
) -> None:
    """Otherwise the bridge would wait forever for no visible reason."""
    timing = OwnershipTiming(failed_claims=1)
    async with policy(broker, names, {"message-ttl": 0}), asyncio.TaskGroup() as tasks:
        own = await connect(stack, address, names, has_own_inbox=True, timing=timing)
        stopping = asyncio.Event()
        tasks.create_task(own.acquire(stopping=stopping))
        await eventually(lambda: own.problem)
        problem = str(own.problem)
        stopping.set()

    assert "does a policy remove messages from that queue" in problem


async def test_a_waiting_bridge_reports_the_current_conflict(
    stack: AsyncExitStack,
    address: BrokerAddress,
    names: BrokerNames,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Readiness named the first one for as long as the bridge waited."""
    timing = OwnershipTiming(poll_s=0.001)
    own = await connect(stack, address, names, has_own_inbox=True, timing=timing)
    conflicts = iter(("one", "one", "another", None))
    problems: list[str | None] = []

    async def find_conflict() -> str | None:
        problems.append(own.problem)
        return next(conflicts)

    monkeypatch.setattr(own, "find_conflict", find_conflict)
    with capture_logs() as lines:
        await own.acquire(stopping=asyncio.Event())

    assert problems == [None, "one", "one", "another"]
    assert own.problem is None
    assert [(line["event"], line.get("problem")) for line in lines] == [
        ("ownership.waiting", "one"),
        ("ownership.waiting", "another"),
        ("ownership.acquired", None),
    ]


async def test_a_bridge_with_its_own_inbox_consumes_as_long_as_others_can_see_it(
    stack: AsyncExitStack, address: BrokerAddress, names: BrokerNames
) -> None:
    """The first bridge has consumed already; if it becomes invisible, it starts again."""
    own = await connect(stack, address, names, has_own_inbox=True)
    assert await acquires(own)
    other = await connect(stack, address, names, has_own_inbox=True)
    assert not await acquires(other)

    keeping = asyncio.create_task(own.keep(), name="keep ownership")
    assert not await acquires(other)
    assert await own.is_exclusive()
    assert not keeping.done()
    async with open_raw(address.urls[0]) as operator:
        await operator.channel.queue_delete(names.lock_queue(ALONE))
    with pytest.raises(BrokerUnavailableError, match="is the queue deleted"):
        await keeping


async def test_ownership_ends_with_its_connection_however_that_ends(
    stack: AsyncExitStack, address: BrokerAddress, names: BrokerNames
) -> None:
    """No other bridge must wait for one that was killed."""
    gone = await open_connection(address, purpose=Purpose.CONSUME, reader=FrameReader)
    owner = NamespaceOwnership(gone, names, address=address, has_own_inbox=True)
    assert await acquires(owner)
    gone.abort()

    other = await connect(stack, address, names, has_own_inbox=True)
    await eventually(lambda: acquires(other))
    await gone.disconnect()


@pytest.fixture(autouse=True)
async def _delete_lock_queues(
    address: BrokerAddress, names: BrokerNames
) -> AsyncIterator[None]:
    yield
    async with open_raw(address.urls[0]) as cleaner:
        await cleaner.channel.queue_delete(names.lock_queue(ALONE))
        await cleaner.channel.queue_delete(names.lock_queue(SHARED))
