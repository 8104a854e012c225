"""
The gate between replay and live feed: no gap, no duplicate, in order.

Each call to the inbox of these tests may yield to other tasks before and after its work,
as a store on a disk or behind a network does.
"""

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from bridge.core.replay import InboxPage, InboxState
from bridge.enums import Closing
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.memory.store import MemoryInbox
from tests.conftest import eventually
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.raw_pages import RawWindow, raw_poller, raw_window
from tests.integration.sockets.running_server import Plan, RunningServer, open_server
from tests.tokens import token

MESSAGES = 300


class YieldingInbox(MemoryInbox):
    """A memory inbox whose calls yield to other tasks, at random."""

    def __init__(self, chance: random.Random, *, max_messages: int = 100_000) -> None:
        super().__init__(Retention(max_messages, max_age_s=3600, dedupe_s=600))
        self._chance = chance

    async def _pause(self) -> None:
        for _ in range(self._chance.choice([0, 0, 1, 2, 5])):
            await asyncio.sleep(0)

    async def follow(self, user: str) -> None:
        """Follow `user`, and yield."""
        await self._pause()
        await super().follow(user)
        await self._pause()

    async def state(self, user: str) -> InboxState:
        """Return the state, and yield."""
        await self._pause()
        state = await super().state(user)
        await self._pause()
        return state

    async def read(self, user: str, **bounds: int) -> InboxPage:
        """Return a small page, and yield."""
        await self._pause()
        few = {**bounds, "max_messages": self._chance.randint(1, 20)}
        page = await super().read(user, **few)
        await self._pause()
        return page


def connect_packet() -> str:
    """Return the CONNECT packet of a window of alice."""
    return "40" + json.dumps({"token": token()})


async def collect(window: RawWindow, got: list[Any], *, last: int) -> None:
    """Receive messages up to and including `last`."""
    while not got or got[-1] != last:
        packet = await window.receive()
        if packet.startswith('42["message"'):
            got.append(int(packet.split(",")[1]))


async def come_and_go(
    server: RunningServer, chance: random.Random, got: list[int]
) -> None:
    """Connect, receive some, disconnect and reconnect with the last position, until done."""
    position: str | None = None
    while not got or got[-1] != MESSAGES - 1:
        async with raw_window(server) as window:
            await window.join("alice", **({"position": position} if position else {}))
            for _ in range(chance.randint(1, 60)):
                packet = await window.receive()
                if packet.startswith('42["message"'):
                    got.append(int(packet.split(",")[1]))
                    position = packet.rpartition('"')[0].rpartition('"')[2]
                    if got[-1] == MESSAGES - 1:
                        break


@pytest.mark.parametrize("seed", range(20))
async def test_windows_that_reconnect_during_appends_miss_and_repeat_nothing(
    seed: int,
) -> None:
    """Appends, connects, reads and disconnects interleave differently for each seed."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    async with open_server(inbox=YieldingInbox(chance)) as server:

        async def append() -> None:
            number = 0
            while number < MESSAGES:
                stop = min(MESSAGES, number + chance.randint(1, 12))
                await server.store_numbers("alice", start=number, stop=stop)
                number = stop
                for _ in range(chance.randint(0, 6)):
                    await asyncio.sleep(0)

        everything: list[list[int]] = [[] for _ in range(4)]
        async with asyncio.TaskGroup() as tasks:
            for got in everything:
                tasks.create_task(come_and_go(server, chance, got))
            tasks.create_task(append())

        for got in everything:
            # A client without a position gets the messages above the delivered mark: its
            # first message may be late, but nothing is missing after it.
            assert got == list(range(got[0], MESSAGES))
        await eventually(lambda: not server.windows("alice"))
        assert not server.inbox._followed


@pytest.mark.parametrize("seed", range(5))
async def test_a_reloaded_window_receives_the_live_feed(seed: int) -> None:
    """
    The old window leaves while the new one is being admitted.

    If the old one stopped following the user, the new one would never receive a message.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    async with open_server(inbox=YieldingInbox(chance)) as server:
        number = 0
        for _ in range(20):
            async with raw_window(server) as old, raw_window(server) as new:
                await old.join("alice")
                await new.send(connect_packet())
                for _ in range(chance.randint(0, 4)):
                    await asyncio.sleep(0)
                server.windows("alice")[0].session.close("reloaded", abort=True)
                await new.receive_until('42["bridge:sync"')
                await server.store("alice", number)
                assert (await new.receive()).startswith(f'42["message",{number},')
                number += 1
            await eventually(lambda: not server.windows("alice"))


async def test_messages_trimmed_during_a_replay_are_reported() -> None:
    """The client reads more slowly than the inbox is trimmed."""
    chance = random.Random(1)  # noqa: S311 - no secret
    async with open_server(inbox=YieldingInbox(chance, max_messages=50)) as server:
        await server.store_numbers("alice", start=0, stop=50)
        async with raw_window(server) as window:
            await window.join("alice")
            for start in range(50, 400, 10):
                await server.store_numbers("alice", start=start, stop=start + 10)
                await asyncio.sleep(0)
            events, sync = await window.synced()
            got = [event[1] for event in events]
            await collect(window, got, last=399) if got[-1] != 399 else None

    assert got == sorted(set(got))
    assert sync["reason"] == "limit"
    assert not sync["complete"]
    # Each message was received or is counted as missed.
    assert sync["missed"] == 400 - len(got)


async def test_a_long_inbox_read_slowly_costs_no_memory() -> None:
    """With 20,000 messages the bytes that wait for the client stay far below the limit."""
    bound = 256 * 1024
    most = 0
    async with open_server(Plan(outbound_bytes=bound)) as server:
        await server.store("alice", *("x" * 200 for _ in range(20_000)))
        async with raw_window(server) as window:
            await window.join("alice")
            (session,) = server.sessions()
            for _ in range(20_000):
                packet = await window.receive()
                assert packet.startswith('42["message"')
                most = max(most, session.waiting_bytes)
            _, sync = await window.synced()

    assert sync["replayed"] == 20_000
    assert 0 < most < bound
    assert server.count("windows_closed_total", code=Closing.SLOW) == 0


async def test_a_long_inbox_is_polled_in_small_responses() -> None:
    """A polling client gets messages only as fast as it polls."""
    bound = 64 * 1024
    async with (
        open_server(Plan(outbound_bytes=bound)) as server,
        raw_poller(server) as page,
    ):
        await server.store("alice", *("x" * 200 for _ in range(3000)))
        await page.post(connect_packet())
        (session,) = server.sessions()
        packets: list[str] = []
        while not packets or not packets[-1].startswith('42["bridge:sync"'):
            got = await page.poll()
            assert len(got) <= 16  # the limit of the Python client
            assert session.waiting_bytes < bound
            packets += got

    assert sum(packet.startswith('42["message"') for packet in packets) == 3000


async def test_a_session_becomes_one_window_however_often_it_connects() -> None:
    """
    Two concurrent CONNECTs, in two POSTs and in one, while the store is slow.

    A second window would get every message twice and stay in the room forever.
    """
    for seed in range(10):
        inbox = YieldingInbox(random.Random(seed))  # noqa: S311 - no secret
        async with open_server(inbox=inbox) as server:
            connect = connect_packet()
            async with raw_poller(server) as page:
                await asyncio.gather(
                    page.post(connect), page.post(connect), page.post(connect, connect)
                )
                assert len(server.windows("alice")) <= 1
            async with raw_window(server) as window:
                for _ in range(3):
                    await window.send(connect)
                await window.synced()
            for session in server.sessions():
                session.close("over")
            await eventually(lambda server=server: not len(server.io.rooms))  # type: ignore[misc] # mypy does not see through the default
            assert not server.io.rooms.user_count
            assert not inbox._followed


async def test_in_open_mode_a_window_joins_once_however_often_it_asks() -> None:
    """`join` waits for the store too."""
    inbox = YieldingInbox(random.Random(3))  # noqa: S311 - no secret
    async with open_server(Plan(is_open_mode=True), inbox=inbox) as server:
        async with raw_poller(server) as page:
            await page.post("40")
            join = '42["join",{"username":"alice"}]'
            await asyncio.gather(*(page.post(join, join) for _ in range(4)))
        for session in server.sessions():
            session.close("over")
        await eventually(lambda: not len(server.io.rooms))
        assert not server.io.rooms.user_count


async def test_the_limit_of_windows_per_user_holds_while_the_store_is_slow() -> None:
    """50 windows connect at the same instant; 5 are allowed."""
    inbox = YieldingInbox(random.Random(4))  # noqa: S311 - no secret
    async with open_server(Plan(windows_per_user=5), inbox=inbox) as server:

        async def connect(answers: list[str]) -> None:
            async with raw_window(server) as window:
                answers.append(await window.connect(token=token()))
                async with asyncio.timeout(10):
                    await everybody.wait()

        everybody = asyncio.Event()
        answers: list[str] = []
        async with asyncio.TaskGroup() as tasks:
            for _ in range(50):
                tasks.create_task(connect(answers))
            await eventually(lambda: len(answers) == 50)
            assert len(server.windows("alice")) == 5
            everybody.set()

        refused = [answer for answer in answers if answer.startswith("44")]
        assert len(refused) == 45
        assert all('"too_many_windows"' in answer for answer in refused)
        assert all('"temporary":true' in answer for answer in refused)


class FailingInbox(MemoryInbox):
    """A store that becomes unavailable at the named call."""

    def __init__(self, failing: Sequence[str]) -> None:
        super().__init__(Retention(1000, max_age_s=3600, dedupe_s=600))
        self.failing = list(failing)

    def _fail(self, call: str) -> None:

        if call in self.failing:
            raise StoreUnavailableError("memory:", "is away")

    async def follow(self, user: str) -> None:
        """Follow `user`, or fail."""
        self._fail("follow")
        await super().follow(user)

    async def state(self, user: str) -> InboxState:
        """Return the state, or fail."""
        self._fail("state")
        return await super().state(user)

    async def read(self, user: str, **bounds: int) -> InboxPage:
        """Return a page, or fail."""
        self._fail("read")
        return await super().read(user, **bounds)


@pytest.mark.parametrize("call", ["follow", "state"])
async def test_windows_are_refused_and_cleaned_up_while_the_store_is_unavailable(
    call: str,
) -> None:
    """The refusal is temporary. No window, room or followed user remains."""
    inbox = FailingInbox([call])
    async with open_server(inbox=inbox) as server, raw_window(server) as window:
        answer = await window.connect(token=token())

        assert answer.startswith("44")
        assert '"not_available"' in answer
        assert '"temporary":true' in answer
        assert not len(server.io.rooms)
        assert not server.io.rooms.user_count
        assert not inbox._followed

        inbox.failing.clear()
        await window.join("alice")
        await window.synced()


async def test_a_store_outage_during_a_replay_closes_the_window_with_a_code() -> None:
    """The client reconnects automatically; an open window would wait for messages in vain."""
    async with (
        open_server(inbox=FailingInbox(["read"])) as server,
        raw_window(server) as page,
    ):
        await server.store("alice", 1)
        await page.join("alice")
        packets, _ = await page.ended()

    assert any(
        '"unavailable"' in packet and '"reconnect":true' in packet for packet in packets
    )


async def test_stock_clients_cut_repeatedly_miss_and_repeat_nothing(
    pages: Pages,
) -> None:
    """Over polling, over WebSocket and during the upgrade, at any moment, under traffic."""
    chance = random.Random(7)  # noqa: S311 - no secret
    names = [f"page {number}" for number in range(6)]
    transports = [["polling", "websocket"], ["websocket"], ["polling"]]
    async with open_server(inbox=YieldingInbox(chance)) as server:
        for number, name in enumerate(names):
            auth = {"token": token()}
            pages.open(name, server.url, auth=auth, transports=transports[number % 3])
        for name in names:
            await pages.until(name, "event", "bridge:sync")
        for number in range(400):
            await server.store("alice", number)
            await asyncio.sleep(0.002)
            if number % 20 == 10:
                windows = server.windows("alice")
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
