"""WebSockets: the handshake, the limits of received data, and closing."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio
from yarl import URL

from tests.conftest import eventually
from tests.integration.sockets.raw_pages import (
    LIMIT_S,
    RawTcp,
    raw_poller,
    raw_tcp,
    raw_window,
)
from tests.integration.sockets.running_server import Plan, RunningServer, open_server
from tests.tokens import token

HEADERS = (
    b"Host: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
ASK = b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n" + HEADERS
HEALTH = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
CONNECT = b'40{"token":"%s"}'


def connect_frame() -> bytes:
    """Return the CONNECT packet of a window of alice as one frame."""
    payload = CONNECT % token().encode()
    return b"\x81\xfe" + struct.pack(">H", len(payload)) + bytes(4) + payload


@pytest_asyncio.fixture
async def connection(server: RunningServer) -> AsyncIterator[RawTcp]:
    """A TCP connection to the server."""
    async with raw_tcp(server) as connection:
        yield connection


async def assert_is_window(server: RunningServer, connection: RawTcp) -> None:
    """Assert that the requested WebSocket is open and receives messages."""
    await connection.receive_until(b"bridge:sync")
    await server.store("alice", "hello")
    assert b'["message","hello"' in await connection.receive_until(b"hello")
    (window,) = server.windows("alice")
    assert window.session.transport_name == "websocket"


@pytest.mark.parametrize(
    "cuts", [(), (1,), (20, 100), (len(ASK) - 2,), (len(ASK),), (len(ASK) + 3,)]
)
async def test_a_websocket_opens_however_its_request_is_split(
    server: RunningServer, connection: RawTcp, cuts: tuple[int, ...]
) -> None:
    """The bridge parses a complete request itself; aiohttp parses one in pieces."""
    data = ASK + connect_frame()
    for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        await connection.send(data[start:end])
        await asyncio.sleep(
            0.02
        )  # the pieces must arrive one by one, and no condition shows it

    await assert_is_window(server, connection)


async def test_a_websocket_may_open_on_a_connection_that_served_http_before(
    server: RunningServer, connection: RawTcp
) -> None:
    """As behind a proxy that reuses connections. Aiohttp serves this one by then."""
    await connection.send(HEALTH)
    assert b" 200 " in await connection.receive_until(b"\r\n\r\n")

    await connection.send(ASK + connect_frame())

    await assert_is_window(server, connection)


async def test_aiohttp_keeps_no_state_of_a_websocket(
    server: RunningServer, connection: RawTcp
) -> None:
    """Its request, task and buffers would be most of the cost of an idle window."""
    tasks = len(asyncio.all_tasks())
    await connection.send(HEALTH)
    await connection.receive_until(b"\r\n\r\n")
    await connection.send(ASK + connect_frame())
    await assert_is_window(server, connection)

    assert not server.http_connections
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks)


async def test_http_requests_are_served_as_by_aiohttp_alone(
    connection: RawTcp,
) -> None:
    """Several requests on one connection, also pipelined."""
    await connection.send(HEALTH * 2)
    answers = b""
    while answers.count(b" 200 ") < 2:
        answers += await connection.receive()
    await connection.send(HEALTH)
    assert b" 200 " in await connection.receive_until(b"\r\n\r\n")


async def test_packets_after_a_connect_wait_for_its_reply(
    server: RunningServer,
) -> None:
    """The replies are in order, however long the verification of the token takes."""
    async with raw_window(server) as window:
        await window.send("40" + json.dumps({"token": token(), "acks": "manual"}))
        for number in range(200):
            await window.emit("ack", "x", packet_id=number)

        packets = await window.receive_until("43199[")

    assert packets[0].startswith("40")
    answers = [packet for packet in packets if packet.startswith("43")]
    assert [answer.partition("[")[0] for answer in answers] == [
        f"43{number}" for number in range(200)
    ]


async def test_input_is_bounded_while_a_connect_waits() -> None:
    """With a slow store the bridge must not buffer the input of clients without a limit."""
    async with open_server() as server, raw_tcp(server) as connection:
        release = asyncio.Event()
        follow = server.inbox.follow

        async def slowly(user: str) -> None:
            await release.wait()
            await follow(user)

        server.inbox.follow = slowly  # type: ignore[method-assign] # a slow store
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
        (session,) = server.sessions()
        assert session._websocket is not None
        kept = len(session._websocket._frames._buffer)
        release.set()

    assert sent < 50_000_000  # the rest was not read from the kernel
    assert kept < 2_000_000


@pytest.mark.parametrize(
    ("frame", "answer"),
    [
        (b"\x88\x80" + bytes(4), b"\x88\x00"),
        (b"\x88\x82" + bytes(4) + b"\x03\xe9", b"\x88\x02\x03\xe9"),
        (b"\x88\x82" + bytes(4) + b"\x03\xed", b"\x88\x02\x03\xea"),  # reserved
        (b"\x81\x01x", b"\x88\x02\x03\xea"),  # not masked
        (b"\x81\x81" + bytes(4) + b"\xff", b"\x88\x02\x03\xef"),  # not UTF-8
        (b"\x89\x83" + bytes(4) + b"abc", b"\x8a\x03abc"),
    ],
)
async def test_control_frames_and_errors_are_answered_according_to_the_rfc(
    server: RunningServer, connection: RawTcp, frame: bytes, answer: bytes
) -> None:
    """A closed WebSocket leaves no session behind."""
    await connection.send(ASK + connect_frame())
    await connection.receive_until(b"bridge:sync")

    await connection.send(frame)

    if answer[0] == 0x8A:
        assert await connection.receive() == answer
        assert len(server.windows("alice")) == 1
    else:
        assert await connection.read_to_end() == answer
        assert not server.sessions()
        await eventually(lambda: server.connection_count == 0)


async def test_a_client_that_keeps_a_closing_connection_is_aborted(
    server: RunningServer,
) -> None:
    """It has received the close frame and does not close the connection."""
    async with raw_tcp(server, receive_bytes=4096) as stuck:
        await stuck.send(ASK + connect_frame())
        await stuck.receive_until(b"bridge:sync")
        (session,) = server.sessions()
        while not session.waiting_bytes:  # kernel buffers hold a lot
            await server.store("alice", "x" * 500_000)
            await asyncio.sleep(0.01)

        server.io.kick("alice")

        assert server.connection_count == 1
        await eventually(lambda: server.connection_count == 0)


@pytest.mark.parametrize("is_whole", [True, False])
async def test_the_first_requested_subprotocol_is_accepted(
    connection: RawTcp, *, is_whole: bool
) -> None:
    """A browser fails a handshake whose response names none of its subprotocols."""
    request = ASK[:-2] + b"Sec-WebSocket-Protocol: chat, other\r\n\r\n"
    if not is_whole:  # then aiohttp parses it
        await connection.send(HEALTH)
        await connection.receive_until(b"\r\n\r\n")
    await connection.send(request)

    response = await connection.receive_until(b"maxPayload")

    assert b"\r\nSec-WebSocket-Protocol: chat\r\n" in response


async def test_another_version_of_the_protocol_is_refused_with_ours(
    connection: RawTcp,
) -> None:
    """RFC 6455 section 4.2.2."""
    await connection.send(ASK.replace(b"Version: 13", b"Version: 8"))

    response = await connection.receive_until(b"\r\n\r\n")

    assert response.startswith(b"HTTP/1.1 426 ")
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in response


async def test_a_closing_websocket_reads_until_the_client_replies(
    server: RunningServer, connection: RawTcp
) -> None:
    """RFC 6455 section 7: closing with unread input would reset the connection."""
    await connection.send(ASK + connect_frame())
    await connection.receive_until(b"bridge:sync")

    server.io.kick("alice")
    await connection.send_frame(b"42" + b"x" * 200_000)  # over the limit, discarded
    for _ in range(1000):
        await connection.send_frame(b'42["still writing"]')
    await connection.send_frame(b"", opcode=8)

    last_words = bytearray()
    while chunk := await connection.receive():  # raises an error after a reset
        last_words += chunk
    assert b'"kicked"' in last_words
    assert last_words.endswith(b"\x88\x00")


async def test_a_client_that_sends_too_much_gets_the_close_code(
    server: RunningServer, connection: RawTcp
) -> None:
    """A reset while it is still writing would hide the reason."""
    await connection.send(ASK + connect_frame())
    await connection.receive_until(b"bridge:sync")

    await connection.send_frame(b"4" * 5_000_000)

    assert await connection.receive() == b"\x88\x02\x03\xf1"
    assert not server.windows("alice")
    await connection.send_frame(b"\x03\xf1", opcode=8)
    assert await connection.receive() == b""


async def test_a_client_that_never_replies_is_aborted_at_the_deadline(
    server: RunningServer, connection: RawTcp
) -> None:
    """It could keep its connection open forever with a byte now and then."""
    await connection.send(ASK + connect_frame())
    await connection.receive_until(b"bridge:sync")

    server.io.kick("alice")

    async def write_forever() -> None:
        while True:
            await connection.send_frame(b"3" * 1000)

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(write_forever(), LIMIT_S)
    await eventually(lambda: server.connection_count == 0)


async def test_an_upgrade_that_never_finishes_fails_at_its_deadline() -> None:
    """The session continues to poll."""
    async with open_server(Plan(connect_s=0.3)) as server, raw_poller(server) as page:
        await page.join("alice")
        async with raw_tcp(server) as connection:
            await connection.send(
                f"GET {URL(page.url).raw_path_qs.replace('polling', 'websocket')}"
                " HTTP/1.1\r\n".encode()
                + HEADERS
            )
            await connection.receive_until(b"\r\n\r\n")
            assert not server.sessions()[0].can_upgrade
            assert await connection.read_to_end() == b"\x88\x00"
        assert server.sessions()[0].can_upgrade
        await server.store("alice", 1)
        assert '42["message",1' in (await page.poll_until('42["message"'))[-1]


async def test_a_session_closed_during_its_upgrade_closes_the_websocket_after_it(
    server: RunningServer,
) -> None:
    """
    Not earlier: the stock client has paused its polling and reads nothing then.

    It would notice only when a ping is missing, most of a minute later.
    """
    async with raw_poller(server) as page:
        await page.join("alice")
        async with raw_window(server, sid=page.sid) as upgrade:
            await upgrade.send("2probe")
            assert await upgrade.receive() == "3probe"
            server.cut("alice")
            assert not server.windows("alice")

            await upgrade.send("5")

            packets, _ = await upgrade.ended()
            assert packets == []


async def test_a_handshake_over_a_limit_is_refused_by_http() -> None:
    """A refused client gets the same response as any other."""
    async with (
        open_server(Plan(windows_per_address=1)) as server,
        raw_tcp(server) as first,
        raw_tcp(server) as second,
    ):
        await first.send(ASK)
        assert (await first.receive()).startswith(b"HTTP/1.1 101 ")
        await second.send(ASK)
        assert (await second.receive()).startswith(b"HTTP/1.1 429 ")


async def test_input_is_bounded_while_a_client_repeats_its_connect() -> None:
    """
    Each CONNECT takes a while, and a client may send a hundred before it is verified.

    If the bridge read from the connection after each, most bytes would pile up.
    """
    ask = b"40" + json.dumps({"token": "x" * 15_000}).encode()
    frame = b"\x81\xfe" + len(ask).to_bytes(2, "big") + bytes(4) + ask
    async with (
        open_server(Plan(events_per_second=50)) as server,
        raw_tcp(server) as connection,
    ):
        await connection.send(ASK)
        await connection.receive_until(b"maxPayload")
        (session,) = server.sessions()
        websocket = session._websocket
        assert websocket is not None

        async def push() -> None:
            with suppress(ConnectionError):
                while True:
                    await connection.send(frame * 64)

        pushing = asyncio.create_task(push())
        most = 0
        while not session.is_closed:  # for flooding, eventually
            most = max(most, len(websocket._frames._buffer))
            await asyncio.sleep(0)
        await pushing

    assert most < 2_000_000
