"""Admission: the order of the first packets, and failures while a client connects."""

import asyncio
import gzip
import json
import resource

import aiohttp
import pytest

from bridge.auth.jwt import TokenRules, TokenVerifier
from bridge.core.identity import Identity
from bridge.errors import KeysUnavailableError
from tests.conftest import eventually
from tests.integration.sockets.conftest import Log
from tests.integration.sockets.raw_pages import raw_poller, raw_window
from tests.integration.sockets.running_server import Plan, RunningServer, open_server
from tests.integration.sockets.security import http_session
from tests.tokens import SECRET, token


class FakeVerifier(TokenVerifier):
    """Accepts any token as its own user, or fails, when it may answer."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__(TokenRules(algorithms=("HS256",), secrets=(SECRET,)))
        self.failure = failure
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def verify(self, token: object) -> Identity:
        """Wait until it may answer; return the token as the user or raise `failure`."""
        await self.may_answer.wait()
        if self.failure is not None:
            raise self.failure
        return Identity(str(token), 10**10)


async def test_the_connect_reply_comes_before_any_event(server: RunningServer) -> None:
    """The stock client drops events that arrive before the reply."""
    await server.store("alice", 1, 2)
    async with raw_window(server) as window:
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


async def test_messages_replies_and_pings_arrive_in_the_order_they_were_sent(
    server: RunningServer,
) -> None:
    """Frames that rooms write directly and packets of the session share one connection."""
    async with raw_window(server) as window:
        await window.join("alice", acks="manual")
        await window.synced()
        expected = []
        for number in range(20):
            await server.store("alice", number)
            expected.append(f'42["message",{number}')
            await window.emit("ack", "x", packet_id=number)
            count = server.count("events_ignored_total")
            await window.send('42["nothing"]')
            await eventually(
                lambda count=count: server.count("events_ignored_total") > count  # type: ignore[misc] # mypy does not see through the default
            )
            expected.append(f"43{number}[")
            (session,) = server.sessions()
            session.pong_due_s = None
            session.ping_due_s = 0
            server.tick()
            expected.append("2")
        got = [await window.receive() for _ in expected]

    assert all(
        packet.startswith(begin) for packet, begin in zip(got, expected, strict=True)
    )


async def test_an_unexpected_failure_while_connecting_leaves_nothing_in_a_room(
    log: Log,
) -> None:
    """With python-socketio the client would stay in its rooms, half open."""
    log.may_hold_errors = True  # a bug is logged once, with a traceback
    async with open_server(verifier=FakeVerifier(ValueError("a bug"))) as server:
        async with raw_window(server) as window:
            await window.send("40" + json.dumps({"token": "alice"}))
            with pytest.raises((TypeError, aiohttp.WSMessageTypeError)):
                await window.receive()

        assert not len(server.io.rooms)
        assert not server.io.rooms.user_count
        await eventually(lambda: not server.sessions())
    faults = [line for line in log.lines if "exception" in line]
    assert [line["event"] for line in faults] == ["window.request_failed"]


async def test_unavailable_keys_are_a_temporary_refusal() -> None:
    """At a connect, and at a refresh, whose window stays connected."""
    verifier = FakeVerifier()
    async with (
        open_server(verifier=verifier) as server,
        raw_window(server) as refused,
        raw_window(server) as window,
    ):
        assert (await window.connect(token="alice")).startswith("40")
        await window.synced()
        verifier.failure = KeysUnavailableError("no route")
        answer = await refused.connect(token="alice")
        await window.emit("bridge:refresh", "alice", packet_id=1)

        assert '"keys_unavailable"' in answer
        assert '"temporary":true' in answer
        assert (await window.answer(1))["code"] == "keys_unavailable"
        assert len(server.windows("alice")) == 1


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_a_client_that_leaves_while_its_token_is_verified_joins_no_room(
    transport: str,
) -> None:
    """Fetching the keys may take seconds; the client need not wait."""
    verifier = FakeVerifier()
    verifier.may_answer.clear()
    connect = "40" + json.dumps({"token": "alice"})
    async with open_server(verifier=verifier) as server:
        if transport == "websocket":
            async with raw_window(server) as window:
                await window.send(connect)
                await asyncio.sleep(0)
                (session,) = server.sessions()
                session.close("gone", abort=True)
        else:
            async with raw_poller(server) as page:
                posting = asyncio.create_task(page.post(connect))
                (session,) = server.sessions()
                await eventually(lambda: session._is_posting)
                session.close("gone")
                verifier.may_answer.set()
                assert await posting in {200, 400}
        verifier.may_answer.set()
        await eventually(lambda: server.connection_count == 0)

        assert not len(server.io.rooms)
        assert not server.io.rooms.user_count
        assert all(session.is_closed for session in server.sessions())
        assert not server.inbox._followed


async def test_a_session_that_connects_on_both_transports_is_one_window() -> None:
    """CONNECT by a POST that is not finished yet, and again by the WebSocket."""
    verifier = FakeVerifier()
    verifier.may_answer.clear()
    connect = "40" + json.dumps({"token": "alice"})
    async with open_server(verifier=verifier) as server:
        async with raw_poller(server) as page:
            posting = asyncio.create_task(page.post(connect))
            (session,) = server.sessions()
            await eventually(lambda: session._is_posting)
            async with raw_window(server, sid=page.sid) as window:
                await window.send("2probe")
                await window.receive()
                await window.send("5")
                await window.send(connect)
                await eventually(lambda: session.transport_name == "websocket")
                verifier.may_answer.set()
                await posting
                packets = await window.receive_until("44")
                assert any(packet.startswith("40") for packet in packets)
                assert '"bad_request"' in packets[-1]
                assert len(server.windows("alice")) == 1
        await eventually(lambda: not len(server.io.rooms))
        assert not server.io.rooms.user_count


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_the_limit_of_a_body_applies_after_decompression(encoding: str) -> None:
    """Aiohttp decompresses request bodies automatically."""
    bomb = gzip.compress(bytes(200_000_000), 9)
    if encoding == "deflate":
        bomb = bomb[10:-8]
    async with open_server(Plan(max_event_bytes=1_000_000)) as server:
        async with raw_poller(server) as page:
            await page.join("alice")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            async with page.http.post(
                page.url, data=bomb, headers={"Content-Encoding": encoding}
            ) as response:
                assert response.status == 413
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert not server.windows("alice")
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
async def test_odd_headers_are_accepted_or_refused_without_an_error(
    server: RunningServer, headers: dict[str, str], transport: str
) -> None:
    """Old browsers, broken proxies and attackers send such headers."""
    async with http_session() as http:
        url = server.socket_url(transport=transport)
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
    assert not len(server.io.rooms)
