"""
Cases of the two protocols, for any server: engine.io 4 and socket.io 5.

Each case is a function that talks to a server and returns what it saw. Its decorator says
what the protocol documents, or Node's server where they say nothing, want to see.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from yarl import URL

from tests.integration.sockets.raw_pages import LIMIT_S, SEPARATOR
from tests.tokens import token

Case = Callable[["Peer"], Awaitable[object]]

CLOSED = "closed"
OPEN = "open"


@dataclass(frozen=True)
class ProtocolCase:
    """What to do, and what to see."""

    run: Case
    expected: object
    has_fast_pings: bool


CASES: dict[str, ProtocolCase] = {}


def case(expected: object, *, has_fast_pings: bool = False) -> Callable[[Case], Case]:
    """Add a case; `has_fast_pings` runs it on a server that pings each second."""

    def add(run: Case) -> Case:
        CASES[run.__name__] = ProtocolCase(run, expected, has_fast_pings)
        return run

    return add


class Socket:
    """A WebSocket of a session."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self.websocket = websocket

    async def send(self, *packets: str | bytes) -> None:
        """Send packets."""
        for packet in packets:
            if isinstance(packet, bytes):
                await self.websocket.send_bytes(packet)
            else:
                await self.websocket.send_str(packet)

    async def receive(self, *, skip: str = "2") -> str:
        """Return the next packet but pings, or `CLOSED`."""
        while True:
            async with asyncio.timeout(LIMIT_S):
                message = await self.websocket.receive()
            if message.type is not aiohttp.WSMsgType.TEXT:
                return CLOSED
            if message.data != skip:
                return str(message.data)

    async def connect(self) -> str:
        """Connect to the namespace `/`; return the reply."""
        await self.send("40" + json.dumps({"token": token()}))
        reply = await self.receive()
        assert (await self.receive()).startswith('42["bridge:sync"')
        return reply

    async def state(self) -> str:
        """Return whether the server still answers an event."""
        await self.send('4299["ack","x"]')
        while True:
            packet = await self.receive()
            if packet == CLOSED or packet.startswith("4399["):
                return CLOSED if packet == CLOSED else OPEN


class Peer:
    """A client of one server."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url = url
        self._http = http

    def _target(self, query: str) -> URL:
        return URL(f"{self._url}/socket.io/?{query}", encoded=True)

    async def request(
        self,
        query: str,
        *,
        method: str = "GET",
        body: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, str]:
        """Return status and text of a response."""
        async with (
            asyncio.timeout(LIMIT_S),
            self._http.request(
                method, self._target(query), data=body, headers=headers
            ) as response,
        ):
            return response.status, await response.text()

    async def status(self, query: str, *, method: str = "GET") -> int:
        """Return the status of a response."""
        return (await self.request(query, method=method))[0]

    async def open_session(self) -> str:
        """Open a polling session; return the query of its requests."""
        _, text = await self.request("EIO=4&transport=polling")
        return f"EIO=4&transport=polling&sid={json.loads(text[1:])['sid']}"

    async def open_window(self) -> str:
        """Open a polling session and connect it to the namespace `/`."""
        session = await self.open_session()
        await self.post(session, "40" + json.dumps({"token": token()}))
        text = ""
        while "bridge:sync" not in text:
            _, text = await self.request(session)
        return session

    async def post(self, session: str, *packets: str) -> tuple[int, str]:
        """Post packets."""
        body = SEPARATOR.join(packets)
        headers = {"Content-Type": "text/plain;charset=UTF-8"}
        return await self.request(session, method="POST", body=body, headers=headers)

    @asynccontextmanager
    async def socket(
        self,
        query: str = "EIO=4&transport=websocket",
        *,
        protocols: Sequence[str] = (),
    ) -> AsyncIterator[Socket]:
        """Open a WebSocket; without a session id the first packet is read."""
        target = self._target(query)
        async with self._http.ws_connect(target, protocols=protocols) as websocket:
            socket = Socket(websocket)
            if "sid=" not in query:
                assert (await socket.receive())[0] == "0"
            yield socket

    async def handshake(self, query: str) -> str:
        """Return whether a WebSocket handshake opens a session."""
        try:
            async with self._http.ws_connect(self._target(query)) as websocket:
                is_open = (await Socket(websocket).receive())[0] == "0"
                return OPEN if is_open else CLOSED
        except aiohttp.WSServerHandshakeError:
            return CLOSED


def websocket_of(session: str) -> str:
    """Return the query of a WebSocket of a polling session."""
    return session.replace("polling", "websocket")


def kind(packet: str) -> str:
    """Return the types of a packet, or `CLOSED`."""
    return CLOSED if packet == CLOSED else packet[:2]


# --- engine.io: handshake

OPENING_KEYS = ["maxPayload", "pingInterval", "pingTimeout", "sid", "upgrades"]


@case((200, "0", OPENING_KEYS, ["websocket"], 25000, 20000, 16384))
async def polling_opens_a_session(peer: Peer) -> object:
    status, text = await peer.request("EIO=4&transport=polling")
    opening = json.loads(text[1:])
    return (
        status,
        text[0],
        sorted(opening),
        opening["upgrades"],
        opening["pingInterval"],
        opening["pingTimeout"],
        opening["maxPayload"],
    )


@case((OPENING_KEYS, []))
async def a_websocket_opens_a_session(peer: Peer) -> object:
    query = "EIO=4&transport=websocket"
    async with peer._http.ws_connect(peer._target(query)) as websocket:
        opening = json.loads((await Socket(websocket).receive())[1:])
        return sorted(opening), opening["upgrades"]


@case([400, 400, 400])
async def another_version_is_refused(peer: Peer) -> object:
    return [
        await peer.status("transport=polling"),
        await peer.status("EIO=3&transport=polling"),
        await peer.status("EIO=abc&transport=polling"),
    ]


@case([CLOSED, CLOSED])
async def another_version_is_refused_over_websocket(peer: Peer) -> object:
    return [
        await peer.handshake("transport=websocket"),
        await peer.handshake("EIO=3&transport=websocket"),
    ]


@case([400, 400])
async def an_unknown_transport_is_refused(peer: Peer) -> object:
    return [await peer.status("EIO=4"), await peer.status("EIO=4&transport=abc")]


@case([400, 400, 400])
async def only_get_opens_a_session(peer: Peer) -> object:
    query = "EIO=4&transport=polling"
    methods = ("POST", "PUT", "DELETE")
    return [await peer.status(query, method=method) for method in methods]


@case(400)
async def a_websocket_needs_its_handshake(peer: Peer) -> object:
    return await peer.status("EIO=4&transport=websocket")


@case([400, 400, CLOSED])
async def an_unknown_session_is_refused(peer: Peer) -> object:
    query = "EIO=4&transport=polling&sid=unknown"
    return [
        await peer.status(query),
        (await peer.post(query, "40"))[0],
        await peer.handshake(websocket_of(query)),
    ]


@case((2, "http://a.example", "true"))
async def a_preflight_is_answered_whatever_it_asks_for(peer: Peer) -> object:
    query = "EIO=4&transport=polling&sid=unknown"
    headers = {"Origin": "http://a.example", "Access-Control-Request-Method": "POST"}
    async with peer._http.options(peer._target(query), headers=headers) as response:
        return (
            response.status // 100,
            response.headers["Access-Control-Allow-Origin"],
            response.headers.get("Access-Control-Allow-Credentials"),
        )


@case("chat")
async def the_first_subprotocol_is_accepted(peer: Peer) -> object:
    async with peer.socket(protocols=["chat", "other"]) as socket:
        return socket.websocket.protocol


@case(200)
async def jsonp_is_served(peer: Peer) -> object:
    return await peer.status("EIO=4&transport=polling&j=0")


# --- engine.io: messages


@case((200, "ok", ["4399[", "43100["]))
async def packets_in_one_body_are_separated_and_in_order(peer: Peer) -> object:
    session = await peer.open_window()
    status, text = await peer.post(session, '4299["ack"]', '42100["ack"]')
    _, packets = await peer.request(session)
    return (
        status,
        text,
        [packet.partition("[")[0] + "[" for packet in packets.split(SEPARATOR)],
    )


@case(400)
async def an_invalid_packet_ends_a_polling_session(peer: Peer) -> object:
    session = await peer.open_session()
    await peer.post(session, "abc")
    return await peer.status(session)


@case(CLOSED)
async def an_invalid_packet_closes_a_websocket(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.send("abc")
        return await socket.receive()


@case([(200, "1"), 400, 400])
async def two_polls_end_a_session(peer: Peer) -> object:
    session = await peer.open_session()
    first = asyncio.create_task(peer.request(session))
    await asyncio.sleep(
        0.2
    )  # nothing outside of the server shows that a poll is pending
    second = await peer.status(f"{session}&t=other")
    return [await first, second, await peer.status(session)]


@case(413)
async def a_body_over_the_limit_is_refused(peer: Peer) -> object:
    session = await peer.open_window()
    return (await peer.post(session, "4" + "x" * 100_000))[0]


@case(CLOSED)
async def a_frame_over_the_limit_closes_a_websocket(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.connect()
        await socket.send("4" + "x" * 100_000)
        return await socket.receive()


@case(OPEN)
async def packet_types_of_servers_are_ignored(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.connect()
        await socket.send("0{}", "5", "6")
        return await socket.state()


@case(OPEN)
async def half_an_emoji_in_an_event_is_valid(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.connect()
        await socket.send('42["x","\\ud800"]')
        return await socket.state()


# --- engine.io: heartbeat


@case((["2", "2"], OPEN), has_fast_pings=True)
async def the_server_pings_and_a_pong_keeps_the_session(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.connect()
        pings = []
        for _ in range(2):
            pings.append(await socket.receive(skip=""))
            await socket.send("3")
        return pings, await socket.state()


@case(["2", "2"], has_fast_pings=True)
async def the_server_pings_over_polling(peer: Peer) -> object:
    session = await peer.open_window()
    pings = []
    for _ in range(2):
        pings.append((await peer.request(session))[1])
        await peer.post(session, "3")
    return pings


@case(CLOSED, has_fast_pings=True)
async def a_websocket_without_pongs_is_closed(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.connect()
        return await socket.receive()


@case(400, has_fast_pings=True)
async def a_polling_session_without_pongs_ends(peer: Peer) -> object:
    session = await peer.open_window()
    while (status := await peer.status(session)) == 200:
        pass
    return status


@case(CLOSED)
async def a_client_may_not_ping(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.connect()
        await socket.send("2")
        return await socket.receive()


# --- engine.io: close


@case([(200, "6"), 400])
async def a_polling_client_closes_its_session(peer: Peer) -> object:
    session = await peer.open_session()
    poll = asyncio.create_task(peer.request(session))
    await asyncio.sleep(0.2)  # as above
    await peer.post(session, "1")
    return [await poll, await peer.status(session)]


@case(CLOSED)
async def a_client_closes_its_session_over_a_websocket(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.connect()
        await socket.send("1")
        return await socket.state()


# --- engine.io: upgrade


@case(("3probe", (200, "6"), OPEN))
async def polling_is_upgraded_to_a_websocket(peer: Peer) -> object:
    session = await peer.open_window()
    async with peer.socket(websocket_of(session)) as socket:
        poll = asyncio.create_task(peer.request(session))
        await socket.send("2probe")
        probe = await socket.receive()
        polled = await poll
        await socket.send("5")
        return probe, polled, await socket.state()


@asynccontextmanager
async def upgraded(peer: Peer) -> AsyncIterator[tuple[str, Socket]]:
    """Yield the query of a session that was upgraded, and its WebSocket."""
    session = await peer.open_window()
    async with peer.socket(websocket_of(session)) as socket:
        await socket.send("2probe")
        assert await socket.receive() == "3probe"
        await socket.send("5")
        assert await socket.state() == OPEN
        yield session, socket


@case((400, 400, OPEN))
async def polling_is_refused_after_an_upgrade(peer: Peer) -> object:
    async with upgraded(peer) as (session, socket):
        polled = await peer.status(session)
        posted, _ = await peer.post(session, "3")
        return polled, posted, await socket.state()


@case((CLOSED, OPEN))
async def another_websocket_is_closed_after_an_upgrade(peer: Peer) -> object:
    async with upgraded(peer) as (session, socket):
        async with peer.socket(websocket_of(session)) as second:
            seen = await second.receive()
        return seen, await socket.state()


@case((CLOSED, OPEN))
async def another_websocket_is_closed_during_an_upgrade(peer: Peer) -> object:
    session = await peer.open_window()
    async with peer.socket(websocket_of(session)) as socket:
        await socket.send("2probe")
        assert await socket.receive() == "3probe"
        async with peer.socket(websocket_of(session)) as second:
            seen = await second.receive()
        await socket.send("5")
        return seen, await socket.state()


@case((CLOSED, "4399["))
async def a_wrong_probe_leaves_the_session_at_polling(peer: Peer) -> object:
    session = await peer.open_window()
    async with peer.socket(websocket_of(session)) as socket:
        await socket.send("2wrong")
        seen = await socket.receive()
    await peer.post(session, '4299["ack"]')
    text = ""
    while "4399[" not in text:
        _, text = await peer.request(session)
    return seen, text[:5]


# --- socket.io: connect and refusal


@case(("40", ["pid", "sid"]))
async def a_client_connects(peer: Peer) -> object:
    async with peer.socket() as socket:
        reply = await socket.connect()
        return reply[:2], sorted(json.loads(reply[2:]))


@case(("44", ["data", "message"], "token_missing"))
async def a_client_without_a_token_is_refused_with_a_reason(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.send("40")
        reply = await socket.receive()
        error = json.loads(reply[2:])
        return reply[:2], sorted(error), error["data"]["code"]


@case(("44/other,", True))
async def an_unknown_namespace_is_refused(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.send("40/other," + json.dumps({"token": token()}))
        reply = await socket.receive()
        return reply[:9], bool(json.loads(reply[9:])["message"])


@case(CLOSED)
async def a_client_that_never_connects_is_closed(peer: Peer) -> object:
    async with peer.socket() as socket:
        return await socket.receive()


@case(CLOSED)
async def an_event_before_connect_closes_the_session(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.send('42["ack"]')
        return await socket.receive()


@case(CLOSED)
async def a_second_connect_closes_the_session(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.connect()
        await socket.send("40" + json.dumps({"token": token()}))
        return kind(await socket.receive())


@case(CLOSED)
async def auth_is_an_object(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.send('40"token"')
        return kind(await socket.receive())


# --- socket.io: events and acks


@case(["430[", "437[", "4312345678901234567000["])
async def an_event_with_an_id_is_acknowledged(peer: Peer) -> object:
    ids = ["0", "7", "12345678901234567000"]
    async with peer.socket() as socket:
        await socket.connect()
        await socket.send(*(f'42{number}["ack","x"]' for number in ids))
        return [(await socket.receive()).partition("[")[0] + "[" for _ in ids]


@case("4399[")
async def an_event_without_an_id_is_not_acknowledged(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.connect()
        await socket.send('42["ack","x"]', '4299["ack","x"]')
        return (await socket.receive())[:5]


@case(OPEN)
async def an_unknown_event_is_ignored(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.connect()
        await socket.send('42["unknown",1]', "431[]")
        return await socket.state()


INVALID = ["42{}", "42[]", '42["a"', '42abc["a"]', "49", "4abc", "44{}", "40{"]


@case(dict.fromkeys(INVALID, CLOSED))
async def an_invalid_packet_closes_the_session(peer: Peer) -> object:
    seen = {}
    for packet in INVALID:
        async with peer.socket() as socket:
            await socket.connect()
            await socket.send(packet)
            seen[packet] = await socket.state()
    return seen


@case(CLOSED)
async def an_event_without_data_closes_the_session(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.connect()
        await socket.send("42")
        return await socket.state()


@case(OPEN)
async def an_event_may_be_named_by_a_number(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.connect()
        await socket.send("42[1]")
        return await socket.state()


@case(CLOSED)
async def a_reserved_event_closes_the_session(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.connect()
        await socket.send('42["disconnect"]')
        return await socket.state()


@case(CLOSED)
async def a_packet_to_another_namespace_closes_the_session(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.connect()
        await socket.send('42/other,["ack"]')
        return await socket.state()


@case(OPEN)
async def binary_events_are_accepted(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.connect()
        await socket.send('451-["x",{"_placeholder":true,"num":0}]', b"\x01")
        return await socket.state()


@case(CLOSED)
async def binary_data_without_its_event_closes_the_session(peer: Peer) -> object:
    async with peer.socket() as socket:
        await socket.connect()
        await socket.send(b"\x01")
        packet = await socket.receive()
        return await socket.receive() if "bridge:closing" in packet else packet


# --- socket.io: disconnect


@case(("40", True))
async def a_client_that_disconnects_may_connect_again(peer: Peer) -> object:
    async with peer.socket() as socket:
        first = await socket.connect()
        await socket.send("41")
        await asyncio.sleep(0.2)  # Node's server closes a session that is quicker
        await socket.send("40" + json.dumps({"token": token()}))
        second = await socket.receive()
        if second == CLOSED:
            return CLOSED
        return second[:2], json.loads(first[2:])["sid"] != json.loads(second[2:])["sid"]
