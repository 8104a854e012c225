"""How windows end: silence, kick, drain, reload; and that nothing of them stays behind."""

import asyncio
import gc
import json
import time
import warnings
import weakref

import pytest

from bridge.enums import Closing
from bridge.sockets.engineio.session import EngineSession
from tests.conftest import eventually
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.listeners import Door, Plan, memory_inbox, open_door
from tests.integration.sockets.raw_pages import raw_poller, raw_tcp, raw_window
from tests.integration.sockets.test_messages import TRANSPORTS, options
from tests.tokens import token


async def test_a_window_that_does_not_pong_is_ended_and_freed(door: Door) -> None:
    """A phone that lost its network says no goodbye."""
    async with raw_window(door) as silent, raw_window(door) as good:
        await silent.join("alice")
        await silent.synced()
        await good.join("alice")
        await good.synced()

        door.tick(later_s=26)
        assert await silent.receive() == "2"
        assert await good.receive() == "2"
        await good.send("3")
        first, second = door.windows("alice")
        await eventually(lambda: second.session.pong_due_s is None)
        door.tick(later_s=47)

        assert first.session.is_closed
        assert door.windows("alice") == [second]
        await silent.ended()


async def test_a_polling_page_that_does_not_pong_is_ended_too(door: Door) -> None:
    """Its ping waits in the queue for a poll that never comes."""
    async with raw_poller(door) as page:
        await page.join("alice")
        door.tick(later_s=26)
        door.tick(later_s=47)
        assert not door.windows("alice")
        door.tick(later_s=50)
        assert not door.sessions()


@TRANSPORTS
async def test_the_stock_client_answers_pings_and_stays(
    pages: Pages, transport: str
) -> None:
    """With the shortest interval there is, on the real clock."""
    async with open_door(Plan(ping_interval_s=1, ping_timeout_s=1)) as door:
        await pages.connected("page", door.url, **options("alice", transport))
        (window,) = door.windows("alice")
        first_ping_s = window.session.ping_due_s
        # The third one goes out only if the second one was answered.
        await eventually(lambda: window.session.ping_due_s > first_ping_s + 2)
        assert door.windows("alice") == [window]


@TRANSPORTS
async def test_a_page_that_closes_leaves_at_once(
    door: Door, pages: Pages, transport: str
) -> None:
    """What is stored from then on waits for its user's next page."""
    await pages.connected("page", door.url, **options("alice", transport))

    pages.command("close", "page")

    await eventually(lambda: not len(door.server.rooms))
    await door.store("alice", 1)
    assert (await door.inbox.state("alice")).delivered == 0


@TRANSPORTS
async def test_a_kicked_user_is_told_and_the_client_stays_away(
    door: Door, pages: Pages, transport: str
) -> None:
    """All windows of that user, and no other's."""
    for name in ("one", "two"):
        await pages.connected(name, door.url, **options("alice", transport))
    await pages.connected("other", door.url, **options("bob", transport))

    assert door.server.kick("alice") == 2
    assert door.server.kick("nobody") == 0

    for name in ("one", "two"):
        closing = await pages.until(name, "event", "bridge:closing")
        assert closing[0]["code"] == "kicked"
        assert closing[0]["reconnect"] is False
        assert closing[0]["reason"]
        assert await pages.until(name, "disconnect") == ["io server disconnect"]
    await door.store("bob", "still here")
    await pages.until("other", "event", "message")


# --- drain


@TRANSPORTS
async def test_a_drained_window_finds_its_place_in_the_next_bridge(
    pages: Pages, transport: str
) -> None:
    """A restart in which nobody misses anything: the second bridge has the same inbox."""
    inbox = memory_inbox()
    async with open_door(inbox=inbox) as first:
        await pages.connected("page", first.url, **options("alice", transport))
        await first.store_numbers("alice", start=0, stop=10)
        await pages.until("page", "event", "message", count=10)
        await first.server.drain(within_s=1, per_s=200)
        closing = await pages.until("page", "event", "bridge:closing")
        assert (closing[0]["code"], closing[0]["reconnect"]) == ("draining", True)
        assert not len(first.server.rooms)
        await first.store_numbers("alice", start=10, stop=20)
    async with open_door(Plan(port=first.port), inbox=inbox) as second:
        await second.store_numbers("alice", start=20, stop=30)
        again = await pages.until("page", "connect", count=2)
        await pages.until("page", "event", "message", count=30)
        assert again[0]["recovered"] is True
    assert pages.data("page") == list(range(30))


async def test_a_draining_bridge_lets_nobody_in(door: Door) -> None:
    """Neither a new session nor a session that is there already."""
    async with raw_window(door) as open_before:
        draining = asyncio.create_task(door.server.drain(within_s=1, per_s=200))
        await asyncio.sleep(0)
        async with raw_tcp(door) as connection:
            await connection.send(
                b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: x\r\n\r\n"
            )
            answer = await connection.receive_until(b"again")
            assert b" 503 " in answer
            assert b"Retry-After" in answer
        await draining
        await open_before.ended()
    assert not door.sessions()


async def test_a_page_that_asks_when_nobody_works_any_more_is_no_fault(
    door: Door,
) -> None:
    """Work that is begun and never done is a warning of Python's, in every log there is."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        async with raw_window(door) as page:
            door.server.engine._tasks = (
                None  # as it is between the tasks' end and the doors'
            )
            await page.send("40" + json.dumps({"token": token()}))
            (session,) = door.sessions()
            await page.websocket.ping()
            await page.websocket.close()
            await eventually(lambda: session.is_closed)
        gc.collect()

    assert [str(each.message) for each in warned] == []


@pytest.mark.parametrize(("within_s", "per_s", "first"), [(20.0, 100, 10), (2.0, 1, 6)])
async def test_windows_are_drained_in_paced_batches(
    door: Door, within_s: float, per_s: int, first: int
) -> None:
    """
    So that they do not all arrive at the next bridge in one instant.

    At the pace that was asked for, or at the slowest that is in time.
    """
    async with asyncio.timeout(30):
        async with asyncio.TaskGroup() as tasks:
            everybody = asyncio.Event()

            async def stay() -> None:
                async with raw_window(door) as window:
                    await window.join("alice")
                    await everybody.wait()

            for _ in range(120):
                tasks.create_task(stay())
            await eventually(lambda: len(door.windows("alice")) == 120)
            draining = asyncio.create_task(
                door.server.drain(within_s=within_s, per_s=per_s)
            )
            await asyncio.sleep(0)
            after_first = len(door.windows("alice"))
            began_s = time.monotonic()
            await draining
            took_s = time.monotonic() - began_s
            everybody.set()
    assert after_first == 120 - first
    assert took_s > 0.9
    assert not door.windows("alice")
    assert door.count("windows_closed_total", code=Closing.DRAINING) == 120


# --- nothing stays behind


async def test_a_thousand_connects_and_closes_leave_nothing_behind(door: Door) -> None:
    """No window, no connection, no task, no count of an address."""
    sessions: weakref.WeakSet[EngineSession] = weakref.WeakSet()
    tasks_before = len(asyncio.all_tasks())

    async def come_and_go(number: int) -> None:
        user = f"user {number % 50}"
        if number % 10 == 0:
            async with raw_poller(door) as page:
                await page.join(user)
                sessions.update(door.sessions())
                await page.post("1")
        else:
            async with raw_window(door) as window:
                if number % 10 != 1:
                    await window.join(user)
                sessions.update(door.sessions())
                if number % 10 == 2:
                    await window.send("nonsense")

    for start in range(0, 1000, 20):
        async with asyncio.TaskGroup() as tasks:
            for number in range(start, start + 20):
                tasks.create_task(come_and_go(number))
    await eventually(lambda: not len(door.server.rooms))
    door.tick(later_s=60)  # those that never connected
    door.tick(later_s=70)

    assert not door.sessions()
    assert not list(door.server.rooms.users)
    assert not door.server.engine._by_address
    assert not door.inbox._followed
    await eventually(lambda: door.connection_count == 0)
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks_before)

    def are_freed() -> bool:
        gc.collect()
        return not sessions

    await eventually(are_freed)


async def test_a_reload_of_the_options_counts_from_now_on(door: Door) -> None:
    """SIGHUP: tighter caps and bounds, while windows stay."""
    async with raw_window(door) as window:
        await window.join("alice")
        await window.synced()

        door.server.apply(Plan(windows_per_user=1).options)

        async with raw_window(door) as second:
            with pytest.raises(AssertionError, match="too_many_windows"):
                await second.join("alice")
        await door.store("alice", 1)
        assert json.loads((await window.receive())[2:])[1] == 1


async def test_an_operator_sees_which_windows_a_user_has() -> None:
    """Before kicking, and when a user says that a page gets nothing."""
    async with (
        open_door() as door,
        raw_window(door) as socket,
        raw_poller(door) as poller,
    ):
        await door.store("alice", 1, 2)
        reply = await socket.join("alice", acks="manual")
        await socket.synced()
        await poller.join("alice")

        first, second = door.server.report_windows("alice")

        assert reply["sid"].startswith(first.id)
        assert reply["sid"] != first.id
        assert (first.transport, second.transport) == ("websocket", "polling")
        assert first.address == second.address == "127.0.0.1"
        assert first.connected_s <= second.connected_s <= time.time()
        assert first.offset == second.offset == 2
        assert (first.has_manual_acks, second.has_manual_acks) == (True, False)
        assert first.is_live
        assert first.waiting_bytes == second.waiting_bytes == 0
        assert door.server.report_windows("nobody") == []
