"""A window that does not read costs nobody anything, and leaves nothing behind."""

import asyncio
import gc
import json
import weakref
from contextlib import AsyncExitStack

import pytest
from yarl import URL

from bridge.enums import Closing
from tests.conftest import eventually
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.listeners import Door, Plan, memory_inbox, open_door
from tests.integration.sockets.raw_pages import RawTcp, raw_poller, raw_tcp, raw_window
from tests.tokens import token

# A page that reads nothing at all is waited for as long as for a pong.
SMALL = Plan(outbound_bytes=64 * 1024, ping_timeout_s=1)


async def connect(connection: RawTcp, user: str) -> None:
    """Become a window of `user` and read up to the end of its replay."""
    await connection.open_websocket()
    await connection.send_frame(b'40{"token":"%s"}' % token(sub=user).encode())
    await connection.receive_until(b"bridge:sync")


async def fill(door: Door, user: str) -> None:
    """Store until a window of `user` was closed for not reading."""
    for _ in range(3000):
        await door.store(user, "x" * 8000)
        await asyncio.sleep(0)
        if door.count("windows_fell_behind_total"):
            break
    await eventually(lambda: door.count("windows_closed_total", code=Closing.SLOW))


async def test_a_window_that_stops_reading_is_closed_and_everything_of_it_freed() -> (
    None
):
    """With the library alone, queue, task and TCP stay for ever (1.2, row 3)."""
    tasks_before = len(asyncio.all_tasks())
    async with open_door(SMALL) as door, raw_tcp(door, receive_bytes=4096) as stuck:
        tasks_idle = len(asyncio.all_tasks())
        await connect(stuck, "alice")
        (session,) = door.sessions()
        assert session._websocket is not None
        transport = session._websocket.transport
        gone = weakref.ref(session)
        del session

        await fill(door, "alice")

        assert not len(door.server.rooms)
        assert not door.sessions()
        # A moment for its last words, then the connection is cut.
        await eventually(transport.is_closing)
        await eventually(lambda: door.connection_count == 0)
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks_idle)
        assert transport.get_write_buffer_size() == 0
        del transport

        def is_freed() -> bool:
            gc.collect()
            return gone() is None

        await eventually(is_freed)
    assert len(asyncio.all_tasks()) <= tasks_before


async def test_the_other_windows_of_the_room_do_not_notice() -> None:
    """One of them on a bad line: the rest get all, in order, at once."""
    async with (
        open_door(SMALL) as door,
        raw_tcp(door, receive_bytes=4096) as stuck,
        raw_window(door) as good,
    ):
        await connect(stuck, "alice")
        await good.join("alice")
        await good.synced()
        stored = 0
        while not door.count("windows_closed_total", code=Closing.SLOW):
            size = 10 if door.count("windows_fell_behind_total") else 8000
            await door.store("alice", [stored, "x" * size])
            assert (await good.receive()).startswith(f'42["message",[{stored},')
            stored += 1
        for _ in range(10):
            await door.store("alice", [stored])
            assert (await good.receive()).startswith(f'42["message",[{stored}]')
            stored += 1

        assert len(door.windows("alice")) == 1


async def test_a_slow_window_is_told_if_it_begins_to_read() -> None:
    """The stock client comes back by itself; the notice is for people."""
    async with (
        open_door(SMALL) as door,
        raw_tcp(door, receive_bytes=4096) as stuck,
    ):
        await connect(stuck, "alice")
        await fill(door, "alice")

        rest = await stuck.read_to_end()

    notice = rest[rest.index(b"bridge:closing") :]
    assert b'"code":"slow"' in notice
    assert b'"reconnect":true' in notice
    assert notice.endswith(b"}]\x88\x00")  # and the websocket's own goodbye


async def test_a_slow_window_recovers_from_the_inbox() -> None:
    """It gets what it has not read: that is what closing it is for."""
    async with open_door(SMALL) as door:
        async with raw_tcp(door, receive_bytes=4096) as stuck:
            await connect(stuck, "alice")
            await fill(door, "alice")
            some = (await stuck.receive_until(b'42["message"')).decode(errors="replace")
            some += (await stuck.receive_until(b'42["message"')).decode(
                errors="replace"
            )
        first = some.split('42["message"')[1].rpartition('"')[0].rpartition('"')[2]
        assert first.endswith("-1")
        async with raw_window(door) as again:
            await again.join("alice", position=first)
            events, sync = await again.synced()

    assert len(events) == (await door.inbox.state("alice")).last - 1
    assert sync["complete"]


async def test_a_window_that_reads_too_slowly_in_its_replay_is_told_slow() -> None:
    """The replay waits for a page, but not for ever."""
    plan = Plan(outbound_bytes=64 * 1024, ping_timeout_s=1)
    async with open_door(plan) as door, raw_tcp(door, receive_bytes=4096) as stuck:
        await door.store("alice", *("x" * 8000 for _ in range(2000)))
        await stuck.open_websocket()
        await stuck.send_frame(b'40{"token":"%s"}' % token().encode())

        await eventually(lambda: door.count("windows_closed_total", code=Closing.SLOW))

        await eventually(lambda: door.connection_count == 0)
        assert not len(door.server.rooms)


@pytest.mark.parametrize("transports", [["websocket"], ["polling"]])
async def test_a_flood_for_one_user_closes_no_window_that_reads(
    pages: Pages, transports: list[str]
) -> None:
    """Much more at once than may wait: the window gets it at the pace at which it reads."""
    async with open_door(SMALL) as door:
        auth = {"token": token()}
        pages.open("page", door.url, auth=auth, transports=transports)
        await pages.until("page", "event", "bridge:sync")
        (session,) = door.sessions()
        most = 0
        for start in range(0, 600, 200):
            numbers = range(start, start + 200)
            await door.store("alice", *([number, "x" * 5000] for number in numbers))
            most = max(most, session.waiting_bytes)

        await pages.until("page", "event", "message", count=600)

        assert [data[0] for data in pages.data("page")] == list(range(600))
        await eventually(lambda: door.windows("alice")[0].is_live)
        assert len(pages.all("page", "connect")) == 1
        assert len(pages.data("page", "bridge:sync")) == 1
        assert most <= 64 * 1024
        assert door.count("windows_fell_behind_total") >= 1
        assert not door.count("windows_closed_total", code=Closing.SLOW)
        await door.store("alice", "live again")
        await pages.until("page", "event", "message", count=601)


async def test_a_window_that_falls_behind_and_misses_something_is_told() -> None:
    """The inbox kept 10 while it read: the page reloads its state, and stays."""
    inbox = memory_inbox(max_messages=10)
    async with open_door(SMALL, inbox=inbox) as door, raw_window(door) as window:
        await window.join("alice")
        await window.synced()

        await door.store("alice", *("x" * 10_000 for _ in range(50)))

        events, sync = await window.synced()
        positions = [int(event[2].rpartition("-")[2]) for event in events]
        assert positions == list(range(41, 51))
        assert sync == {
            "replayed": 10,
            "complete": False,
            "missed": 40,
            "reason": "limit",
        }
        await door.store("alice", "live")
        assert (await window.receive()).startswith('42["message","live"')


async def test_a_lost_part_of_the_feed_is_read_from_the_inbox() -> None:
    """As when the listener fails once: a window must not go on with a silent hole."""
    async with open_door(SMALL) as door, raw_window(door) as window:
        await window.join("alice")
        await window.synced()
        await door.store("alice", 1)
        door.inbox.subscribe(lambda _batch: None)
        await door.store("alice", 2, 3)
        door.inbox.subscribe(door.server.rooms.emit)

        await door.store("alice", 4)
        await door.store("alice", 5)

        got = [json.loads((await window.receive())[2:])[1] for _ in range(5)]
        assert got == [1, 2, 3, 4, 5]
        assert door.count("windows_fell_behind_total") == 1
        assert (await door.inbox.state("alice")).delivered == 5


async def test_a_polling_page_that_never_polls_is_bounded_and_closed() -> None:
    """Its queue is the bridge's own memory."""
    async with open_door(SMALL) as door, raw_poller(door) as page:
        await page.join("alice")
        (session,) = door.sessions()

        await fill(door, "alice")

        assert session.is_closed
        assert session.waiting_bytes < 2 * 64 * 1024
        assert not len(door.server.rooms)
        assert any('"slow"' in packet for packet in await page.poll())
        door.tick(later_s=5)
        assert not door.sessions()


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_answers_that_nobody_fetches_are_bounded_too(transport: str) -> None:
    """A page that asks and pongs but does not read would pile them up for days."""
    plan = Plan(outbound_bytes=20_000, events_per_second=10**6)
    ask = '421["ack","x"]'
    async with open_door(plan) as door:
        if transport == "polling":
            async with raw_poller(door) as page:
                await page.join("alice")
                (session,) = door.sessions()
                for _ in range(50):
                    if await page.post("3", *[ask] * 20) != 200:
                        break
                    door.tick()
                assert session.is_closed
                assert session.waiting_bytes < 3 * 20_000
        else:
            async with raw_tcp(door, receive_bytes=4096) as stuck:
                await connect(stuck, "alice")
                (session,) = door.sessions()

                async def ask_for_ever() -> None:
                    try:
                        while True:
                            await stuck.send_frame(ask.encode())
                    except OSError:
                        pass

                asking = asyncio.create_task(ask_for_ever())
                async with asyncio.timeout(30):
                    while not session.is_closed:
                        door.tick()
                        await asyncio.sleep(0.01)
                asking.cancel()
        assert door.count("windows_closed_total", code=Closing.SLOW) == 1


async def test_pings_of_the_websocket_are_answered_within_the_bound() -> None:
    """Their pongs are written by another hand than messages; they must not pile up."""
    async with open_door(SMALL) as door, raw_tcp(door, receive_bytes=4096) as stuck:
        await connect(stuck, "alice")
        (session,) = door.sessions()

        async def ping_for_ever() -> None:
            try:
                while True:
                    await stuck.send_frame(b"p" * 125, opcode=9)
            except OSError:
                pass

        pinging = asyncio.create_task(ping_for_ever())
        most = 0
        for _ in range(200):
            await asyncio.sleep(0.005)
            most = max(most, session.waiting_bytes)
        session.close("enough", abort=True)
        await asyncio.wait({pinging}, timeout=5)
        pinging.cancel()
        await eventually(lambda: door.connection_count == 0)

    assert most < 256 * 1024


async def test_answers_to_polls_that_nobody_reads_are_bounded_and_cut() -> None:
    """
    A page that polls on connection after connection and reads none of the answers.

    Each would hold as much as a poll may bring, out of sight of every bound, and stay
    for ever: the page's TCP is alive.
    """
    async with (
        open_door(Plan(outbound_bytes=64_000_000)) as door,
        AsyncExitStack() as stack,
    ):
        # Much, because the kernel takes a lot out of our sight.
        await door.store("alice", *("x" * 1_000_000 for _ in range(60)))
        async with raw_poller(door) as page:
            await page.post("40" + json.dumps({"token": token()}))
            (session,) = door.sessions()
            request = (
                f"GET {URL(page.url).raw_path_qs} HTTP/1.1\r\nHost: x\r\n\r\n"
            ).encode()
            for _ in range(20):
                stuck = await stack.enter_async_context(
                    raw_tcp(door, receive_bytes=4096)
                )
                await stuck.send(request)
                await asyncio.sleep(0.01)
        assert session.is_closed  # at the second one

        def unread_bytes() -> int:
            return sum(each.get_write_buffer_size() for each in door.http_connections)

        assert 0 < unread_bytes() < 20_000_000
        # And what it has not read goes with the session, a moment later.
        await eventually(lambda: not unread_bytes())
