"""On the way in: what comes first on the wire, and what happens when something fails."""

import asyncio
import gzip
import json
import resource

import aiohttp
import pytest

from bridge.core.identity import Identity
from bridge.errors import KeysUnavailableError
from tests.conftest import eventually
from tests.integration.sockets.conftest import Log
from tests.integration.sockets.listeners import Door, Plan, open_door
from tests.integration.sockets.raw_pages import raw_poller, raw_window
from tests.tokens import token


class Desk:
    """A verifier that does as it is told."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def verify(self, token: str) -> Identity:
        """Say that the token is its own user, when it may."""
        await self.may_answer.wait()
        if self.failure is not None:
            raise self.failure
        return Identity(token, 10**10)


def put(door: Door, desk: Desk) -> None:
    """Let `desk` check the tokens of `door`."""
    door.server._entrance._verifier = desk
    door.server._requests._verifier = desk


async def test_the_connect_reply_comes_before_any_event(door: Door) -> None:
    """The stock client drops events that come before it (1.2, row 19)."""
    await door.store("alice", 1, 2)
    async with raw_window(door) as window:
        await window.send("40" + json.dumps({"token": token()}))
        packets = await window.receive_until('42["bridge:sync"')

    assert [packet[:13] for packet in packets] == [
        packets[0][:13],
        '42["message",',
        '42["message",',
        '42["bridge:sy',
    ]
    reply = json.loads(packets[0].removeprefix("40"))
    assert set(reply) == {"sid", "pid"}


async def test_messages_answers_and_pings_stay_in_the_order_they_were_sent(
    door: Door,
) -> None:
    """Frames that are written directly and packets of the protocol share one line."""
    async with raw_window(door) as window:
        await window.join("alice", acks="manual")
        await window.synced()
        expected = []
        for number in range(20):
            await door.store("alice", number)
            expected.append(f'42["message",{number}')
            await window.emit("ack", "x", packet_id=number)
            count = door.count("events_ignored_total")
            await window.send('42["nothing"]')
            await eventually(
                lambda count=count: door.count("events_ignored_total") > count  # type: ignore[misc] # mypy does not see through the default
            )
            expected.append(f"43{number}[")
            (carrier,) = door.carriers()
            carrier.pong_due_s = None
            carrier.ping_due_s = 0
            door.tick()
            expected.append("2")
        got = [await window.receive() for _ in expected]

    assert all(
        packet.startswith(begin) for packet, begin in zip(got, expected, strict=True)
    )


async def test_an_unexpected_failure_on_the_way_in_leaves_nothing_in_a_room(
    door: Door, log: Log
) -> None:
    """With the library alone the page stays, half open, in its rooms (1.2, row 2)."""
    log.may_hold_faults = True  # a bug has a traceback, once
    put(door, Desk(ValueError("a bug")))
    async with raw_window(door) as window:
        await window.send("40" + json.dumps({"token": "alice"}))
        with pytest.raises((TypeError, aiohttp.WSMessageTypeError)):
            await window.receive()

    assert not len(door.server.rooms)
    assert not list(door.server.rooms.users)
    await eventually(lambda: not door.carriers())
    faults = [line for line in log.lines if "exception" in line]
    assert [line["event"] for line in faults] == ["window.request_failed"]


async def test_keys_that_cannot_be_had_are_a_temporary_refusal(door: Door) -> None:
    """At the door and at a refresh, whose window stays."""
    desk = Desk()
    put(door, desk)
    async with raw_window(door) as refused, raw_window(door) as window:
        assert (await window.connect(token="alice")).startswith("40")
        await window.synced()
        desk.failure = KeysUnavailableError("no route")
        answer = await refused.connect(token="alice")
        await window.emit("bridge:refresh", "alice", packet_id=1)

        assert '"keys_unavailable"' in answer
        assert '"temporary":true' in answer
        assert (await window.answer(1))["code"] == "keys_unavailable"
        assert len(door.windows("alice")) == 1


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_a_page_that_leaves_while_its_token_is_checked_joins_nothing(
    door: Door, transport: str
) -> None:
    """The keys may take seconds to come; the page need not wait."""
    desk = Desk()
    desk.may_answer.clear()
    put(door, desk)
    connect = "40" + json.dumps({"token": "alice"})
    if transport == "websocket":
        async with raw_window(door) as window:
            await window.send(connect)
            await asyncio.sleep(0)
            (carrier,) = door.carriers()
            carrier.end("gone", abort=True)
    else:
        async with raw_poller(door) as page:
            posting = asyncio.create_task(page.post(connect))
            (carrier,) = door.carriers()
            await eventually(lambda: carrier._is_posting)
            carrier.end("gone")
            desk.may_answer.set()
            assert await posting in {200, 400}
    desk.may_answer.set()
    await eventually(lambda: door.connection_count == 0)

    assert not len(door.server.rooms)
    assert not list(door.server.rooms.users)
    assert all(carrier.closed for carrier in door.carriers())
    assert not door.inbox._followed


async def test_a_session_that_connects_on_both_transports_is_one_window(
    door: Door,
) -> None:
    """CONNECT by a POST that takes its time, and again by the websocket."""
    desk = Desk()
    desk.may_answer.clear()
    put(door, desk)
    connect = "40" + json.dumps({"token": "alice"})
    async with raw_poller(door) as page:
        posting = asyncio.create_task(page.post(connect))
        (carrier,) = door.carriers()
        await eventually(lambda: carrier._is_posting)
        async with raw_window(door, sid=page.sid) as window:
            await window.send("2probe")
            await window.receive()
            await window.send("5")
            await window.send(connect)
            await eventually(lambda: carrier.transport_name == "websocket")
            desk.may_answer.set()
            await posting
            packets = await window.receive_until("44")
            assert any(packet.startswith("40") for packet in packets)
            assert '"bad_request"' in packets[-1]
            assert len(door.windows("alice")) == 1
    await eventually(lambda: not len(door.server.rooms))
    assert not list(door.server.rooms.users)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_body_is_no_bomb(encoding: str) -> None:
    """Aiohttp unpacks request bodies by itself; the bound is for what comes out."""
    bomb = gzip.compress(bytes(200_000_000), 9)
    if encoding == "deflate":
        bomb = bomb[10:-8]
    async with open_door(Plan(max_event_bytes=1_000_000)) as door:
        async with raw_poller(door) as page:
            await page.join("alice")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            async with page.http.post(
                page.url, data=bomb, headers={"Content-Encoding": encoding}
            ) as response:
                assert response.status == 400
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert not door.windows("alice")
    assert after - before < 50_000  # kB


ODD_HEADERS = [
    {"Cookie": "a=b; =; ;;; \\x01=\\x02; bridge_token"},
    {"Cookie": "bridge_token=" + "x" * 5000},
    {"Cookie": 'bridge_token="quoted; still"; $Version=1'},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer \u00e9\u00ff"},
    {"Authorization": "Digest x" + "y" * 3000},
    {"Origin": "http://[::1"},
    {"Origin": "http://a:99999999"},
    {"Origin": "javascript://%0aalert(1)"},
    {"Host": "a b"},
    {"Host": ":80", "Origin": "http://:80"},
    {"Host": "[", "Origin": "http://["},
    {"X-Forwarded-For": ", ,, ::::, 1.2.3.4"},
    {"X-Forwarded-Proto": "javascript"},
    {"Sec-Fetch-Site": "\u00ff"},
    {"Upgrade": "h2c"},
    {"Expect": "200-ok"},
    {"Content-Type": "text/plain; charset=nonsense"},
]


@pytest.mark.parametrize("headers", ODD_HEADERS, ids=ascii)
@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_odd_headers_are_answered_or_refused_and_never_a_fault(
    door: Door, headers: dict[str, str], transport: str
) -> None:
    """Old browsers, broken proxies, and people who try things out."""
    async with aiohttp.ClientSession() as http:
        url = door.socket_url(transport=transport)
        if transport == "websocket":
            try:
                async with http.ws_connect(url, headers=headers) as websocket:
                    await websocket.receive_str()
                    await websocket.send_str("40")
                    await websocket.receive_str()
            except (aiohttp.ClientError, TypeError):
                pass
        else:
            async with http.get(url, headers=headers) as response:
                assert response.status < 500
    assert not len(door.server.rooms)
