"""What a window may send and what becomes of the rest: ignored and counted, or closed."""

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
from tests.integration.sockets.listeners import Door, Plan, open_door
from tests.integration.sockets.raw_pages import (
    RawWindow,
    raw_poller,
    raw_tcp,
    raw_window,
)
from tests.integration.sockets.test_messages import options
from tests.tokens import token


async def still_serves(door: Door, window: RawWindow, *, user: str = "alice") -> None:
    """Show that `window` gets what is stored now."""
    await door.store(user, "still here")
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
        '42["ack"]',
        '42["bridge:refresh"]',
        '421["enter_room","user:bob"]',
        "431[]",
        '43/other,1["x"]',
        '42/other,["ack","a-1"]',
        "41/other,",
        "3",
        "3probe",
    ],
)
async def test_events_that_mean_nothing_are_ignored_and_the_window_stays(
    door: Door, packet: str
) -> None:
    """Client libraries and curious people send all sorts of things."""
    async with raw_window(door) as window, raw_window(door) as bob:
        await bob.join("bob")
        await bob.synced()
        await window.join("alice")
        await window.synced()

        await window.send(packet)

        await still_serves(door, window)
        assert len(door.windows("alice")) == 1
        await still_serves(door, bob, user="bob")


@pytest.mark.parametrize(
    "packet",
    [
        "",
        "0{}",
        "2",
        "5",
        "6",
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
        '42["\\ud800"]',
        "42\x00",
        "40{",
        "40[" * 100,
        '451-["binary",{"_placeholder":true,"num":0}]',
        '459999999999-["binary"]',
        '461-1["binary ack"]',
        '45["binary"]',
        "b4AAAA",
    ],
    ids=lambda packet: ascii(packet[:20]),
)
async def test_packets_that_make_no_sense_end_the_session_and_no_other(
    door: Door, packet: str
) -> None:
    """Whoever sends them is no client; binary announcements above all (1.2, row 4)."""
    async with raw_window(door) as window, raw_window(door) as neighbour:
        await neighbour.join("alice")
        await neighbour.synced()
        await window.join("alice")
        await window.synced()

        await window.send(packet)

        await window.ended()
        await eventually(lambda: len(door.windows("alice")) == 1)
        await still_serves(door, neighbour)
    assert door.count("events_ignored_total") >= 1


async def test_a_binary_frame_is_ignored_and_not_kept(door: Door) -> None:
    """Attachments are what binary frames are for, and there are none."""
    async with raw_window(door) as window:
        await window.join("alice")
        await window.synced()
        for _ in range(50):
            await window.websocket.send_bytes(b"\x04" * 16_000)

        await still_serves(door, window)
    assert door.count("events_ignored_total") == 50


async def test_the_official_client_cannot_make_the_bridge_collect_binary(
    door: Door, pages: Pages
) -> None:
    """A page that emits a Blob by mistake is closed; it comes back and recovers."""
    await pages.connected("page", door.url, **options("alice", "websocket"))

    pages.command("send", "page", "upload", {"bytes": [1, 2, 3]}, {"bytes": [4]})

    again = await pages.until("page", "connect", count=2)
    assert again[0]["recovered"] is True


async def test_a_frame_over_the_bound_is_refused_with_the_websockets_own_code() -> None:
    """1009, before it is kept: the bound holds for a frame and for its pieces."""
    async with open_door(Plan(max_event_bytes=1000)) as door:
        async with raw_window(door) as window:
            await window.join("alice")
            await window.synced()
            await window.emit("nonsense", "x" * 900)
            await still_serves(door, window)
            await window.emit("nonsense", "x" * 1000)
            _, code = await window.ended()
            assert code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
        async with raw_tcp(door) as connection:
            await connection.open_websocket()
            await connection.send_frame(b'42["' + b"x" * 600, flags=0)
            await connection.send_frame(b"x" * 600, opcode=0, flags=0)
            assert b"\x03\xf1" in await connection.read_to_end()  # 1009
        await eventually(lambda: not door.sessions())


async def test_compression_is_offered_in_vain(door: Door) -> None:
    """It costs 115 kB a connection (1.2, row 17), and bombs are made of it."""
    async with raw_window(door) as window:  # aiohttp's client offers it: compress=15
        assert window.websocket.compress == 0
    async with raw_tcp(door) as connection:
        await connection.open_websocket(
            headers="Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
        )
        await connection.send_frame(b"\x00" * 100, flags=0xC0)  # RSV1: compressed
        assert b"\x03\xea" in await connection.read_to_end()  # 1002, protocol error


async def test_a_second_connect_is_refused_and_the_window_stays(door: Door) -> None:
    """One connection is one window; a second one would double every message."""
    async with raw_window(door) as window:
        await window.join("alice")
        await window.synced()

        answer = await window.connect(token=token(sub="bob"))

        assert answer.startswith("44")
        assert '"bad_request"' in answer
        assert not door.windows("bob")
        await still_serves(door, window)
        assert len(door.windows("alice")) == 1


@pytest.mark.parametrize("namespace", ["/other", "/admin", "/\u2028", "/a?token=x"])
async def test_other_namespaces_are_refused_and_join_nothing(
    door: Door, namespace: str
) -> None:
    """Only `/` is served; a token in its query counts for nothing."""
    async with raw_window(door) as window:
        await window.send(f"40{namespace},{json.dumps({'token': token()})}")
        answer = await window.receive()

        assert answer.startswith(f"44{namespace.partition('?')[0]},")
        assert '"bad_request"' in answer
        assert not len(door.server.rooms)
        await window.join("alice")


async def test_events_before_connect_do_nothing(door: Door) -> None:
    """Whoever has not said who it is has nothing to ask for."""
    async with raw_window(door) as window:
        for event in ("join", "ack", "bridge:refresh", "nonsense"):
            await window.emit(event, {"username": "alice"}, packet_id=1)
        answer = await window.connect(token=token())
        assert answer.startswith("40")  # and no answer came before it
    assert door.count("events_ignored_total") == 4


@pytest.mark.parametrize("user", ["alice", None])
async def test_a_session_that_never_connects_is_cut_at_its_deadline(
    door: Door, user: str | None
) -> None:
    """Answering pings is not enough (1.2, row 6); a window may stay."""
    async with raw_window(door) as window, raw_poller(door) as poller:
        if user:
            await window.join(user)
            await poller.join(user)
        door.tick(later_s=9)
        assert len(door.sessions()) == 2

        door.tick(later_s=11)

        assert sum(not session.is_closed for session in door.sessions()) == (
            2 if user else 0
        )
        if not user:
            await window.ended()


async def test_a_refused_connect_does_not_stop_the_deadline(door: Door) -> None:
    """Guessing tokens goes on for 10 s at most."""
    async with raw_window(door) as window:
        assert (await window.connect(token="x")).startswith("44")
        door.tick(later_s=11)
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


def test_whatever_strangers_send_the_bridge_stays_and_others_get_their_messages() -> (
    None
):
    """Arbitrary frames, before and after CONNECT; no exception is logged (the fixture)."""

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
    """Let strangers send `sessions` while a window of alice listens."""
    async with open_door() as door, raw_window(door) as alice:
        await alice.join("alice")
        await alice.synced()
        for number, (joins, packets) in enumerate(sessions):
            async with raw_window(door) as stranger:
                if joins:
                    await stranger.join("mallory")
                await send_all(stranger, packets)
            await door.store("alice", number)
        for number in range(len(sessions)):
            packet = await alice.receive()
            assert json.loads(packet[2:])[:2] == ["message", number]
        assert len(door.windows("alice")) == 1


async def send_all(window: RawWindow, packets: list[Any]) -> None:
    """Send until the other side has had enough."""
    try:
        for packet in packets:
            if isinstance(packet, bytes):
                await window.websocket.send_bytes(packet)
            else:
                await window.send(packet)
    except (aiohttp.ClientConnectionResetError, UnicodeEncodeError):
        pass
