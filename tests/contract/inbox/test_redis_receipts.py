"""Receipts in a fleet: several bridges decide and publish about the same inboxes."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from bridge.core.message import Message
from bridge.core.message_options import MessageOptions, Tracking
from bridge.core.receipts import WorkerEvent
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.redis.encoding import pack, tag_of, unpack
from bridge.inbox.redis.store import RedisInbox
from tests.conftest import eventually
from tests.contract.inbox.conftest import redis
from tests.contract.inbox.files import Clock
from tests.redis_server import RedisServer

RETENTION = Retention(max_messages=100, max_age_s=1000, dedupe_s=60)


class Fleet:
    """Bridges that share one store and one clock."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.clock = clock
        self._folder = folder

    @asynccontextmanager
    async def bridge(self) -> AsyncIterator[RedisInbox]:
        """Open the store as one more bridge."""
        inbox = redis(RETENTION, clock=self.clock.steady, folder=self._folder)
        assert isinstance(inbox, RedisInbox)
        inbox.subscribe(lambda _: None)
        await inbox.open()
        try:
            yield inbox
        finally:
            await inbox.close()

    def message(
        self, number: int = 0, user: str = "ann", *, is_tracked: bool = True
    ) -> Message:
        """Return a message that must be delivered within 45 s if it is tracked."""
        tracking = Tracking(
            wants_receipt=True,
            correlation_id=f"{user}{number}",
            undelivered_after_s=45.0,
        )
        options = MessageOptions(tracking=tracking)
        now_s = self.clock.now_s
        return Message(
            user, "message", b"1", now_s, options=options if is_tracked else None
        )


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, clock: Clock) -> AsyncIterator[Fleet]:
    """A fleet without bridges."""
    yield Fleet(tmp_path, clock)


def told(events: Sequence[WorkerEvent]) -> list[str]:
    """Return which message each event is about, and its outcome."""
    return [f"{each.correlation_id}.{each.id.partition('.')[2]}" for each in events]


async def take(*bridges: RedisInbox) -> list[WorkerEvent]:
    """Let all bridges publish at the same time what they find."""
    found = await asyncio.gather(*(each.pending_events(100) for each in bridges))
    for inbox, events in zip(bridges, found, strict=True):
        await inbox.confirm_events(events)
    return [event for events in found for event in events]


async def test_a_page_on_another_bridge_receives_the_message(fleet: Fleet) -> None:
    """The bridge with the page moves the mark, and one of them publishes the outcome."""
    async with fleet.bridge() as storing, fleet.bridge() as showing:
        await showing.follow("ann")
        await storing.append([fleet.message()])
        await eventually(lambda: "ann" in showing.tracked)

        showing.mark_delivered("ann", 1)
        events: list[WorkerEvent] = []

        async def is_told() -> bool:
            events.extend(await take(storing, showing))
            return bool(events)

        await eventually(is_told)
        assert told(events) == ["ann0.delivered"]
        assert await take(storing, showing) == []


async def test_each_decision_is_made_once(fleet: Fleet) -> None:
    """All bridges look at the time at the same moment."""
    async with AsyncExitStack() as stack:
        bridges = [await stack.enter_async_context(fleet.bridge()) for _ in range(3)]
        users = [f"user{number}" for number in range(40)]
        for number in range(5):
            await bridges[0].append([fleet.message(number, user) for user in users])
        fleet.clock.now_s += 50

        events = await take(*bridges) + await take(*bridges) + await take(*bridges)

        assert len(events) == 200
        assert len({event.id for event in events}) == 200
        for user in users:
            of_user = told([event for event in events if event.user == user])
            assert of_user == [f"{user}{number}.undelivered" for number in range(5)]


async def test_events_of_a_bridge_that_stops_are_published_by_another_one(
    fleet: Fleet,
) -> None:
    """At once, because it lets them go; after a crash some seconds later."""
    async with fleet.bridge() as other:
        async with fleet.bridge() as stopping:
            await stopping.append([fleet.message()])
            fleet.clock.now_s += 50
            assert told(await stopping.pending_events(9)) == ["ann0.undelivered"]
            assert await other.pending_events(9) == []

        async def is_there() -> bool:
            return told(await other.pending_events(9)) == ["ann0.undelivered"]

        await eventually(is_there)


async def test_an_append_of_a_tracked_message_looks_nothing_up(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    """It adds the receipt and its time; only a mark or a deletion decides about others."""
    names = ("zadd", "zcard", "zrangebyscore", "lindex", "llen")
    counts: list[list[int]] = []
    async with fleet.bridge() as inbox:
        for message in (fleet.message(), fleet.message(1, is_tracked=False)) * 2:
            before = [calls_of(redis_server, name) for name in names]
            await inbox.append([message])
            after = [calls_of(redis_server, name) for name in names]
            counts.append([b - a for a, b in zip(before, after, strict=True)])

    *_, tracked, plain = counts  # the first ones of a user differ
    assert [a - b for a, b in zip(tracked, plain, strict=True)] == [2, 0, 0, 0, 0]


async def test_marks_of_many_users_are_written_in_several_calls(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    """Thousands of messages may be delivered at once, and the server decides about each."""
    users = [f"user{number}" for number in range(40)]
    async with fleet.bridge() as inbox:
        for user in users:
            await inbox.follow(user)
            await inbox.append([fleet.message(number, user) for number in range(100)])
        await eventually(lambda: set(users) == set(inbox.tracked))
        before = calls_of(redis_server, "evalsha")
        for user in users:
            inbox.mark_delivered(user, 100)
        await inbox.close()  # writes all marks
        calls = calls_of(redis_server, "evalsha") - before
    async with fleet.bridge() as inbox:
        found = 0
        while events := await take(inbox):
            found += sum(event.id.endswith(".delivered") for event in events)

    assert found == 4000
    assert calls >= 4


async def test_large_messages_of_one_user_are_swept_in_several_calls(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    """Undelivered messages are published with their data, and the server waits meanwhile."""
    async with fleet.bridge() as inbox:
        large = [
            replace(fleet.message(each), data=b"x" * 100_000) for each in range(40)
        ]
        await inbox.append(large)
        before = calls_of(redis_server, "evalsha")
        await inbox.sweep()
        idle = calls_of(redis_server, "evalsha") - before
        fleet.clock.now_s += 1001
        await inbox.sweep()
        calls = calls_of(redis_server, "evalsha") - before - 2 * idle
        events: list[WorkerEvent] = []
        while found := await take(inbox):
            events += found

    assert calls >= 3
    outcomes = ("undelivered", "trimmed")
    assert told(events) == [
        f"ann{each}.{one}" for each in range(40) for one in outcomes
    ]


async def test_a_key_costs_the_same_however_many_receipts_are_open(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    """A user who is away may have a thousand, while the progress of a job is reported."""
    async with fleet.bridge() as inbox:
        keyed = fleet.message()
        keyed.options = MessageOptions(key="k")
        await inbox.append([keyed])
        await inbox.append([fleet.message(number) for number in range(90)])
        before = calls_of(redis_server, "zrangebyscore")
        await inbox.append([replace(keyed)])

        assert calls_of(redis_server, "zrangebyscore") - before < 10


async def test_without_memory_events_are_published_and_nothing_is_decided(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    """Events that waited for the broker may fill the server; published ones free it."""
    async with fleet.bridge() as inbox:
        await inbox.append([fleet.message()])
        fleet.clock.now_s += 50
        await inbox.pending_events(0)  # decides
        await inbox.append([fleet.message(1)])
        fleet.clock.now_s += 50
        try:
            redis_server.command("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(StoreUnavailableError, match="OOM"):
                await inbox.append([fleet.message(2)])
            assert told(await take(inbox)) == ["ann0.undelivered"]
            assert await take(inbox) == []
        finally:
            redis_server.command("CONFIG", "SET", "maxmemory", "0")

        assert told(await take(inbox)) == ["ann1.undelivered"]


async def test_without_memory_old_messages_are_deleted(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    """Otherwise a server that is full once would stay full."""
    async with fleet.bridge() as inbox:
        await inbox.append([fleet.message()])
        fleet.clock.now_s += 1001
        try:
            redis_server.command("CONFIG", "SET", "maxmemory", "1")
            await inbox.sweep()
            key = f"{inbox.prefixes[tag_of('ann')]}m:ann"
            assert redis_server.command("EXISTS", key) == ":0"
        finally:
            redis_server.command("CONFIG", "SET", "maxmemory", "0")


def calls_of(server: RedisServer, command: str) -> int:
    """Return how often the server was asked to run a command."""
    statistics = server.command("INFO", "commandstats")
    found = re.search(rf"cmdstat_{command}:calls=(\d+)", statistics)
    return int(found[1]) if found else 0


def test_a_tracked_message_is_recognized_with_any_metadata() -> None:
    """Bridges of earlier versions read such messages as before."""
    for published_s in (None, 1.5):
        for trace_parent in (None, "00-a-b-01"):
            for key in (None, "k"):
                options = MessageOptions(
                    key=key,
                    throttle_s=2.0 if key else None,
                    tracking=Tracking(True),  # noqa: FBT003
                )
                message = Message("ann", "e", b"1", 1.0, "m")
                message.published_s, message.trace_parent = published_s, trace_parent
                message.options = options

                found = unpack("ann", pack(message))

                assert found.trace_parent == trace_parent
                assert found.published_s == published_s
                assert found.options is not None
                assert found.options.key == key
                assert found.options.tracking is not None
                message.options = None
                assert unpack("ann", pack(message)) == message
