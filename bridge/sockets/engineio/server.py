"""
Engine.io, protocol version 4: sessions, their doors and their time.

Who may open a session, the HTTP side of long polling, the way to a websocket, and one
clock for all sessions. No line in any log that a stranger wrote, no answer that quotes
one (traps 1.2, row 16).
"""

import asyncio
import re
import secrets
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson
from aiohttp import web

from bridge.core.client_address import Network, client_address
from bridge.core.frames import text_frame
from bridge.core.origins import OriginRules
from bridge.core.websocket_handshake import (
    Handshake,
    switching_protocols,
    websocket_key,
)
from bridge.sockets.engineio.caller import Caller
from bridge.sockets.engineio.session import Carrier, Ending
from bridge.sockets.engineio.upgrade import take_over
from bridge.sockets.engineio.websocket import Listener, Wire
from bridge.sockets.window import Window

# Before it stands which bridge gave it away, behind it which worker, where there are several.
_SESSION_ID: Final = re.compile(
    r"(?:[A-Za-z0-9_-]{1,32}\.)?[A-Za-z0-9_-]{20}(?:\.[0-9]{1,3})?"
)
_CLOSED_SESSION_LIFE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """
    What connections may cost.

    Attributes:
        outbound_bytes: What may wait for one window.
        events_per_second: What one window may send on average.
        windows_per_user: At a time.
        windows_per_address: At a time.
        connect_s: From the first byte to a CONNECT packet.

    """

    outbound_bytes: int
    events_per_second: int
    windows_per_user: int
    windows_per_address: int
    connect_s: float


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may knock: origins, and the proxies whose word on addresses is taken."""

    origins: OriginRules
    trusted_proxies: tuple[Network, ...] = ()


class SessionOwner(Protocol):
    """What the engine asks of the socket.io layer above it."""

    is_draining: bool

    def take(self, carrier: Carrier, text: str) -> Coroutine[Any, Any, None] | None:
        """Handle the inside of an engine.io message; returns what takes time."""

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Do what takes time."""

    def ignore(self) -> None:
        """Count a packet that means nothing."""

    def flooded(self, carrier: Carrier) -> None:
        """Close a session that sends too much."""

    def fetched(self, window: Window, offset: int) -> None:
        """Note that a polling page has taken its messages up to `offset`."""

    def left(self, carrier: Carrier, reason: str) -> None:
        """Forget the window of a session that ended."""


class Neighbours(Protocol):
    """The other workers, each with sessions of its own."""

    def mark(self, session_id: str) -> str:
        """Write into a new session id whose it is."""

    async def answer(
        self, request: web.Request, *, max_body_bytes: int
    ) -> web.Response | None:
        """Let another answer about its session; ``None`` if it is ours, or nobody's."""


class Engine:
    """
    All sessions.

    Attributes:
        neighbours: Where there are several workers.
        carriers: By session id; closed ones that polled stay for their last words.
        bounds: What each may cost.
        admission: Who may open one.

    """

    def __init__(
        self,
        owner: SessionOwner,
        *,
        bounds: Bounds,
        admission: Admission,
        ping_interval_s: int,
        ping_timeout_s: int,
        max_event_bytes: int,
        name: str = "",
    ) -> None:
        self.owner = owner
        self.bounds = bounds
        self.admission = admission
        self.ping_interval_s = ping_interval_s
        self.ping_timeout_s = ping_timeout_s
        self.max_event_bytes = max_event_bytes
        # A load balancer finds the way of each poll in it, without a table of its own.
        self._sid_begins = f"{name}." if name else ""
        self.carriers: dict[str, Carrier] = {}
        self.neighbours: Neighbours | None = None
        # The key is kept too: all sessions from one address share one string.
        self._by_address: dict[str, tuple[str, int]] = {}

    def route(self, app: web.Application, path: str) -> None:
        """Answer requests to `path` in `app`."""
        app.router.add_get(path, self.handle_request, allow_head=False)
        app.router.add_post(path, self.handle_request)
        app.router.add_options(path, self.handle_request)

    # --- HTTP

    async def handle_request(self, request: web.Request) -> web.StreamResponse:
        """Answer one HTTP request to the engine.io path."""
        response = (
            await self._answer_of_neighbour(request)
            or self._refusal(request)
            or await self._answer(request)
        )
        if not response.prepared:
            response.headers["Cache-Control"] = "no-store"
            response.headers["X-Content-Type-Options"] = "nosniff"
            self._allow_reading(request, response)
        return response

    async def _answer_of_neighbour(self, request: web.Request) -> web.Response | None:
        if self.neighbours is None:
            return None
        return await self.neighbours.answer(
            request, max_body_bytes=self.max_event_bytes
        )

    def _refusal(self, request: web.Request) -> web.Response | None:
        """Turn away whoever may not ask here."""
        query = request.query
        if "j" in query:
            # JSONP: a script tag of any page could open a session (traps 1.2, row 8).
            return _plain(400, "JSONP is not served")
        sid = query.get("sid")
        if sid is not None:
            known = _SESSION_ID.fullmatch(sid) and sid in self.carriers
            return None if known else _plain(400, "unknown session")
        if request.method == "OPTIONS":
            return None
        if self.owner.is_draining:
            return _plain(503, "going down, connect again", {"Retry-After": "1"})
        if self._is_crowded(self._address(request.remote, _forwarded_for(request))):
            return _plain(
                429, "too many windows from this address", {"Retry-After": "10"}
            )
        return None

    async def _answer(self, request: web.Request) -> web.Response:
        sid = request.query.get("sid")
        transport = request.query.get("transport", "polling")
        if request.method == "OPTIONS":
            return _plain(200, "ok")
        if sid is None:
            return await self._begin(request, transport)
        carrier = self.carriers[sid]
        if request.method == "POST":
            is_taken = transport == "polling" and await carrier.post(request)
            return _plain(200, "ok") if is_taken else _plain(400, "not understood")
        if transport == "websocket":
            return self._upgrade(request, carrier)
        if carrier.transport_name == "websocket":
            return _plain(400, "this session is a websocket")
        packets = await carrier.poll(request)
        if carrier.closed:
            self.carriers.pop(sid, None)  # these were its last words
        return _packets(packets) if packets else _plain(400, "the session is over")

    async def _begin(self, request: web.Request, transport: str) -> web.Response:
        """Open a session, in the way that its first request asks for."""
        if request.method != "GET" or request.query.getall("EIO", []) != ["4"]:
            return _plain(400, "engine.io version 4 is served, begun with GET")
        if transport == "websocket":
            return self._begin_websocket(request)
        if transport != "polling":
            return _plain(400, "websocket and polling are served")
        carrier = self._open(self._caller(request))
        return _packets(await carrier.poll(request))

    def _begin_websocket(self, request: web.Request) -> web.Response:
        key = websocket_key(request.headers)
        if key is None:
            return _plain(400, "not a websocket handshake")
        caller = self._caller(request)
        transport, rest = take_over(request)
        if transport is not None:
            self._connect(transport, caller, key=key, rest=rest)
        return web.Response()  # to nobody: the connection is ours

    def _upgrade(self, request: web.Request, carrier: Carrier) -> web.Response:
        """Let a page that polls go over to a websocket."""
        key = websocket_key(request.headers)
        is_free = carrier.transport_name == "polling" and not carrier.is_upgrading
        if key is None or not is_free or carrier.closed:
            return _plain(400, "one websocket at a time")
        transport, rest = take_over(request)
        if transport is not None:
            probe = carrier.probe()
            probe.wire = self._wire(transport, probe)
            transport.write(switching_protocols(key))
            if rest:
                probe.wire.data_received(rest)
        return web.Response()  # to nobody: the connection is ours

    def _allow_reading(
        self, request: web.Request, response: web.StreamResponse
    ) -> None:
        """
        Let a page of another origin read its answers.

        One that may not connect reads them too, so that it learns why it is refused, but
        without credentials: it reads nothing that is anybody's.
        """
        origin = request.headers.get("Origin")
        if not origin:
            return
        headers = response.headers
        headers["Access-Control-Allow-Origin"] = origin
        headers["Vary"] = "Origin"
        if self._allows(request.headers):
            headers["Access-Control-Allow-Credentials"] = "true"
        if request.method == "OPTIONS":
            headers["Access-Control-Allow-Methods"] = "OPTIONS, GET, POST"
            headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type"
            headers["Access-Control-Max-Age"] = "600"

    # --- sessions

    def enter(self, transport: asyncio.Transport, handshake: Handshake) -> bool:
        """
        Begin a session over the websocket that `handshake` asks for.

        Returns:
            False if there is something against it; nothing was written.

        """
        headers = handshake.headers
        peer = transport.get_extra_info("peername")
        remote = peer[0] if isinstance(peer, tuple) else peer
        address = self._address(remote, headers.get("x-forwarded-for", ""))
        if self.owner.is_draining or self._is_crowded(address):
            return False
        caller = Caller(
            address,
            self._allows(headers),
            headers.get("authorization"),
            headers.get("cookie"),
            headers.get("origin"),
        )
        self._connect(transport, caller, key=handshake.key, rest=handshake.rest)
        return True

    def _connect(
        self, transport: asyncio.Transport, caller: Caller, *, key: str, rest: bytes
    ) -> None:
        carrier = self._new_carrier(caller)
        wire = self._wire(transport, carrier)
        carrier.open(wire)
        transport.write(switching_protocols(key) + text_frame(self._opening(carrier)))
        if rest:
            wire.data_received(rest)

    def _wire(self, transport: asyncio.Transport, listener: Listener) -> Wire:
        wire = Wire(transport, listener, max_bytes=self.max_event_bytes)
        transport.set_protocol(wire)
        return wire

    def _open(self, caller: Caller) -> Carrier:
        """Begin a session over long polling."""
        carrier = self._new_carrier(caller)
        carrier.write_packet(self._opening(carrier, upgrades=("websocket",)).decode())
        return carrier

    def _new_carrier(self, caller: Caller) -> Carrier:
        sid = self._sid_begins + secrets.token_urlsafe(15)
        if self.neighbours is not None:
            sid = self.neighbours.mark(sid)
        carrier = self.carriers[sid] = Carrier(self, sid, caller)
        address, count = self._by_address.get(caller.address, (caller.address, 0))
        carrier.address = address
        self._by_address[address] = (address, count + 1)
        return carrier

    def _opening(self, carrier: Carrier, *, upgrades: tuple[str, ...] = ()) -> bytes:
        """Return the packet that begins a session."""
        return b"0" + orjson.dumps(
            {
                "sid": carrier.sid,
                "upgrades": upgrades,
                "pingTimeout": self.ping_timeout_s * 1000,
                "pingInterval": self.ping_interval_s * 1000,
                "maxPayload": self.max_event_bytes,
            }
        )

    def ended(self, carrier: Carrier, reason: str) -> None:
        """Forget a session. A polling one can still fetch its last words for a moment."""
        address, count = self._by_address.get(carrier.address, ("", 1))
        if count > 1:
            self._by_address[address] = (address, count - 1)
        else:
            self._by_address.pop(carrier.address, None)
        if carrier.transport_name == "websocket":
            self.carriers.pop(carrier.sid, None)
        self.owner.left(carrier, reason)

    def tick(self, carrier: Carrier, now_s: float) -> None:
        """
        Move time on for one session; called about once a second.

        One pass over all of them costs less than a sleeping task for each (some 4 kB of
        memory a window), and a second is exact enough for pings.
        """
        if not carrier.closed:
            carrier.tick(now_s)
        elif now_s - carrier.closed_s > _CLOSED_SESSION_LIFE_S:
            self.carriers.pop(carrier.sid, None)

    def shut(self) -> None:
        """Cut every connection that is still there."""
        for carrier in tuple(self.carriers.values()):
            carrier.end(Ending.SERVER_DISCONNECT, abort=True)

    # --- who knocks

    def _caller(self, request: web.BaseRequest) -> Caller:
        cookies = request.headers.getall("Cookie", ())
        return Caller(
            self._address(request.remote, _forwarded_for(request)),
            self._allows(request.headers),
            request.headers.get("Authorization"),
            "; ".join(cookies) or None,
            request.headers.get("Origin"),
        )

    def _allows(self, headers: Mapping[str, str]) -> bool:
        return self.admission.origins.allows(
            headers.get("origin"),
            host=headers.get("host"),
            fetch_site=headers.get("sec-fetch-site"),
        )

    def _address(self, remote: str | None, forwarded_for: str) -> str:
        return client_address(remote, forwarded_for, self.admission.trusted_proxies)

    def _is_crowded(self, address: str) -> bool:
        _, count = self._by_address.get(address, ("", 0))
        return count >= self.bounds.windows_per_address


def _forwarded_for(request: web.BaseRequest) -> str:
    # Some proxies add a header of their own instead of a word to the last one.
    return ",".join(request.headers.getall("X-Forwarded-For", ()))


def _packets(packets: list[str]) -> web.Response:
    return _plain(200, "\x1e".join(packets))


def _plain(
    status: int, text: str, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(status=status, text=text, headers=headers)
