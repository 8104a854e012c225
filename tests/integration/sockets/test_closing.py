"""Closing of windows: missing pongs, kick, drain and reload; nothing is left behind."""

import asyncio
import gc
import json
import time
import warnings
import weakref

import pytest

from bridge.core.journal import Journal
from bridge.enums import Closing
from bridge.http.fleet import FleetView
from bridge.sockets.engineio.session import EngineSession
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.raw_pages import raw_poller, raw_tcp, raw_window
from tests.integration.sockets.running_server import (
    Plan,
    RunningServer,
    memory_inbox,
    open_server,
)
from tests.integration.sockets.test_messages import TRANSPORTS, options
from tests.tokens import token


async def test_a_window_without_pongs_is_closed(server: RunningServer) -> None:
    """A phone that loses its network does not close the connection."""
    async with raw_window(server) as silent, raw_window(server) as good:
        await silent.join("alice")
        await silent.synced()
        await good.join("alice")
        await good.synced()

        server.tick(later_s=26)
        assert await silent.receive() == "2"
        assert await good.receive() == "2"
        await good.send("3")
        first, second = server.windows("alice")
        await eventually(lambda: second.session.pong_due_s is None)
        server.tick(later_s=47)

        assert first.session.is_closed
        assert server.windows("alice") == [second]
        await silent.ended()


async def test_a_client_that_keeps_sending_after_its_end_is_cut_off(
    server: RunningServer,
) -> None:
    """It never sends a close frame, and reads nothing: its connection must not stay."""
    async with raw_tcp(server) as connection:
        await connection.open_websocket()
        await connection.send_frame(b"1")  # ends its session

        async def send_without_end() -> None:
            while True:
                await connection.send_frame(b"x" * 1000)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(send_without_end(), 20 * SLOW_FACTOR)

    assert not server.sessions()


async def test_a_polling_window_without_pongs_is_closed_too(
    server: RunningServer,
) -> None:
    """Its ping waits in the queue for a poll that never comes."""
    async with raw_poller(server) as page:
        await page.join("alice")
        server.tick(later_s=26)
        server.tick(later_s=47)
        assert not server.windows("alice")
        server.tick(later_s=50)
        assert not server.sessions()


@TRANSPORTS
async def test_the_stock_client_answers_pings_and_stays(
    pages: Pages, transport: str
) -> None:
    """
    With the shortest possible interval, on the real clock.

    The server checks sessions once a second, so a ping may come a second late; the client
    disconnects when the interval and the timeout are over.
    """
    async with open_server(Plan(ping_interval_s=1, ping_timeout_s=3)) as server:
        await pages.connected("page", server.url, **options("alice", transport))
        (window,) = server.windows("alice")
        first_ping_s = window.session.ping_due_s
        # The third ping is sent only if the second one was answered.
        await eventually(lambda: window.session.ping_due_s > first_ping_s + 2)
        assert server.windows("alice") == [window]


@TRANSPORTS
async def test_a_client_that_disconnects_leaves_its_room_at_once(
    server: RunningServer, pages: Pages, transport: str
) -> None:
    """Messages stored after that wait for the user's next window."""
    await pages.connected("page", server.url, **options("alice", transport))

    pages.command("close", "page")

    await eventually(lambda: not len(server.io.rooms))
    await server.store("alice", 1)
    assert (await server.inbox.state("alice")).delivered == 0


@TRANSPORTS
async def test_a_kicked_user_is_notified_and_the_client_does_not_reconnect(
    server: RunningServer, pages: Pages, transport: str
) -> None:
    """All windows of that user are closed, and no others."""
    for name in ("one", "two"):
        await pages.connected(name, server.url, **options("alice", transport))
    await pages.connected("other", server.url, **options("bob", transport))

    assert server.io.kick("alice") == 2
    assert server.io.kick("nobody") == 0

    for name in ("one", "two"):
        closing = await pages.until(name, "event", "bridge:closing")
        assert closing[0]["code"] == "kicked"
        assert closing[0]["reconnect"] is False
        assert closing[0]["reason"]
        assert await pages.until(name, "disconnect") == ["io server disconnect"]
    await server.store("bob", "still here")
    await pages.until("other", "event", "message")


# --- drain


@TRANSPORTS
async def test_a_drained_window_resumes_at_the_next_bridge(
    pages: Pages, transport: str
) -> None:
    """A restart without any loss: the second bridge has the same inbox."""
    inbox = memory_inbox()
    async with open_server(inbox=inbox) as first:
        await pages.connected("page", first.url, **options("alice", transport))
        await first.store_numbers("alice", start=0, stop=10)
        await pages.until("page", "event", "message", count=10)
        await first.io.drain(within_s=1, per_s=200)
        closing = await pages.until("page", "event", "bridge:closing")
        assert (closing[0]["code"], closing[0]["reconnect"]) == ("draining", True)
        assert not len(first.io.rooms)
        await first.store_numbers("alice", start=10, stop=20)
    async with open_server(Plan(port=first.port), inbox=inbox) as second:
        await second.store_numbers("alice", start=20, stop=30)
        again = await pages.until("page", "connect", count=2)
        await pages.until("page", "event", "message", count=30)
        assert again[0]["recovered"] is True
    assert pages.data("page") == list(range(30))


async def test_a_draining_bridge_admits_no_window(server: RunningServer) -> None:
    """Neither in a new session nor in one that is open already."""
    async with raw_window(server) as open_before:
        draining = asyncio.create_task(server.io.drain(within_s=1, per_s=200))
        await asyncio.sleep(0)
        async with raw_tcp(server) as connection:
            await connection.send(
                b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: x\r\n\r\n"
            )
            answer = await connection.receive_until(b"again")
            assert b" 503 " in answer
            assert b"Retry-After" in answer
        await draining
        await open_before.ended()
    assert not server.sessions()


async def test_a_request_after_the_tasks_have_ended_causes_no_warning(
    server: RunningServer,
) -> None:
    """Python warns about coroutines that are never awaited."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        async with raw_window(server) as page:
            server.io.engine._tasks = (
                None  # as between the end of the tasks and the close of the port
            )
            await page.send("40" + json.dumps({"token": token()}))
            (session,) = server.sessions()
            await page.websocket.ping()
            await page.websocket.close()
            await eventually(lambda: session.is_closed)
        gc.collect()

    assert [str(each.message) for each in warned] == []


@pytest.mark.parametrize(("within_s", "per_s", "first"), [(20.0, 100, 10), (2.0, 1, 6)])
async def test_windows_are_drained_in_paced_batches(
    server: RunningServer, within_s: float, per_s: int, first: int
) -> None:
    """
    So that they do not all reach the next bridge in one instant.

    At the requested pace, or faster if that would take too long.
    """
    async with asyncio.timeout(30):
        async with asyncio.TaskGroup() as tasks:
            everybody = asyncio.Event()

            async def stay() -> None:
                async with raw_window(server) as window:
                    await window.join("alice")
                    await everybody.wait()

            for _ in range(120):
                tasks.create_task(stay())
            await eventually(lambda: len(server.windows("alice")) == 120)
            draining = asyncio.create_task(
                server.io.drain(within_s=within_s, per_s=per_s)
            )
            await asyncio.sleep(0)
            after_first = len(server.windows("alice"))
            began_s = time.monotonic()
            await draining
            took_s = time.monotonic() - began_s
            everybody.set()
    assert after_first == 120 - first
    assert took_s > 0.9
    assert not server.windows("alice")
    assert server.count("windows_closed_total", code=Closing.DRAINING) == 120


# --- nothing is left behind


async def test_a_thousand_connects_and_closes_leave_nothing_behind(
    server: RunningServer,
) -> None:
    """No window, connection, task or count of an address remains."""
    sessions: weakref.WeakSet[EngineSession] = weakref.WeakSet()
    tasks_before = len(asyncio.all_tasks())

    async def come_and_go(number: int) -> None:
        user = f"user {number % 50}"
        if number % 10 == 0:
            async with raw_poller(server) as page:
                await page.join(user)
                sessions.update(server.sessions())
                await page.post("1")
        else:
            async with raw_window(server) as window:
                if number % 10 != 1:
                    await window.join(user)
                sessions.update(server.sessions())
                if number % 10 == 2:
                    await window.send("nonsense")

    for start in range(0, 1000, 20):
        async with asyncio.TaskGroup() as tasks:
            for number in range(start, start + 20):
                tasks.create_task(come_and_go(number))
    await eventually(lambda: not len(server.io.rooms))
    server.tick(later_s=60)  # closes those that never connected
    server.tick(later_s=70)

    assert not server.sessions()
    assert not server.io.rooms.user_count
    assert not server.io.engine._by_address
    assert not server.inbox._followed
    await eventually(lambda: server.connection_count == 0)
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks_before)

    def are_freed() -> bool:
        gc.collect()
        return not sessions

    await eventually(are_freed)


async def test_reloaded_options_apply_from_now_on(server: RunningServer) -> None:
    """SIGHUP brings tighter limits; open windows stay."""
    async with raw_window(server) as window:
        await window.join("alice")
        await window.synced()

        server.io.apply(Plan(windows_per_user=1).options)

        async with raw_window(server) as second:
            with pytest.raises(AssertionError, match="too_many_windows"):
                await second.join("alice")
        await server.store("alice", 1)
        assert json.loads((await window.receive())[2:])[1] == 1


async def test_an_operator_sees_the_windows_of_a_user() -> None:
    """For a kick, and when a user reports that a page receives nothing."""
    async with (
        open_server() as server,
        raw_window(server) as socket,
        raw_poller(server) as poller,
    ):
        await server.store("alice", 1, 2)
        reply = await socket.join("alice", acks="manual")
        await socket.synced()
        await poller.join("alice")

        fleet = FleetView(server.io, Journal())
        first, second = (await fleet.windows_of("alice")).windows

        assert reply["sid"].startswith(first.sid_short)
        assert reply["sid"] != first.sid_short
        assert (first.transport, second.transport) == ("websocket", "polling")
        assert first.address == second.address == "127.0.0.1"
        assert first.connected_s <= second.connected_s <= time.time()
        assert first.offset == second.offset == 2
        assert (first.acks, second.acks) == ("manual", "auto")
        assert first.live
        assert first.waiting_bytes == second.waiting_bytes == 0
        assert (await fleet.windows_of("nobody")).windows == []
