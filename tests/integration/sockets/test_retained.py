"""A new window receives the newest message of each retained key first."""

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from bridge.core.message import Stored
from bridge.core.message_options import MessageOptions
from bridge.core.replay import InboxPage, InboxState
from bridge.inbox.contract import Retention
from bridge.inbox.memory.store import MemoryInbox
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.raw_pages import RawWindow, raw_window
from tests.integration.sockets.running_server import (
    RunningServer,
    memory_inbox,
    message,
    open_server,
)
from tests.integration.sockets.test_messages import TRANSPORTS, options

NEW = {"complete": None, "missed": None, "reason": None}


async def store(
    server: RunningServer, data: object, key: str | None = None, **flags: Any
) -> None:
    """Store one message of alice."""
    one = message("alice", data)
    if key is not None:
        one.options = MessageOptions(key=key, **flags)
    await server.inbox.append([one])


async def test_a_new_window_receives_what_the_user_has_had(
    server: RunningServer,
) -> None:
    """First, with the position at which the replay of the others begins."""
    await store(server, 1, "job", is_retained=True)
    await store(server, "plain")
    server.inbox.mark_delivered("alice", 2)
    await store(server, "new")

    for _ in range(2):
        async with raw_window(server) as window:
            reply = await window.join("alice", acks="manual")
            events, sync = await window.synced()

        start = reply["pid"].partition(".")[0]
        assert events[0] == ["message", 1, start]
        assert [event[1] for event in events] == [1, "new"]
        assert start.endswith("-2")
        assert sync == {"replayed": 1, **NEW}
    assert (await server.inbox.state("alice")).delivered == 2


async def test_a_window_without_new_messages_receives_them_too(
    server: RunningServer,
) -> None:
    """Then live messages follow."""
    await store(server, 1, "job", is_retained=True)
    server.inbox.mark_delivered("alice", 1)

    async with raw_window(server) as window:
        await window.join("alice")
        events, sync = await window.synced()
        assert [event[1] for event in events] == [1]
        assert sync == {"replayed": 0, **NEW}
        await store(server, 2, "job")
        live = json.loads((await window.receive_until('42["message"'))[-1][2:])
    assert (live[1], live[2][-2:]) == (2, "-2")


@TRANSPORTS
async def test_a_recovered_window_receives_only_what_it_has_not_had(
    server: RunningServer, pages: Pages, transport: str
) -> None:
    """It has missed nothing, so it has the newest message of each key."""
    await store(server, 1, "job", is_retained=True)
    server.inbox.mark_delivered("alice", 1)
    await pages.connected("page", server.url, **options("alice", transport))
    await store(server, "live")
    await pages.until("page", "event", "message", count=2)

    server.cut("alice")
    await store(server, 2, "job")

    again = await pages.until("page", "connect", count=2)
    await pages.until("page", "event", "message", count=3)
    await pages.until("page", "event", "bridge:sync", count=2)
    assert again[0]["recovered"] is True
    assert pages.data("page") == [1, "live", 2]


async def test_a_window_that_may_lack_some_receives_them_again(
    server: RunningServer, pages: Pages
) -> None:
    """Its connection was lost before anything else: maybe in the middle of them."""
    await store(server, 1, "job", is_retained=True)
    server.inbox.mark_delivered("alice", 1)
    await pages.connected("page", server.url, **options("alice", "websocket"))
    await pages.until("page", "event", "message")

    server.cut("alice")

    again = await pages.until("page", "connect", count=2)
    await pages.until("page", "event", "message", count=2)
    assert again[0]["recovered"] is True
    assert pages.data("page") == [1, 1]


async def test_a_position_that_a_page_has_stored_is_no_proof(
    server: RunningServer,
) -> None:
    """After a reload the page has the position, but not the values."""
    await store(server, 1, "job", is_retained=True)
    await store(server, "plain")
    async with raw_window(server) as window:
        await window.join("alice")
        (_, last), _ = await window.synced()
    async with raw_window(server) as window:
        await window.join("alice", position=last[-1])
        events, sync = await window.synced()

    assert events == [["message", 1, last[-1]]]
    assert sync == {"replayed": 0, "complete": True, "missed": 0, "reason": None}


async def test_a_position_before_a_held_value_hides_no_retained_message(
    server: RunningServer,
) -> None:
    """The page before the reload had message 3, but message 2 was held back from it."""
    await store(server, "a", "job a", is_retained=True)
    await store(server, "held")
    await store(server, "b", "job b", is_retained=True)
    async with raw_window(server) as window:
        reply = await window.join("alice")
        await window.synced()
    epoch = reply["pid"].partition("-")[0]
    async with raw_window(server) as window:
        await window.join("alice", position=f"{epoch}-3-1")
        events, sync = await window.synced()

    assert [event[1] for event in events] == ["a", "b", "held"]
    assert [event[2] for event in events[:2]] == [f"{epoch}-3-1"] * 2
    assert (sync["replayed"], sync["complete"]) == (1, True)


async def test_a_window_that_has_missed_something_receives_them() -> None:
    """Also those that were deleted from the inbox."""
    async with open_server(inbox=memory_inbox(max_messages=3)) as server:
        await store(server, 1, "job", is_retained=True)
        async with raw_window(server) as window:
            reply = await window.join("alice")
            await window.synced()
        for number in range(5):
            await store(server, f"plain {number}")
        async with raw_window(server) as window:
            await window.join("alice", pid=reply["pid"])
            events, sync = await window.synced()

    assert [event[1] for event in events] == [1, "plain 2", "plain 3", "plain 4"]
    assert (sync["replayed"], sync["complete"], sync["reason"]) == (3, False, "limit")


async def test_a_cleared_key_is_not_sent_to_new_windows(server: RunningServer) -> None:
    """The message that cleared it was delivered already."""
    await store(server, 1, "job", is_retained=True)
    await store(server, "done", "job", is_cleared=True)
    server.inbox.mark_delivered("alice", 2)

    async with raw_window(server) as window:
        await window.join("alice")
        events, _ = await window.synced()
    assert events == []


async def test_many_large_values_are_sent_at_the_pace_of_the_client(
    server: RunningServer,
) -> None:
    """Piece by piece, each in its turn."""
    for number in range(50):
        await store(server, f"{number} {'x' * 100_000}", f"{number}", is_retained=True)
    server.inbox.mark_delivered("alice", 50)

    async with raw_window(server) as window:
        await window.join("alice")
        events, _ = await window.synced()
    assert [int(event[1].partition(" ")[0]) for event in events] == list(range(50))


class OvertakenInbox(MemoryInbox):
    """A memory inbox of three messages that is full of newer ones at the first read."""

    def __init__(self) -> None:
        super().__init__(Retention(3, max_age_s=3600, dedupe_s=600))
        self.newer = [message("alice", number) for number in range(5)]

    async def read(self, user: str, **bounds: int) -> InboxPage:
        """Store the newer messages, and return a page."""
        newer, self.newer = self.newer, []
        await self.append(newer)
        return await super().read(user, **bounds)


async def test_a_retained_message_deleted_during_the_replay_is_sent() -> None:
    """The window would have received it from the inbox, had it been read faster."""
    async with (
        open_server(inbox=OvertakenInbox()) as server,
        raw_window(server) as window,
    ):
        await store(server, "value", "job", is_retained=True)
        reply = await window.join("alice")
        events, sync = await window.synced()

    assert [event[1] for event in events] == ["value", 2, 3, 4]
    assert events[0][2] == reply["pid"].partition(".")[0]
    assert (sync["complete"], sync["reason"]) == (False, "limit")


class SlowlyReadInbox(MemoryInbox):
    """A memory inbox of few messages whose reads yield to other tasks, at random."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(Retention(4, max_age_s=3600, dedupe_s=600))
        self._chance = chance

    async def _pause(self) -> None:
        for _ in range(self._chance.choice([0, 0, 1, 2, 5])):
            await asyncio.sleep(0)

    async def state(self, user: str) -> InboxState:
        """Return the state, and yield."""
        state = await super().state(user)
        await self._pause()
        return state

    async def read(self, user: str, **bounds: int) -> InboxPage:
        """Return a small page, and yield before and after it."""
        await self._pause()
        page = await super().read(user, **{**bounds, "max_messages": 2})
        await self._pause()
        return page

    async def read_retained(self, user: str, **bounds: int) -> Sequence[Stored]:
        """Return a small piece, and yield before and after it."""
        await self._pause()
        found = await super().read_retained(user, **{**bounds, "max_bytes": 1})
        await self._pause()
        return found


KEYS = "abc"
LAST = dict.fromkeys(KEYS, 300)


class Traffic:
    """A producer of retained messages, and pages that come and go meanwhile."""

    def __init__(self, server: RunningServer, chance: random.Random) -> None:
        self._server = server
        self._chance = chance
        self._is_over = False

    async def produce(self) -> None:
        """Store 200 messages, then the last one of each key."""
        for number in range(1, 200):
            key = self._chance.choice([*KEYS, None, None])
            retain = self._chance.random() < 0.5
            await store(self._server, [key, number], key, is_retained=retain)
            for _ in range(self._chance.randint(0, 6)):
                await asyncio.sleep(0)
        for key, number in LAST.items():
            await store(self._server, [key, number], key, is_retained=True)
        self._is_over = True

    async def browse(self) -> None:
        """Connect, receive some, and disconnect, until all was received at the end."""
        auth: dict[str, Any] = {}
        has: dict[str | None, int] = {}
        while not LAST.items() <= has.items():
            if self._chance.random() < 0.3:
                auth, has = {}, {}  # a new page
            async with raw_window(self._server) as window:
                auth["pid"] = (await window.join("alice", **auth))["pid"]
                is_last = self._is_over
                for _ in range(self._chance.randint(1, 20)):
                    is_over = await self._receive(window, auth, has)
                    if LAST.items() <= has.items() or (is_over and not is_last):
                        break

    async def _receive(
        self, window: RawWindow, auth: dict[str, Any], has: dict[str | None, int]
    ) -> bool:
        """Receive one packet; true if the producer is done."""
        packet = await window.receive()
        if packet.startswith('42["message"'):
            _, (key, number), auth["offset"] = json.loads(packet[2:])
            assert has.get(key, 0) <= number
            has[key] = number
        return self._is_over


@pytest.mark.parametrize("seed", range(20))
async def test_no_window_receives_an_older_message_of_a_key_after_a_newer_one(
    seed: int,
) -> None:
    """
    However connects, reads, appends and deletions interleave.

    At the end every window has the newest message of each retained key.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    async with (
        open_server(inbox=SlowlyReadInbox(chance)) as server,
        asyncio.TaskGroup() as tasks,
    ):
        traffic = Traffic(server, chance)
        tasks.create_task(traffic.produce())
        for _ in range(4):
            tasks.create_task(traffic.browse())


async def test_the_ack_of_a_retained_message_moves_no_mark(
    server: RunningServer,
) -> None:
    """A page may ack the position of each message that it receives."""
    await store(server, 1, "job", is_retained=True)
    await store(server, 2)
    server.inbox.mark_delivered("alice", 1)
    async with raw_window(server) as window:
        await window.join("alice", acks="manual")
        events, _ = await window.synced()
        await window.emit("ack", events[0][2], packet_id=1)
        assert await window.answer(1) == {"ok": True}
        assert (await server.inbox.state("alice")).delivered == 1
        await window.emit("ack", events[1][2], packet_id=2)
        assert await window.answer(2) == {"ok": True}
    assert (await server.inbox.state("alice")).delivered == 2
