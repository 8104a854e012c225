"""A window that does not read affects no other, and all of its memory is freed."""

import asyncio
import gc
import json
import socket
import weakref
from contextlib import AsyncExitStack
from functools import partial

import pytest
from yarl import URL

from bridge.enums import Closing
from bridge.sockets.engineio.session import EngineSession
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.raw_pages import RawTcp, raw_poller, raw_tcp, raw_window
from tests.integration.sockets.running_server import (
    Plan,
    RunningServer,
    memory_inbox,
    open_server,
)
from tests.integration.sockets.security import WITHOUT_AND_WITH_TLS
from tests.tokens import token

# A replay waits for a client that reads nothing for the ping timeout.
SMALL = Plan(outbound_bytes=64 * 1024, ping_timeout_s=1)


def with_small_kernel_buffer(session: EngineSession) -> None:
    """Let what a client does not read fill the buffer of the bridge, not of the kernel."""
    transport = session.transport
    assert transport is not None
    server_socket = transport.get_extra_info("socket")
    server_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


async def connect(connection: RawTcp, user: str) -> None:
    """Connect as a window of `user` and read up to the end of its replay."""
    await connection.open_websocket()
    await connection.send_frame(b'40{"token":"%s"}' % token(sub=user).encode())
    await connection.receive_until(b"bridge:sync")


async def fill(server: RunningServer, user: str) -> None:
    """Store messages until a window of `user` is closed for not reading."""
    for _ in range(3000):
        await server.store(user, "x" * 8000)
        await asyncio.sleep(0)
        if server.count("windows_fell_behind_total"):
            break
    await eventually(lambda: server.count("windows_closed_total", code=Closing.SLOW))


def has_empty_buffer(transport: asyncio.WriteTransport) -> bool:
    """Return whether nothing waits to be written."""
    return transport.get_write_buffer_size() == 0


@WITHOUT_AND_WITH_TLS
async def test_a_window_that_stops_reading_is_closed_and_freed() -> None:
    """With python-socketio, queue, task and TCP connection stay forever."""
    tasks_before = len(asyncio.all_tasks())
    async with (
        open_server(SMALL) as server,
        raw_tcp(server, receive_bytes=4096) as stuck,
    ):
        tasks_idle = len(asyncio.all_tasks())
        await connect(stuck, "alice")
        (session,) = server.sessions()
        assert session._websocket is not None
        transport = session._websocket.transport
        gone = weakref.ref(session)
        del session

        await fill(server, "alice")

        assert not len(server.io.rooms)
        assert not server.sessions()
        # The close frame has a moment to be read, then the connection is aborted.
        await eventually(transport.is_closing)
        await eventually(lambda: server.connection_count == 0)
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks_idle)
        await eventually(partial(has_empty_buffer, transport))
        del transport

        def is_freed() -> bool:
            gc.collect()
            return gone() is None

        await eventually(is_freed)
    assert len(asyncio.all_tasks()) <= tasks_before


@WITHOUT_AND_WITH_TLS
async def test_a_slow_window_does_not_affect_the_others_of_its_room() -> None:
    """The others get all messages at once and in order."""
    async with (
        open_server(SMALL) as server,
        raw_tcp(server, receive_bytes=4096) as stuck,
        raw_window(server) as good,
    ):
        await connect(stuck, "alice")
        await good.join("alice")
        await good.synced()
        stored = 0
        while not server.count("windows_closed_total", code=Closing.SLOW):
            size = 10 if server.count("windows_fell_behind_total") else 8000
            await server.store("alice", [stored, "x" * size])
            assert (await good.receive()).startswith(f'42["message",[{stored},')
            stored += 1
        for _ in range(10):
            await server.store("alice", [stored])
            assert (await good.receive()).startswith(f'42["message",[{stored}]')
            stored += 1

        assert len(server.windows("alice")) == 1


@WITHOUT_AND_WITH_TLS
async def test_a_slow_window_gets_the_notice_if_it_reads_again() -> None:
    """The stock client reconnects automatically; the notice explains the disconnect."""
    async with (
        open_server(SMALL) as server,
        raw_tcp(server, receive_bytes=4096) as stuck,
    ):
        await connect(stuck, "alice")
        await fill(server, "alice")

        rest = await stuck.read_to_end()

    notice = rest[rest.index(b"bridge:closing") :]
    assert b'"code":"slow"' in notice
    assert b'"reconnect":true' in notice
    assert notice.endswith(b"}]\x88\x00")  # and the WebSocket's close frame


@WITHOUT_AND_WITH_TLS
async def test_a_slow_window_recovers_from_the_inbox() -> None:
    """It gets the messages that it has not read."""
    async with open_server(SMALL) as server:
        async with raw_tcp(server, receive_bytes=4096) as stuck:
            await connect(stuck, "alice")
            await fill(server, "alice")
            some = (await stuck.receive_until(b'42["message"')).decode(errors="replace")
            some += (await stuck.receive_until(b'42["message"')).decode(
                errors="replace"
            )
        first = some.split('42["message"')[1].rpartition('"')[0].rpartition('"')[2]
        assert first.endswith("-1")
        async with raw_window(server) as again:
            await again.join("alice", position=first)
            events, sync = await again.synced()

    assert len(events) == (await server.inbox.state("alice")).last - 1
    assert sync["complete"]


@WITHOUT_AND_WITH_TLS
async def test_a_window_that_reads_too_slowly_during_its_replay_is_closed() -> None:
    """The replay waits for a client, but not forever."""
    plan = Plan(outbound_bytes=64 * 1024, ping_timeout_s=1)
    async with (
        open_server(plan) as server,
        raw_tcp(server, receive_bytes=4096) as stuck,
    ):
        await server.store("alice", *("x" * 8000 for _ in range(2000)))
        await stuck.open_websocket()
        await stuck.send_frame(b'40{"token":"%s"}' % token().encode())

        await eventually(
            lambda: server.count("windows_closed_total", code=Closing.SLOW)
        )

        await eventually(lambda: server.connection_count == 0)
        assert not len(server.io.rooms)


@WITHOUT_AND_WITH_TLS
@pytest.mark.parametrize("transports", [["websocket"], ["polling"]])
async def test_a_flood_for_one_user_closes_no_window_that_reads(
    pages: Pages, transports: list[str]
) -> None:
    """With more messages than may wait, the window gets them as fast as it reads."""
    async with open_server(SMALL) as server:
        auth = {"token": token()}
        pages.open("page", server.url, auth=auth, transports=transports)
        await pages.until("page", "event", "bridge:sync")
        (session,) = server.sessions()
        most = 0
        for start in range(0, 600, 200):
            numbers = range(start, start + 200)
            await server.store("alice", *([number, "x" * 5000] for number in numbers))
            most = max(most, session.waiting_bytes)

        await pages.until("page", "event", "message", count=600, within_s=30)

        assert [data[0] for data in pages.data("page")] == list(range(600))
        await eventually(lambda: server.windows("alice")[0].is_live)
        assert len(pages.all("page", "connect")) == 1
        assert len(pages.data("page", "bridge:sync")) == 1
        assert most <= 64 * 1024
        assert server.count("windows_fell_behind_total") >= 1
        assert not server.count("windows_closed_total", code=Closing.SLOW)
        await server.store("alice", "live again")
        await pages.until("page", "event", "message", count=601)


async def test_a_window_that_falls_behind_and_misses_messages_is_notified() -> None:
    """The inbox kept only 10 of them: the page reloads its state, and the window stays."""
    inbox = memory_inbox(max_messages=10)
    async with open_server(SMALL, inbox=inbox) as server, raw_window(server) as window:
        await window.join("alice")
        await window.synced()

        await server.store("alice", *("x" * 10_000 for _ in range(50)))

        events, sync = await window.synced()
        positions = [int(event[2].rpartition("-")[2]) for event in events]
        assert positions == list(range(41, 51))
        assert sync == {
            "replayed": 10,
            "complete": False,
            "missed": 40,
            "reason": "limit",
        }
        await server.store("alice", "live")
        assert (await window.receive()).startswith('42["message","live"')


async def test_messages_missing_in_the_feed_are_read_from_the_inbox() -> None:
    """As when the subscriber raises once: a window must not continue with a silent gap."""
    async with open_server(SMALL) as server, raw_window(server) as window:
        await window.join("alice")
        await window.synced()
        await server.store("alice", 1)
        server.inbox.subscribe(lambda _batch: None)
        await server.store("alice", 2, 3)
        server.inbox.subscribe(server.io.rooms.emit)

        await server.store("alice", 4)
        await server.store("alice", 5)

        got = [json.loads((await window.receive())[2:])[1] for _ in range(5)]
        assert got == [1, 2, 3, 4, 5]
        assert server.count("windows_fell_behind_total") == 1
        assert server.windows("alice")[0].offset == 5


@WITHOUT_AND_WITH_TLS
async def test_a_polling_page_that_never_polls_is_bounded_and_closed() -> None:
    """Its queue is memory of the bridge."""
    async with open_server(SMALL) as server, raw_poller(server) as page:
        await page.join("alice")
        (session,) = server.sessions()

        await fill(server, "alice")

        assert session.is_closed
        assert session.waiting_bytes < 2 * 64 * 1024
        assert not len(server.io.rooms)
        assert any('"slow"' in packet for packet in await page.poll())
        server.tick(later_s=5)
        assert not server.sessions()


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_replies_that_are_not_read_are_bounded_too(transport: str) -> None:
    """A client that sends requests and pongs but does not read would pile them up."""
    plan = Plan(outbound_bytes=20_000, events_per_second=10**6)
    ask = '421["ack","x"]'
    async with open_server(plan) as server:
        if transport == "polling":
            async with raw_poller(server) as page:
                await page.join("alice")
                (session,) = server.sessions()
                for _ in range(50):
                    if await page.post("3", *[ask] * 20) != 200:
                        break
                    server.tick()
                assert session.is_closed
                assert session.waiting_bytes < 3 * 20_000
        else:
            async with raw_tcp(server, receive_bytes=4096) as stuck:
                await connect(stuck, "alice")
                (session,) = server.sessions()
                with_small_kernel_buffer(session)

                async def send_requests() -> None:
                    try:
                        while True:
                            await stuck.send_frame(ask.encode())
                    except OSError:
                        pass

                asking = asyncio.create_task(send_requests())
                async with asyncio.timeout(30 * SLOW_FACTOR):
                    while not session.is_closed:
                        server.tick()
                        await asyncio.sleep(0.01)
                asking.cancel()
        assert server.count("windows_closed_total", code=Closing.SLOW) == 1


@WITHOUT_AND_WITH_TLS
async def test_pongs_of_the_websocket_stay_within_the_limit() -> None:
    """Pongs bypass the accounting of messages; they must not pile up."""
    async with (
        open_server(SMALL) as server,
        raw_tcp(server, receive_bytes=4096) as stuck,
    ):
        await connect(stuck, "alice")
        (session,) = server.sessions()

        with_small_kernel_buffer(session)

        async def send_pings() -> None:
            try:
                while True:
                    await stuck.send_frame(b"p" * 125, opcode=9)
            except OSError:
                pass

        pinging = asyncio.create_task(send_pings())
        most = 0
        for _ in range(200):
            await asyncio.sleep(0.005)
            most = max(most, session.waiting_bytes)
        session.close("enough", abort=True)
        await asyncio.wait({pinging}, timeout=5)
        pinging.cancel()
        await eventually(lambda: server.connection_count == 0)

    assert 0 < most < 64 * 1024


async def test_a_slow_window_gets_the_pong_of_its_latest_ping() -> None:
    """The pong is sent as soon as the client has read what was written before."""
    async with (
        open_server(SMALL) as server,
        raw_tcp(server, receive_bytes=4096) as slow,
    ):
        await connect(slow, "alice")
        (session,) = server.sessions()
        with_small_kernel_buffer(session)
        for _ in range(2000):
            await slow.send_frame(b"p" * 125, opcode=9)
        await slow.send_frame(b"the latest", opcode=9)

        received = await slow.receive_until(b"the latest")

        assert received.count(b"p" * 125) < 2000


@WITHOUT_AND_WITH_TLS
async def test_unread_poll_responses_are_bounded_and_aborted() -> None:
    """
    A client that polls on one connection after another and reads no response.

    Each response would hold as much as a poll may bring, outside of every limit, and stay
    forever, because the TCP connection is alive.
    """
    async with (
        open_server(Plan(outbound_bytes=64_000_000)) as server,
        AsyncExitStack() as stack,
    ):
        # A large amount, because kernel buffers hold a lot.
        await server.store("alice", *("x" * 1_000_000 for _ in range(60)))
        async with raw_poller(server) as page:
            await page.post("40" + json.dumps({"token": token()}))
            (session,) = server.sessions()
            request = (
                f"GET {URL(page.url).raw_path_qs} HTTP/1.1\r\nHost: x\r\n\r\n"
            ).encode()

            def unread_bytes() -> int:
                return sum(
                    each.get_write_buffer_size() for each in server.http_connections
                )

            most = 0
            for _ in range(20):
                stuck = await stack.enter_async_context(
                    raw_tcp(server, receive_bytes=4096)
                )
                await stuck.send(request)
                await asyncio.sleep(0.01)
                most = max(most, unread_bytes())
        assert session.is_closed  # at the second poll

        assert 0 < most < 20_000_000
        # The unread responses are discarded a moment after the session.
        await eventually(lambda: not unread_bytes())
