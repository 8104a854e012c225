"""The websocket itself: how it begins, what it keeps to, and how it ends."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio
from yarl import URL

from tests.conftest import eventually
from tests.integration.sockets.listeners import Door, Plan, open_door
from tests.integration.sockets.raw_pages import RawTcp, raw_poller, raw_tcp, raw_window
from tests.tokens import token

HEADERS = (
    b"Host: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
ASK = b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n" + HEADERS
HEALTH = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
CONNECT = b'40{"token":"%s"}'


def connect_frame() -> bytes:
    """Return the CONNECT of a window of alice's, as one frame."""
    payload = CONNECT % token().encode()
    return b"\x81\xfe" + struct.pack(">H", len(payload)) + bytes(4) + payload


@pytest_asyncio.fixture
async def connection(door: Door) -> AsyncIterator[RawTcp]:
    """A TCP connection to the door."""
    async with raw_tcp(door) as connection:
        yield connection


async def becomes_a_window(door: Door, connection: RawTcp) -> None:
    """Show that the websocket that was asked for is there and works."""
    await connection.receive_until(b"bridge:sync")
    await door.store("alice", "hello")
    assert b'["message","hello"' in await connection.receive_until(b"hello")
    (report,) = door.server.report_windows("alice")
    assert report.transport == "websocket"


@pytest.mark.parametrize(
    "cuts", [(), (1,), (20, 100), (len(ASK) - 2,), (len(ASK),), (len(ASK) + 3,)]
)
async def test_a_websocket_begins_however_its_request_is_cut(
    door: Door, connection: RawTcp, cuts: tuple[int, ...]
) -> None:
    """In one piece the bridge reads it itself, in several aiohttp does."""
    data = ASK + connect_frame()
    for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        await connection.send(data[start:end])
        await asyncio.sleep(0.02)  # so that they arrive one by one

    await becomes_a_window(door, connection)


async def test_a_websocket_may_begin_on_a_connection_that_spoke_http_before(
    door: Door, connection: RawTcp
) -> None:
    """As behind a proxy that keeps its connections: this one is aiohttp's by then."""
    await connection.send(HEALTH)
    assert b" 200 " in await connection.receive_until(b"\r\n\r\n")

    await connection.send(ASK + connect_frame())

    await becomes_a_window(door, connection)


async def test_aiohttp_keeps_nothing_of_a_websocket(
    door: Door, connection: RawTcp
) -> None:
    """Its request, task and buffers would be most of what an idle window costs."""
    tasks = len(asyncio.all_tasks())
    await connection.send(HEALTH)
    await connection.receive_until(b"\r\n\r\n")
    await connection.send(ASK + connect_frame())
    await becomes_a_window(door, connection)

    assert not door.http_connections
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks)


async def test_http_goes_on_as_if_there_were_no_front_door(
    connection: RawTcp,
) -> None:
    """Several requests on one connection, and one behind another in one piece."""
    await connection.send(HEALTH * 2)
    answers = b""
    while answers.count(b" 200 ") < 2:
        answers += await connection.receive()
    await connection.send(HEALTH)
    assert b" 200 " in await connection.receive_until(b"\r\n\r\n")


async def test_a_connection_that_says_nothing_is_cut_at_its_deadline(
    door: Door, connection: RawTcp
) -> None:
    """It is memory, and a file descriptor."""
    await eventually(lambda: door.silent_connections == 1)
    door.tick(later_s=9)
    assert door.silent_connections == 1

    door.tick(later_s=11)

    assert await connection.read_to_end() == b""
    await eventually(lambda: not door.silent_connections)
    assert door.connection_count == 0


async def test_packets_behind_a_connect_wait_for_its_answer(door: Door) -> None:
    """They are answered in order, however long the token's check takes."""
    async with raw_window(door) as window:
        await window.send("40" + json.dumps({"token": token(), "acks": "manual"}))
        for number in range(200):
            await window.emit("ack", "x", packet_id=number)

        packets = await window.receive_until("43199[")

    assert packets[0].startswith("40")
    answers = [packet for packet in packets if packet.startswith("43")]
    assert [answer.partition("[")[0] for answer in answers] == [
        f"43{number}" for number in range(200)
    ]


async def test_what_a_page_sends_while_it_waits_is_bounded() -> None:
    """A store that takes its time must not make the bridge collect what pages send."""
    async with open_door() as door, raw_tcp(door) as connection:
        release = asyncio.Event()
        follow = door.inbox.follow

        async def slowly(user: str) -> None:
            await release.wait()
            await follow(user)

        door.inbox.follow = slowly  # type: ignore[method-assign] # a slow store
        await connection.send(ASK + connect_frame())
        await connection.receive_until(b"maxPayload")
        sent = 0
        pong = b"\x81\xfe\x3e\x80" + bytes(4) + b"3" * 16_000
        try:
            async with asyncio.timeout(1):
                while sent < 100_000_000:
                    await connection.send(pong)
                    sent += len(pong)
        except TimeoutError:
            pass
        (session,) = door.sessions()
        assert session._websocket is not None
        kept = len(session._websocket._frames._buffer)
        release.set()

    assert sent < 50_000_000  # the rest was never taken from the kernel
    assert kept < 2_000_000


@pytest.mark.parametrize(
    ("frame", "answer"),
    [
        (b"\x88\x80" + bytes(4), b"\x88\x00"),
        (b"\x88\x82" + bytes(4) + b"\x03\xe9", b"\x88\x02\x03\xe9"),
        (b"\x88\x82" + bytes(4) + b"\x03\xed", b"\x88\x02\x03\xea"),  # not on the wire
        (b"\x81\x01x", b"\x88\x02\x03\xea"),  # not masked
        (b"\x81\x81" + bytes(4) + b"\xff", b"\x88\x02\x03\xef"),  # not UTF-8
        (b"\x89\x83" + bytes(4) + b"abc", b"\x8a\x03abc"),
    ],
)
async def test_control_frames_and_faults_are_answered_as_the_rfc_says(
    door: Door, connection: RawTcp, frame: bytes, answer: bytes
) -> None:
    """And a websocket that was closed is gone from everywhere at once."""
    await connection.send(ASK + connect_frame())
    await connection.receive_until(b"bridge:sync")

    await connection.send(frame)

    if answer[0] == 0x8A:
        assert await connection.receive() == answer
        assert len(door.windows("alice")) == 1
    else:
        assert await connection.read_to_end() == answer
        assert not door.sessions()
        await eventually(lambda: door.connection_count == 0)


async def test_a_page_that_does_not_leave_is_cut_after_its_last_words(
    door: Door,
) -> None:
    """It was told, and keeps the connection."""
    async with raw_tcp(door, receive_bytes=4096) as stuck:
        await stuck.send(ASK + connect_frame())
        await stuck.receive_until(b"bridge:sync")
        (session,) = door.sessions()
        while not session.waiting_bytes:  # the kernel takes much out of our sight
            await door.store("alice", "x" * 500_000)
            await asyncio.sleep(0.01)

        door.server.kick("alice")

        assert door.connection_count == 1
        await eventually(lambda: door.connection_count == 0)


async def test_a_probe_that_never_ends_does_not_outlive_its_deadline() -> None:
    """The session goes on polling."""
    async with open_door(Plan(connect_s=0.3)) as door, raw_poller(door) as page:
        await page.join("alice")
        async with raw_tcp(door) as connection:
            await connection.send(
                f"GET {URL(page.url).raw_path_qs.replace('polling', 'websocket')}"
                " HTTP/1.1\r\n".encode()
                + HEADERS
            )
            await connection.receive_until(b"\r\n\r\n")
            assert not door.sessions()[0].can_upgrade
            assert await connection.read_to_end() == b"\x88\x00"
        assert door.sessions()[0].can_upgrade
        await door.store("alice", 1)
        assert '42["message",1' in (await page.poll_until('42["message"'))[-1]


async def test_a_session_that_ends_in_the_middle_of_a_probe_is_closed_at_its_end(
    door: Door,
) -> None:
    """
    Not before: the stock client has paused its polling by then and waits for nothing.

    It would not notice until it misses a ping, most of a minute later.
    """
    async with raw_poller(door) as page:
        await page.join("alice")
        async with raw_window(door, sid=page.sid) as upgrade:
            await upgrade.send("2probe")
            assert await upgrade.receive() == "3probe"
            door.cut("alice")
            assert not door.windows("alice")

            await upgrade.send("5")

            packets, _ = await upgrade.ended()
            assert packets == []


@pytest.mark.parametrize("cap", [0, 1])
async def test_the_front_door_keeps_to_the_caps_and_leaves_the_answer_to_http(
    cap: int,
) -> None:
    """A page that is turned away is told why, as anybody is."""
    async with (
        open_door(Plan(windows_per_address=cap)) as door,
        raw_tcp(door) as connection,
    ):
        await connection.send(ASK)
        answer = await connection.receive_until(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 101 " if cap else b"HTTP/1.1 429 ")


async def test_what_a_page_sends_while_it_asks_again_and_again_is_bounded() -> None:
    """
    Each CONNECT takes a while, and a page that nobody knows may send a hundred.

    If a piece of its bytes were taken in for each, most of it would pile up unread.
    """
    ask = b"40" + json.dumps({"token": "x" * 15_000}).encode()
    frame = b"\x81\xfe" + len(ask).to_bytes(2, "big") + bytes(4) + ask
    async with (
        open_door(Plan(events_per_second=50)) as door,
        raw_tcp(door) as connection,
    ):
        await connection.send(ASK)
        await connection.receive_until(b"maxPayload")
        (session,) = door.sessions()
        websocket = session._websocket
        assert websocket is not None

        async def push() -> None:
            with suppress(ConnectionError):
                while True:
                    await connection.send(frame * 64)

        pushing = asyncio.create_task(push())
        most = 0
        while not session.is_closed:  # for it floods, in the end
            most = max(most, len(websocket._frames._buffer))
            await asyncio.sleep(0)
        await pushing

    assert most < 2_000_000
