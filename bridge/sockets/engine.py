"""
The engine.io server: sessions, their doors and their time.

Over python-engineio's server, which keeps the HTTP side of the protocol. What is ours:
who may open a session, one clock for all sessions instead of a task for each, and no
line in any log that a stranger wrote.
"""

import re
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson
from aiohttp import web
from engineio.async_server import AsyncServer

from bridge.core.addresses import Network, client_address
from bridge.core.origins import OriginRules
from bridge.sockets.transport import Carrier

_SESSION_ID: Final = re.compile(r"[A-Za-z0-9_-]{20}")
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

    async def take(self, carrier: Carrier, text: str) -> None:
        """Handle the inside of an engine.io message."""

    def ignore(self) -> None:
        """Count a packet that means nothing."""

    def flooded(self, carrier: Carrier) -> None:
        """Close a session that sends too much."""

    def left(self, carrier: Carrier, reason: str) -> None:
        """Forget the window of a session that ended."""


class EngineServer(AsyncServer):  # type: ignore[misc] # engineio has no types
    """All sessions. `owner`, `bounds` and `admission` are set before the first request."""

    owner: SessionOwner
    bounds: Bounds
    admission: Admission

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - engineio's options
        super().__init__(**options)
        self.sockets: dict[str, Carrier] = {}
        self._by_address: dict[str, int] = {}

    async def handle_request(self, request: web.Request) -> web.StreamResponse:
        """Answer one HTTP request to the engine.io path."""
        refusal = self._refusal(request)
        response: web.StreamResponse
        if refusal is not None:
            response = refusal
        else:
            response = await super().handle_request(request)
        if not response.prepared:
            response.headers["Cache-Control"] = "no-store"
            response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        """Turn away what engineio would let through, log, or quote back."""
        query = request.query
        if "j" in query:
            # JSONP: a script tag of any page could open a session (traps 1.2, row 8).
            return _plain(400, "JSONP is not served")
        sid = query.get("sid")
        if sid is not None:
            known = _SESSION_ID.fullmatch(sid) and sid in self.sockets
            return None if known else _plain(400, "unknown session")
        if request.method == "OPTIONS":
            return None
        if self.owner.is_draining:
            return _plain(503, "going down, connect again", {"Retry-After": "1"})
        address = self._address(request)
        if self._by_address.get(address, 0) >= self.bounds.windows_per_address:
            return _plain(
                429, "too many windows from this address", {"Retry-After": "10"}
            )
        return None

    async def _handle_connect(
        self,
        environ: dict[str, Any],
        transport: str,
        jsonp_index: object = None,  # noqa: ARG002 - engineio's
    ) -> Any:  # noqa: ANN401 - engineio's
        """Open a session; over a websocket this lasts as long as the session does."""
        request: web.Request = environ["aiohttp.request"]
        sid = self.generate_id()
        carrier = Carrier(
            self,
            sid,
            request=request,
            address=self._address(request),
            is_origin_allowed=self._allows(request),
        )
        self.sockets[sid] = carrier
        self._by_address[carrier.address] = self._by_address.get(carrier.address, 0) + 1
        opening = {
            "sid": sid,
            "upgrades": self._upgrades(sid, transport),
            "pingTimeout": int(self.ping_timeout * 1000),
            "pingInterval": int(self.ping_interval * 1000),
            "maxPayload": self.max_http_buffer_size,
        }
        carrier.write_packet("0" + orjson.dumps(opening).decode())
        if transport == "websocket":
            try:
                return await carrier.handle_get_request(environ)
            finally:
                carrier.end(self.reason.TRANSPORT_ERROR)  # the handshake failed
        carrier.connected = True
        return self._ok(await carrier.poll(request))

    def _get_socket(self, sid: str) -> Carrier:
        """Return a session, a closed one too: it may have last words."""
        return self.sockets[sid]

    def _ok(self, packets: list[str] | None = None, **_: object) -> dict[str, Any]:
        body = "ok" if packets is None else "\x1e".join(packets)
        return {
            "status": "200 OK",
            "headers": [("Content-Type", "text/plain; charset=UTF-8")],
            "response": body.encode(),
        }

    def _cors_headers(self, environ: dict[str, Any]) -> list[tuple[str, str]]:
        """
        Let a page of another origin read its answers.

        One that may not connect reads them too, so that it learns why it is refused, but
        without credentials: it reads nothing that is anybody's.
        """
        origin = environ.get("HTTP_ORIGIN")
        if not origin:
            return []
        headers = [("Access-Control-Allow-Origin", origin), ("Vary", "Origin")]
        if self._allows(environ["aiohttp.request"]):
            headers.append(("Access-Control-Allow-Credentials", "true"))
        if environ["REQUEST_METHOD"] == "OPTIONS":
            headers += [
                ("Access-Control-Allow-Methods", "OPTIONS, GET, POST"),
                ("Access-Control-Allow-Headers", "Authorization, Content-Type"),
                ("Access-Control-Max-Age", "600"),
            ]
        return headers

    def _allows(self, request: web.BaseRequest) -> bool:
        return self.admission.origins.allows(
            request.headers.get("Origin"),
            host=request.headers.get("Host"),
            fetch_site=request.headers.get("Sec-Fetch-Site"),
        )

    def _address(self, request: web.BaseRequest) -> str:
        # Not environ["REMOTE_ADDR"], which engineio fills with 127.0.0.1 for everybody.
        return client_address(
            request.remote,
            # Some proxies add a header of their own instead of a word to the last one.
            ",".join(request.headers.getall("X-Forwarded-For", ())),
            self.admission.trusted_proxies,
        )

    # --- what a carrier reports

    async def message(self, carrier: Carrier, text: str) -> None:
        """Hand the inside of an engine.io message upstairs."""
        await self.owner.take(carrier, text)

    def ignore(self) -> None:
        """Count a packet that means nothing."""
        self.owner.ignore()

    def flooded(self, carrier: Carrier) -> None:
        """Close a session that sends more than it may."""
        self.owner.flooded(carrier)

    def ended(self, carrier: Carrier, reason: str) -> None:
        """Forget a session. A polling one can still fetch its last words for a moment."""
        left = self._by_address.get(carrier.address, 1) - 1
        if left > 0:
            self._by_address[carrier.address] = left
        else:
            self._by_address.pop(carrier.address, None)
        if carrier.transport_name == "websocket":
            self.sockets.pop(carrier.sid, None)
        self.owner.left(carrier, reason)

    def tick(self, now_s: float) -> None:
        """
        Move time on for all sessions; called about once a second.

        One pass over all of them costs less than a sleeping task for each (some 4 kB of
        memory a window), and a second is exact enough for pings.
        """
        for carrier in tuple(self.sockets.values()):
            if carrier.closed:
                if now_s - carrier.closed_s > _CLOSED_SESSION_LIFE_S:
                    self.sockets.pop(carrier.sid, None)
            else:
                carrier.tick(now_s)


def _plain(
    status: int, text: str, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(status=status, text=text, headers=headers)
