"""Packets that a window may not send: they are ignored and counted, or close the session."""

import asyncio
import json
import string
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import eventually
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.raw_pages import (
    RawWindow,
    raw_poller,
    raw_tcp,
    raw_window,
)
from tests.integration.sockets.running_server import Plan, RunningServer, open_server
from tests.integration.sockets.test_messages import TRANSPORTS, options
from tests.tokens import token


async def still_serves(
    server: RunningServer, window: RawWindow, *, user: str = "alice"
) -> None:
    """Assert that `window` receives a new message."""
    await server.store(user, "still here")
    await window.receive_until('42["message","still here"')


@pytest.mark.parametrize(
    "packet",
    [
        '42["nonsense",1]',
        '42["bridge:sync",{}]',
        '42["message","to everybody"]',
        '42["join",{"username":"bob"}]',
        '42["connect"]',
        '42["disconnect"]',
        '42["",1]',
        '42["\\ud800","cut \\ud83d"]',
        '42["ack","\\ud83d"]',
        '42["bridge:refresh","\\ud83d"]',
        '42["join",{"username":"\\ud83d"}]',
        '42["ack"]',
        '42["bridge:refresh"]',
        '421["enter_room","user:bob"]',
        "431[]",
        '43/other,1["x"]',
        '42/other,["ack","a-1"]',
        "41/other,",
        "3",
        "3probe",
        "0{}",
        "5",
        "6",
        '421["too long to be a number of JavaScript"]'.replace("1", "1" * 20),
    ],
)
async def test_unknown_events_are_ignored_and_the_window_stays(
    server: RunningServer, packet: str
) -> None:
    """Client libraries and attackers send all sorts of events."""
    async with raw_window(server) as window, raw_window(server) as bob:
        await bob.join("bob")
        await bob.synced()
        await window.join("alice")
        await window.synced()

        await window.send(packet)

        await still_serves(server, window)
        assert len(server.windows("alice")) == 1
        await still_serves(server, bob, user="bob")


@pytest.mark.parametrize(
    "packet",
    [
        "",
        "2",
        "7",
        "9nonsense",
        "x",
        "4",
        "4x",
        "49",
        "44{}",
        "42",
        "42{}",
        "42[]",
        "42[1]",
        '42["a"',
        "42" + "[" * 5000,
        "42\x00",
        "40{",
        "40[" * 100,
        '459999999999-["binary"]',
        '461-1["binary ack"]',
        '45["binary"]',
        "bAAAA",
    ],
    ids=lambda packet: ascii(packet[:20]),
)
async def test_invalid_packets_close_only_their_own_session(
    server: RunningServer, packet: str
) -> None:
    """No client sends them. Binary packets are the most dangerous: attachments are unlimited."""
    async with raw_window(server) as window, raw_window(server) as neighbour:
        await neighbour.join("alice")
        await neighbour.synced()
        await window.join("alice")
        await window.synced()

        await window.send(packet)

        await window.ended()
        await eventually(lambda: len(server.windows("alice")) == 1)
        await still_serves(server, neighbour)
    assert server.count("events_ignored_total") >= 1


@pytest.mark.parametrize("packet", [b"\x04", "451-[1]", "b4AAAA"])
async def test_a_window_that_sends_binary_data_gets_a_notice_and_is_closed(
    server: RunningServer, packet: bytes | str
) -> None:
    """Attachments would have to be buffered until all of them are there."""
    async with raw_window(server) as window:
        await window.join("alice")
        await window.synced()
        if isinstance(packet, bytes):
            await window.websocket.send_bytes(packet)
        else:
            await window.send(packet)
        packets, _ = await window.ended()

    (notice,) = packets
    assert json.loads(notice[2:])[1]["code"] == "binary_not_supported"
    assert not server.windows("alice")
    assert server.count("events_ignored_total") == 1


@TRANSPORTS
async def test_a_page_that_emits_binary_data_is_notified_and_recovers(
    server: RunningServer, pages: Pages, transport: str
) -> None:
    """As by mistake, with a Blob: the developer sees why."""
    await pages.connected("page", server.url, **options("alice", transport))

    pages.command("send", "page", "upload", {"bytes": [1, 2, 3]}, {"bytes": [4]})

    again = await pages.until("page", "connect", count=2)
    assert again[0]["recovered"] is True
    (notice,) = pages.data("page", "bridge:closing")
    assert (notice["code"], notice["reconnect"]) == ("binary_not_supported", True)


@TRANSPORTS
async def test_a_client_with_the_msgpack_parser_is_refused_once(
    server: RunningServer, pages: Pages, transport: str
) -> None:
    """It sends binary data only, and would reconnect forever without an answer."""
    pages.open("page", server.url, parser="msgpack", **options("alice", transport))

    (error,) = await pages.until("page", "connect_error")

    assert error["data"] == {"code": "binary_not_supported", "temporary": False}
    assert "msgpack" in error["message"]
    await eventually(lambda: not server.sessions())
    assert server.count("windows_refused_total", code="binary_not_supported") == 1


async def test_a_frame_over_the_limit_is_refused_with_close_code_1009() -> None:
    """Before it is buffered. The limit applies to a frame and to a fragmented message."""
    async with open_server(Plan(max_event_bytes=1000)) as server:
        async with raw_window(server) as window:
            await window.join("alice")
            await window.synced()
            await window.emit("nonsense", "x" * 900)
            await still_serves(server, window)
            await window.emit("nonsense", "x" * 1000)
            _, code = await window.ended()
            assert code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
        async with raw_tcp(server) as connection:
            await connection.open_websocket()
            connect = "40" + json.dumps({"token": token()})  # which may be longer
            await connection.send_frame(connect.encode())
            await connection.receive_until(b"bridge:sync")
            await connection.send_frame(b'42["' + b"x" * 600, flags=0)
            await connection.send_frame(b"x" * 600, opcode=0, flags=0)
            assert b"\x03\xf1" in await connection.read_to_end()  # 1009
        await eventually(lambda: not server.sessions())


async def test_compression_is_not_negotiated(server: RunningServer) -> None:
    """It costs 115 kB per connection and allows decompression bombs."""
    async with raw_window(server) as window:  # aiohttp's client offers it: compress=15
        assert window.websocket.compress == 0
    async with raw_tcp(server) as connection:
        await connection.open_websocket(
            headers="Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
        )
        await connection.send_frame(b"\x00" * 100, flags=0xC0)  # RSV1: compressed
        assert b"\x03\xea" in await connection.read_to_end()  # 1002, protocol error


async def test_a_second_connect_is_refused_and_the_window_stays(
    server: RunningServer,
) -> None:
    """A session is one window; a second window would duplicate every message."""
    async with raw_window(server) as window:
        await window.join("alice")
        await window.synced()

        answer = await window.connect(token=token(sub="bob"))

        assert answer.startswith("44")
        assert '"bad_request"' in answer
        assert not server.windows("bob")
        await still_serves(server, window)
        assert len(server.windows("alice")) == 1


@pytest.mark.parametrize("auth", ["[]", '""', "false", "[1]", '"token"', "true"])
async def test_auth_that_is_not_an_object_is_refused_with_a_code(
    server: RunningServer, auth: str
) -> None:
    """Empty values too: they are a mistake of the page, not a missing `auth`."""
    headers = {"Authorization": f"Bearer {token()}"}
    async with raw_window(server, headers=headers) as window:
        await window.send(f"40{auth}")

        answer = await window.receive()
        assert answer.startswith("44")
        assert '"bad_request"' in answer


@pytest.mark.parametrize("namespace", ["/other", "/admin", "/\u2028", "/a?token=x"])
async def test_other_namespaces_are_refused(
    server: RunningServer, namespace: str
) -> None:
    """Only `/` is served; a token in the query of a namespace is ignored."""
    async with raw_window(server) as window:
        await window.send(f"40{namespace},{json.dumps({'token': token()})}")
        answer = await window.receive()

        assert answer.startswith(f"44{namespace.partition('?')[0]},")
        assert '"bad_request"' in answer
        assert not len(server.io.rooms)
        await window.join("alice")


async def test_events_before_connect_are_ignored(server: RunningServer) -> None:
    """A client that is not authenticated may request nothing."""
    async with raw_window(server) as window:
        for event in ("join", "ack", "bridge:refresh", "nonsense"):
            await window.emit(event, {"username": "alice"}, packet_id=1)
        answer = await window.connect(token=token())
        assert answer.startswith("40")  # no reply came before it
    assert server.count("events_ignored_total") == 4


@pytest.mark.parametrize("user", ["alice", None])
async def test_a_session_that_never_connects_is_closed_at_the_deadline(
    server: RunningServer, user: str | None
) -> None:
    """Answering pings is not enough. A connected window may stay."""
    async with raw_window(server) as window, raw_poller(server) as poller:
        if user:
            await window.join(user)
            await poller.join(user)
        server.tick(later_s=9)
        assert len(server.sessions()) == 2

        server.tick(later_s=11)

        assert sum(not session.is_closed for session in server.sessions()) == (
            2 if user else 0
        )
        if not user:
            await window.ended()


async def test_a_refused_connect_does_not_stop_the_deadline(
    server: RunningServer,
) -> None:
    """A client can guess tokens for 10 s at most."""
    async with raw_window(server) as window:
        assert (await window.connect(token="x")).startswith("44")
        server.tick(later_s=11)
        await window.ended()


# --- fuzz

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["token", "pid", "offset", "acks", "position"]) | st.text(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


PACKETS = (
    st.text(max_size=40)
    | st.text(alphabet='0123456789-/,?[]{}"' + string.ascii_lowercase, max_size=40).map(
        lambda text: "4" + text
    )
    | ANYTHING.map(lambda value: "40" + json.dumps(value))
    | st.tuples(
        st.sampled_from(["ack", "join", "bridge:refresh", "message", ""]),
        st.lists(ANYTHING, max_size=3),
    ).map(lambda event: "427" + json.dumps([event[0], *event[1]]))
    | st.binary(max_size=40)
)


def test_arbitrary_input_does_not_affect_other_windows() -> None:
    """Arbitrary frames, before and after CONNECT. The log fixture fails on any exception."""

    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.lists(st.tuples(st.booleans(), st.lists(PACKETS, max_size=6)), max_size=4)
    )
    def attack(sessions: list[tuple[bool, list[str | bytes]]]) -> None:
        asyncio.run(attack_once(sessions))

    attack()


async def attack_once(sessions: list[tuple[bool, list[str | bytes]]]) -> None:
    """Send the packets of `sessions` while a window of alice is connected."""
    async with open_server() as server, raw_window(server) as alice:
        await alice.join("alice")
        await alice.synced()
        for number, (joins, packets) in enumerate(sessions):
            async with raw_window(server) as stranger:
                if joins:
                    await stranger.join("mallory")
                await send_all(stranger, packets)
            await server.store("alice", number)
        for number in range(len(sessions)):
            packet = await alice.receive()
            assert json.loads(packet[2:])[:2] == ["message", number]
        assert len(server.windows("alice")) == 1


async def send_all(window: RawWindow, packets: list[Any]) -> None:
    """Send until the server closes the connection."""
    try:
        for packet in packets:
            if isinstance(packet, bytes):
                await window.websocket.send_bytes(packet)
            else:
                await window.send(packet)
    except (aiohttp.ClientConnectionResetError, UnicodeEncodeError):
        pass
