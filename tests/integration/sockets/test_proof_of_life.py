"""
With automatic acks a message counts as delivered when its page was alive after the write.

Until then a new window of the user gets it.
"""

import os
import signal
import socket
from typing import Any

import pytest

from tests.conftest import eventually
from tests.integration.sockets.js_pages import open_pages
from tests.integration.sockets.raw_pages import (
    RawTcp,
    RawWindow,
    raw_poller,
    raw_tcp,
    raw_window,
)
from tests.integration.sockets.running_server import Plan, RunningServer, open_server
from tests.integration.sockets.test_messages import options
from tests.integration.sockets.test_slow_windows import connect

PING_LATER_S = 26


async def delivered(server: RunningServer) -> int:
    """Return the delivered mark of alice."""
    return (await server.inbox.state("alice")).delivered


async def all_left(server: RunningServer) -> None:
    """Wait until alice has no window."""
    await eventually(lambda: not server.windows("alice"))


async def received_by_a_new_window(server: RunningServer) -> list[Any]:
    """Return the messages that a new window of alice gets."""
    async with raw_window(server) as window:
        await window.join("alice")
        events, sync = await window.synced()
        assert sync["reason"] is None
    return [event[1] for event in events]


async def joined(server: RunningServer, window: RawWindow) -> None:
    """Join alice and receive the message 1."""
    await window.join("alice")
    await window.synced()
    await server.store("alice", 1)
    await window.receive_until('42["message",1')


# --- a page that is gone without a sign of life


async def test_a_new_window_gets_what_a_frozen_page_has_not_shown(
    server: RunningServer,
) -> None:
    """The page's process is frozen, its sockets stay open, and it is killed later."""
    async with open_pages() as frozen:
        await frozen.connected("page", server.url, **options("alice", "websocket"))
        await server.store("alice", "shown")
        await frozen.until("page", "event", "message")
        server.tick(later_s=PING_LATER_S)

        async def is_shown_delivered() -> bool:
            return await delivered(server) == 1

        await eventually(is_shown_delivered)
        os.kill(frozen.process_id, signal.SIGSTOP)
        await server.store("alice", "suspended 1")
        await server.store("alice", "suspended 2")
        os.kill(frozen.process_id, signal.SIGKILL)
    await all_left(server)

    assert await received_by_a_new_window(server) == ["suspended 1", "suspended 2"]


@pytest.mark.parametrize("end", ["no pong", "cut"])
async def test_a_connection_that_ends_without_a_close_frame_proves_nothing(
    server: RunningServer, end: str
) -> None:
    """The network of the page is lost."""
    async with raw_window(server) as window:
        await joined(server, window)
        if end == "no pong":
            server.tick(later_s=PING_LATER_S)
            server.tick(later_s=PING_LATER_S + 21)
        else:
            server.cut("alice")
        await all_left(server)
    assert await delivered(server) == 0
    assert await received_by_a_new_window(server) == [1]


async def test_a_close_frame_of_a_page_that_owes_a_pong_proves_nothing(
    server: RunningServer,
) -> None:
    """Browsers send it also for a page whose process was frozen and has died."""
    async with raw_window(server) as window:
        await joined(server, window)
        server.tick(later_s=PING_LATER_S)
        await window.websocket.close(code=1001)
    await all_left(server)
    assert await received_by_a_new_window(server) == [1]


async def test_the_end_of_the_stream_alone_proves_nothing(
    server: RunningServer,
) -> None:
    """The system or a proxy closes the connection of a killed browser in order."""
    async with raw_tcp(server) as page:
        await connect(page, "alice")
        await server.store("alice", 1)
        await page.receive_until(b'42["message",1')
        page.socket.shutdown(socket.SHUT_WR)
        await all_left(server)
    assert await delivered(server) == 0
    assert await received_by_a_new_window(server) == [1]


async def test_a_window_that_stops_reading_has_received_what_its_last_pong_covers() -> (
    None
):
    """Its close frame proves nothing either: bytes wait for it."""
    async with (
        open_server(Plan(outbound_bytes=1 << 26)) as server,
        raw_tcp(server, receive_bytes=4096) as stuck,
    ):
        await connect(stuck, "alice")
        await server.store("alice", "read")
        await stuck.receive_until(b'"read"')
        await answer_ping(server, stuck)
        await server.store("alice", *("x" * 100_000 for _ in range(100)))
        (window,) = server.windows("alice")
        await eventually(lambda: window.offset == 101)
        await stuck.send_frame(b'42["hello"]')
        await stuck.send_frame(b"\x03\xe8", opcode=8)
        await all_left(server)

        assert await delivered(server) == 1


async def answer_ping(server: RunningServer, page: RawTcp) -> None:
    """Have a ping sent and answer it."""
    server.tick(later_s=PING_LATER_S)
    await page.receive_until(b"\x81\x012")
    await page.send_frame(b"3")
    (window,) = server.windows("alice")
    await eventually(lambda: window.session.pong_due_s is None)


# --- signs of life


async def test_a_pong_covers_the_messages_before_its_ping(
    server: RunningServer,
) -> None:
    """A message that was written after the ping may still be under way."""
    async with raw_window(server) as window:
        await joined(server, window)
        server.tick(later_s=PING_LATER_S)
        await server.store("alice", 2)
        await window.receive_until('42["message",2')
        assert await delivered(server) == 0
        await window.send("3")
        (page,) = server.windows("alice")
        await eventually(lambda: page.session.pong_due_s is None)
        assert await delivered(server) == 1


@pytest.mark.parametrize("packet", ["3", '42["anything"]', '421["ack","x"]', "1", "41"])
async def test_any_packet_of_the_page_delivers_what_was_written_before(
    server: RunningServer, packet: str
) -> None:
    """Also an event that bridge does not know, and the packets that end the session."""
    async with raw_window(server) as window:
        await joined(server, window)
        assert await delivered(server) == 0

        await window.send(packet)

        async def is_delivered() -> bool:
            return await delivered(server) == 1

        await eventually(is_delivered)


@pytest.mark.parametrize("code", [1000, 1001])
async def test_a_reload_repeats_nothing_that_was_shown(
    server: RunningServer, code: int
) -> None:
    """A browser closes the connection of a page that it leaves with a close frame."""
    async with raw_window(server) as window:
        await joined(server, window)
        await window.websocket.close(code=code)
    await all_left(server)

    assert await received_by_a_new_window(server) == []


async def test_a_client_that_refuses_a_message_has_not_received_it(
    server: RunningServer,
) -> None:
    """1009: the message is larger than the client accepts."""
    async with raw_window(server) as window:
        await joined(server, window)
        await window.websocket.close(code=1009)
    await all_left(server)

    assert await delivered(server) == 0


@pytest.mark.parametrize("packet", ["1", "41"])
async def test_what_a_polling_page_had_not_received_when_it_closed_goes_to_the_next(
    server: RunningServer, packet: str
) -> None:
    """
    Its last response too: only the next poll would have proved that it arrived.

    A stock client posts a close packet when the connection of a poll was cut.
    """
    async with raw_poller(server) as page:
        await page.join("alice")
        await server.store("alice", 1)
        await page.poll()
        await server.store("alice", 2)

        await page.post(packet)

    await all_left(server)
    assert await delivered(server) == 0
    assert await received_by_a_new_window(server) == [1, 2]


async def test_one_window_that_is_alive_is_enough(server: RunningServer) -> None:
    """The mark belongs to the user."""
    async with raw_window(server) as silent, raw_window(server) as alive:
        await silent.join("alice")
        await silent.synced()
        await joined(server, alive)
        await alive.send("3")
        (_, window) = server.windows("alice")
        await eventually(lambda: window._delivered == 1)
        assert await delivered(server) == 1


async def test_the_position_of_a_page_counts_with_its_first_sign_of_life(
    server: RunningServer,
) -> None:
    """The page has received everything up to the position with which it reconnects."""
    async with raw_window(server) as window:
        await joined(server, window)
        position = server.windows("alice")[0]
        server.cut("alice")
    async with raw_window(server) as window:
        await window.join("alice", position=f"{position.epoch}-1")
        assert (await window.synced())[0] == []
        assert await delivered(server) == 0
    await all_left(server)
    assert await delivered(server) == 1


async def test_messages_queued_over_polling_are_not_delivered_by_the_upgrade(
    server: RunningServer,
) -> None:
    """They are written to the new WebSocket, and count with the next sign of life."""
    async with raw_poller(server) as page:
        await page.join("alice")
        async with raw_window(server, sid=page.sid) as upgrade:
            await upgrade.send("2probe")
            assert await upgrade.receive() == "3probe"
            await server.store("alice", 1)
            await upgrade.send("5")
            assert '"message",1' in await upgrade.receive()
            assert await delivered(server) == 0
            await upgrade.send("3")
            (window,) = server.windows("alice")
            await eventually(lambda: window._delivered == 1)
