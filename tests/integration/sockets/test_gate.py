"""
The seam between replay and live feed: no hole, no repeat, in order, whatever meets there.

The inbox of these tests takes its time: each call may let other things happen before
and after it has worked, as a store on a disk or behind a network does.
"""

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from bridge.core.replay import InboxState, Page
from bridge.enums import Closing
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.memory.store import MemoryInbox
from tests.conftest import eventually
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.listeners import Door, Plan, open_door
from tests.integration.sockets.raw_pages import RawWindow, raw_poller, raw_window
from tests.tokens import token

MESSAGES = 300


class UnhurriedInbox(MemoryInbox):
    """A memory inbox whose calls are interrupted, as often as `chance` says."""

    def __init__(self, chance: random.Random, *, max_messages: int = 100_000) -> None:
        super().__init__(Retention(max_messages, max_age_s=3600, dedupe_s=600))
        self._chance = chance

    async def _pause(self) -> None:
        for _ in range(self._chance.choice([0, 0, 1, 2, 5])):
            await asyncio.sleep(0)

    async def follow(self, user: str) -> None:
        """Follow, sooner or later."""
        await self._pause()
        await super().follow(user)
        await self._pause()

    async def state(self, user: str) -> InboxState:
        """Look, and tell it later."""
        await self._pause()
        state = await super().state(user)
        await self._pause()
        return state

    async def read(self, user: str, **bounds: int) -> Page:
        """Read small pages, and hand them over later."""
        await self._pause()
        few = {**bounds, "max_messages": self._chance.randint(1, 20)}
        page = await super().read(user, **few)
        await self._pause()
        return page


def connect_packet() -> str:
    """Return what makes a connection a window of alice."""
    return "40" + json.dumps({"token": token()})


async def collect(window: RawWindow, got: list[Any], *, last: int) -> None:
    """Read until the message `last` has come."""
    while not got or got[-1] != last:
        packet = await window.receive()
        if packet.startswith('42["message"'):
            got.append(int(packet.split(",")[1]))


async def come_and_go(door: Door, chance: random.Random, got: list[int]) -> None:
    """Connect, read some, go, come back with the last position, until all is there."""
    position: str | None = None
    while not got or got[-1] != MESSAGES - 1:
        async with raw_window(door) as window:
            await window.join("alice", **({"position": position} if position else {}))
            for _ in range(chance.randint(1, 60)):
                packet = await window.receive()
                if packet.startswith('42["message"'):
                    got.append(int(packet.split(",")[1]))
                    position = packet.rpartition('"')[0].rpartition('"')[2]
                    if got[-1] == MESSAGES - 1:
                        break


@pytest.mark.parametrize("seed", range(20))
async def test_windows_that_come_and_go_amid_appends_miss_and_repeat_nothing(
    seed: int,
) -> None:
    """Stores, connects, reads and leaves interleave in another way for each seed."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    async with open_door(inbox=UnhurriedInbox(chance)) as door:

        async def append() -> None:
            number = 0
            while number < MESSAGES:
                stop = min(MESSAGES, number + chance.randint(1, 12))
                await door.store_numbers("alice", start=number, stop=stop)
                number = stop
                for _ in range(chance.randint(0, 6)):
                    await asyncio.sleep(0)

        everything: list[list[int]] = [[] for _ in range(4)]
        async with asyncio.TaskGroup() as tasks:
            for got in everything:
                tasks.create_task(come_and_go(door, chance, got))
            tasks.create_task(append())

        for got in everything:
            # A page without a position gets what its user has not had, so it may
            # begin late, but from there on nothing is missing.
            assert got == list(range(got[0], MESSAGES))
        await eventually(lambda: not door.windows("alice"))
        assert not door.inbox._followed


@pytest.mark.parametrize("seed", range(5))
async def test_a_page_that_reloads_is_fed_by_the_time_it_is_back(seed: int) -> None:
    """
    The old window leaves while the new one is on its way in.

    If the old one took the user's interest in the feed along, the new one would never
    hear of anything again.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    async with open_door(inbox=UnhurriedInbox(chance)) as door:
        number = 0
        for _ in range(20):
            async with raw_window(door) as old, raw_window(door) as new:
                await old.join("alice")
                await new.send(connect_packet())
                for _ in range(chance.randint(0, 4)):
                    await asyncio.sleep(0)
                door.windows("alice")[0].session.close("reloaded", abort=True)
                await new.receive_until('42["bridge:sync"')
                await door.store("alice", number)
                assert (await new.receive()).startswith(f'42["message",{number},')
                number += 1
            await eventually(lambda: not door.windows("alice"))


async def test_what_is_trimmed_while_a_replay_runs_is_told() -> None:
    """The window reads slower than the inbox forgets: it must hear of the hole."""
    chance = random.Random(1)  # noqa: S311 - no secret
    async with open_door(inbox=UnhurriedInbox(chance, max_messages=50)) as door:
        await door.store_numbers("alice", start=0, stop=50)
        async with raw_window(door) as window:
            await window.join("alice")
            for start in range(50, 400, 10):
                await door.store_numbers("alice", start=start, stop=start + 10)
                await asyncio.sleep(0)
            events, sync = await window.synced()
            got = [event[1] for event in events]
            await collect(window, got, last=399) if got[-1] != 399 else None

    assert got == sorted(set(got))
    assert sync["reason"] == "limit"
    assert not sync["complete"]
    # Each one came or is counted as missed.
    assert sync["missed"] == 400 - len(got)


async def test_a_long_inbox_read_slowly_costs_no_memory() -> None:
    """20,000 messages: what waits for the window stays far below its bound."""
    bound = 256 * 1024
    most = 0
    async with open_door(Plan(outbound_bytes=bound)) as door:
        await door.store("alice", *("x" * 200 for _ in range(20_000)))
        async with raw_window(door) as window:
            await window.join("alice")
            (session,) = door.sessions()
            for _ in range(20_000):
                packet = await window.receive()
                assert packet.startswith('42["message"')
                most = max(most, session.waiting_bytes)
            _, sync = await window.synced()

    assert sync["replayed"] == 20_000
    assert 0 < most < bound
    assert door.count("windows_closed_total", code=Closing.SLOW) == 0


async def test_a_long_inbox_is_polled_in_small_pieces() -> None:
    """As above: a polling page gets it as fast as it asks, and no faster."""
    bound = 64 * 1024
    async with open_door(Plan(outbound_bytes=bound)) as door, raw_poller(door) as page:
        await door.store("alice", *("x" * 200 for _ in range(3000)))
        await page.post(connect_packet())
        (session,) = door.sessions()
        packets: list[str] = []
        while not packets or not packets[-1].startswith('42["bridge:sync"'):
            got = await page.poll()
            assert len(got) <= 16  # what the Python client takes
            assert session.waiting_bytes < bound
            packets += got

    assert sum(packet.startswith('42["message"') for packet in packets) == 3000


async def test_one_connection_becomes_one_window_however_often_it_asks() -> None:
    """
    Two CONNECTs at a time, in two POSTs and in one: while the store takes its time, the
    second must not slip in. It would get every message twice and stay in the room
    for ever.
    """
    for seed in range(10):
        inbox = UnhurriedInbox(random.Random(seed))  # noqa: S311 - no secret
        async with open_door(inbox=inbox) as door:
            connect = connect_packet()
            async with raw_poller(door) as page:
                await asyncio.gather(
                    page.post(connect), page.post(connect), page.post(connect, connect)
                )
                assert len(door.windows("alice")) <= 1
            async with raw_window(door) as window:
                for _ in range(3):
                    await window.send(connect)
                await window.synced()
            for session in door.sessions():
                session.close("over")
            await eventually(lambda door=door: not len(door.server.rooms))  # type: ignore[misc] # mypy does not see through the default
            assert not list(door.server.rooms.users)
            assert not inbox._followed


async def test_a_page_in_open_mode_joins_once_however_often_it_asks() -> None:
    """`join` waits for the store as well."""
    inbox = UnhurriedInbox(random.Random(3))  # noqa: S311 - no secret
    async with open_door(Plan(is_open_mode=True), inbox=inbox) as door:
        async with raw_poller(door) as page:
            await page.post("40")
            join = '42["join",{"username":"alice"}]'
            await asyncio.gather(*(page.post(join, join) for _ in range(4)))
        for session in door.sessions():
            session.close("over")
        await eventually(lambda: not len(door.server.rooms))
        assert not list(door.server.rooms.users)


async def test_the_cap_of_a_user_holds_while_the_store_takes_its_time() -> None:
    """50 windows at the same instant, 5 allowed."""
    inbox = UnhurriedInbox(random.Random(4))  # noqa: S311 - no secret
    async with open_door(Plan(windows_per_user=5), inbox=inbox) as door:

        async def connect(answers: list[str]) -> None:
            async with raw_window(door) as window:
                answers.append(await window.connect(token=token()))
                async with asyncio.timeout(10):
                    await everybody.wait()

        everybody = asyncio.Event()
        answers: list[str] = []
        async with asyncio.TaskGroup() as tasks:
            for _ in range(50):
                tasks.create_task(connect(answers))
            await eventually(lambda: len(answers) == 50)
            assert len(door.windows("alice")) == 5
            everybody.set()

        refused = [answer for answer in answers if answer.startswith("44")]
        assert len(refused) == 45
        assert all('"too_many_windows"' in answer for answer in refused)
        assert all('"temporary":true' in answer for answer in refused)


class FailingInbox(MemoryInbox):
    """A store that goes away at the named call."""

    def __init__(self, failing: Sequence[str]) -> None:
        super().__init__(Retention(1000, max_age_s=3600, dedupe_s=600))
        self.failing = list(failing)

    def _fail(self, call: str) -> None:

        if call in self.failing:
            raise StoreUnavailableError("memory:", "is away")

    async def follow(self, user: str) -> None:
        """Follow, or fail."""
        self._fail("follow")
        await super().follow(user)

    async def state(self, user: str) -> InboxState:
        """Look, or fail."""
        self._fail("state")
        return await super().state(user)

    async def read(self, user: str, **bounds: int) -> Page:
        """Read, or fail."""
        self._fail("read")
        return await super().read(user, **bounds)


@pytest.mark.parametrize("call", ["follow", "state"])
async def test_a_store_that_is_away_turns_windows_away_and_nothing_stays_behind(
    call: str,
) -> None:
    """A code that says "try again", no window, no room, no interest in the feed."""
    inbox = FailingInbox([call])
    async with open_door(inbox=inbox) as door, raw_window(door) as window:
        answer = await window.connect(token=token())

        assert answer.startswith("44")
        assert '"not_available"' in answer
        assert '"temporary":true' in answer
        assert not len(door.server.rooms)
        assert not list(door.server.rooms.users)
        assert not inbox._followed

        inbox.failing.clear()
        await window.join("alice")
        await window.synced()


async def test_a_store_that_goes_away_in_the_replay_closes_the_window_with_a_code() -> (
    None
):
    """It comes back by itself; an open window that gets nothing would be a lie."""
    async with (
        open_door(inbox=FailingInbox(["read"])) as door,
        raw_window(door) as page,
    ):
        await door.store("alice", 1)
        await page.join("alice")
        packets, _ = await page.ended()

    assert any(
        '"unavailable"' in packet and '"reconnect":true' in packet for packet in packets
    )


async def test_stock_clients_that_are_cut_again_and_again_miss_and_repeat_nothing(
    pages: Pages,
) -> None:
    """Polling, websocket and the way between, cut at any moment, under traffic."""
    chance = random.Random(7)  # noqa: S311 - no secret
    names = [f"page {number}" for number in range(6)]
    transports = [["polling", "websocket"], ["websocket"], ["polling"]]
    async with open_door(inbox=UnhurriedInbox(chance)) as door:
        for number, name in enumerate(names):
            auth = {"token": token()}
            pages.open(name, door.url, auth=auth, transports=transports[number % 3])
        for name in names:
            await pages.until(name, "event", "bridge:sync")
        for number in range(400):
            await door.store("alice", number)
            await asyncio.sleep(0.002)
            if number % 20 == 10:
                windows = door.windows("alice")
                count = len(windows) if number == 10 else min(2, len(windows))
                for window in chance.sample(windows, count):
                    window.session.close("cut by the test", abort=chance.random() < 0.5)
        for name in names:
            await pages.until(name, "event", "message", count=400, within_s=20)
            assert pages.data(name) == list(range(400))
            again = pages.all(name, "connect")[1:]
            assert again
            assert all(report[0]["recovered"] for report in again)
            assert all(sync["complete"] for sync in pages.data(name, "bridge:sync"))
