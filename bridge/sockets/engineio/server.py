"""
The Engine.IO server (protocol version 4): its HTTP endpoint and its sessions.

It opens sessions, serves long polling and upgrades, and checks the time and the limits of
all sessions. Responses and log lines never quote what a client sent.
"""

import asyncio
import re
import secrets
import socket
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from time import monotonic
from typing import Final

from aiohttp import web
from multidict import MultiMapping

from bridge.clock import real_time
from bridge.core.reason_phrase import reason_phrase
from bridge.core.websocket_handshake import (
    Handshake,
    subprotocol,
    switching_protocols,
    websocket_key,
)
from bridge.core.worker_slot import WorkerSlot
from bridge.enums import Closing
from bridge.metrics import Metrics
from bridge.server_certificate import PortCertificate
from bridge.sockets.engineio.connection_limits import ConnectionLimits
from bridge.sockets.engineio.detach import detach_transport
from bridge.sockets.engineio.fd_passing import ConnectionHandover
from bridge.sockets.engineio.handshake import HandshakePolicy, OpeningRequest
from bridge.sockets.engineio.listener import Listener
from bridge.sockets.engineio.polling import SEPARATOR, PollQueue
from bridge.sockets.engineio.session import (
    CloseReason,
    EngineSession,
    SessionHandler,
    SessionLimits,
    Work,
)
from bridge.sockets.engineio.unsupported_clients import UnsupportedClients

_PATH: Final = "/socket.io/"
# How long a closed polling session stays, for the poll that fetches its last packets and
# for its repetition if the response is lost.
_CLOSED_SESSION_S: Final = 2.0
_CHECK_INTERVAL_S: Final = 1.0
# RFC 9110 section 5.6.2, separated by commas.
_HEADER_NAMES: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z, -]+")
_ALLOWED_HEADERS: Final = "Authorization, Content-Type"
# A pass over the sessions is divided, so that it does not delay messages; but the process
# of a bridge with few sessions should not wake up ten times a second.
_STEPS_MAX: Final = 10
_SESSIONS_PER_STEP: Final = 100


class EngineServer:
    """
    All Engine.IO sessions.

    `slot` is the worker's slot if several workers share the port. `name` starts each
    session id: a load balancer routes polls by it without a table of its own.

    Attributes:
        limits: The limits of each session.
        handler: The layer above.
        metrics: Counts ignored packets.
        sessions: By session id. A closed polling session stays for its last poll.

    """

    def __init__(
        self,
        handler: SessionHandler,
        *,
        limits: SessionLimits,
        policy: HandshakePolicy,
        metrics: Metrics,
        name: str = "",
        slot: WorkerSlot | None = None,
    ) -> None:
        self.handler = handler
        self.limits = limits
        self.metrics = metrics
        self.sessions: dict[str, EngineSession] = {}
        self._policy = policy
        self._unsupported = UnsupportedClients(metrics)
        self._sid_prefix = f"{name}." if name else ""
        self._slot = slot
        self._listener = Listener(
            ConnectionLimits(limits, policy, metrics=metrics), self._open_websocket
        )
        self._handover = ConnectionHandover(slot, self._listener) if slot else None
        self._is_accepting = True
        self._tasks: asyncio.TaskGroup | None = None
        self._by_address: dict[str, int] = {}  # how many sessions are open

    def apply(self, limits: SessionLimits, policy: HandshakePolicy) -> None:
        """Use reloaded limits for all sessions, and the policy for new ones."""
        self.limits = limits
        self._policy = policy
        self._listener.limits.apply(limits, policy)

    def route(self, app: web.Application) -> None:
        """Serve the Engine.IO path in `app`; its shutdown closes all connections."""
        app.router.add_route("*", _PATH, self._handle)
        app.on_shutdown.append(self._close_connections)

    def site(
        self,
        runner: web.BaseRunner,
        bound: socket.socket,
        certificate: PortCertificate | None = None,
    ) -> web.BaseSite:
        """Return the site that accepts connections of a socket; with TLS if `certificate`."""
        return self._listener.site(runner, bound, certificate)

    def allows_origin(self, headers: Mapping[str, str]) -> bool:
        """Return whether a page that sends a request with these headers may connect."""
        return self._policy.allows_origin(headers)

    def stop_accepting(self) -> None:
        """Open no new sessions."""
        self._is_accepting = False

    # --- tasks and time

    @property
    def is_running(self) -> bool:
        """Whether received messages are processed."""
        return self._tasks is not None

    async def run(self) -> None:
        """
        Check the sessions and run their tasks, until cancelled.

        Cancellation: ends the tasks; the sessions stay open until they are closed.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            if self._handover is not None:
                tasks.create_task(self._handover.run(), name="handovers")
            try:
                while True:
                    await self._check_sessions()
            finally:
                self._tasks = None

    def spawn(self, work: Work, *, name: str) -> None:
        """Run `work`, which never raises, as a task; during shutdown it is dropped."""
        if self._tasks is None:
            work.close()  # or Python warns that it was never awaited
        else:
            self._tasks.create_task(work, name=name)

    def spawn_in_turn(self, work: Work, *, name: str) -> None:
        """Run `work` as `spawn`, but begin only a few in each turn of the event loop."""
        self._listener.turns.call(partial(self.spawn, work, name=name))

    async def _check_sessions(self) -> None:
        """
        Check all sessions once, within about a second.

        One pass costs less than a sleeping task per session (about 4 kB each), and a
        second is exact enough for pings.
        """
        sessions = tuple(self.sessions.values())
        steps = min(_STEPS_MAX, len(sessions) // _SESSIONS_PER_STEP + 1)
        size = -(-len(sessions) // steps)
        for step in range(steps):
            await asyncio.sleep(_CHECK_INTERVAL_S / steps)
            monotonic_s, real_s = monotonic(), real_time()
            for session in sessions[step * size : (step + 1) * size]:
                self.check_session(session, monotonic_s=monotonic_s, real_s=real_s)

    def check_session(
        self, session: EngineSession, *, monotonic_s: float, real_s: float
    ) -> None:
        """Send a due ping; close the session if it is late or over a limit."""
        if session.is_closed:
            if monotonic_s - session.closed_s > _CLOSED_SESSION_S:
                self.sessions.pop(session.sid, None)
            return
        if not session.tick(monotonic_s):
            return
        if session.is_over_limit:
            # A client that sends requests and pongs but does not read the replies.
            self.handler.limit_exceeded(session, Closing.SLOW)
        elif session.client is not None:
            self.handler.session_checked(session, real_s)
        elif (
            monotonic_s - session.opened_s > self.limits.connect_s
            and not self._listener.turns.is_behind
        ):
            # The client never sent CONNECT, or was refused and stays.
            session.close(CloseReason.SERVER_DISCONNECT, abort=True)

    # --- HTTP

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        PollQueue.request_received(request.transport)
        if self._handover is not None and await self._handover.pass_on(
            request, max_body_bytes=self.limits.max_connect_bytes
        ):
            return _not_sent()
        response = await self._respond(request)
        if not response.prepared:
            response.headers["Cache-Control"] = "no-store"
            response.headers["X-Content-Type-Options"] = "nosniff"
            self._add_cors_headers(request, response)
        return response

    async def _respond(self, request: web.Request) -> web.Response:
        if request.method == "OPTIONS":
            return _plain(200, "ok")
        query = request.query
        transport_name = query.get("transport", "")
        problem = _query_problem(query, transport_name)
        if problem:
            if query.getall("EIO", []) != ["4"]:
                opening = self._policy.examine(request.remote, request.headers)
                self._unsupported.note(query.get("EIO"), opening.counted_as)
            return _plain(400, problem)
        if "sid" not in query:
            opening = self._policy.examine(request.remote, request.headers)
            return self._refusal(request, opening) or await self._open_session(
                request, opening, transport_name
            )
        session = self.sessions.get(query["sid"])
        if session is None:
            return _plain(400, "unknown session")
        return await self._serve_session(request, session, transport_name)

    async def _serve_session(
        self, request: web.Request, session: EngineSession, transport_name: str
    ) -> web.Response:
        if transport_name == "websocket":
            return self._upgrade(request, session)
        if session.transport_name == "websocket":
            return _plain(400, "this session uses a WebSocket")
        if request.method == "POST":
            status = await session.post(request)
            return _plain(
                status, "ok" if status == HTTPStatus.OK else reason_phrase(status)
            )
        packets = await session.poll(request) if request.method == "GET" else []
        return _packets(packets) if packets else _plain(400, "the session is closed")

    def _refusal(
        self, request: web.Request, opening: OpeningRequest
    ) -> web.Response | None:
        if not self._is_accepting:
            return _plain(503, "shutting down, connect again", {"Retry-After": "1"})
        if self._is_at_limit(opening.counted_as):
            return _plain(
                429,
                "too many windows or invalid tokens from this address",
                {"Retry-After": "10"},
            )
        if request.method != "GET":
            return _plain(400, "GET opens a session")
        return None

    async def _open_session(
        self, request: web.Request, opening: OpeningRequest, transport_name: str
    ) -> web.Response:
        if transport_name == "websocket":
            key = websocket_key(request.headers)
            if key is None:
                return _invalid_handshake(request)
            response = switching_protocols(key, subprotocol(request.headers))
            transport, received = detach_transport(request)
            if transport is not None:
                self._new_session(opening).open_websocket(
                    transport, response=response, received=received
                )
            return _not_sent()
        session = self._new_session(opening)
        session.open_polling()
        return _packets(await session.poll(request))

    def _upgrade(self, request: web.Request, session: EngineSession) -> web.Response:
        key = websocket_key(request.headers)
        if key is None or request.method != "GET":
            return _invalid_handshake(request)
        response = switching_protocols(key, subprotocol(request.headers))
        transport, received = detach_transport(request)
        if transport is not None:
            start = (
                session.start_upgrade if session.can_upgrade else session.refuse_upgrade
            )
            start(transport, response=response, received=received)
        return _not_sent()

    def _add_cors_headers(
        self, request: web.Request, response: web.StreamResponse
    ) -> None:
        """
        Let pages of other origins read the response.

        Pages of a refused origin may read it too, to learn the reason, but only without
        credentials: such a response contains nothing that belongs to a user.
        """
        origin = request.headers.get("Origin")
        if not origin:
            return
        headers = response.headers
        headers["Access-Control-Allow-Origin"] = origin
        headers["Vary"] = "Origin"
        asked = None
        if self._policy.allows_origin(request.headers):
            headers["Access-Control-Allow-Credentials"] = "true"
            # A page may send any header, as with `extraHeaders` of the stock client.
            asked = request.headers.get("Access-Control-Request-Headers")
        if request.method == "OPTIONS":
            headers["Access-Control-Allow-Methods"] = "OPTIONS, GET, POST"
            headers["Access-Control-Allow-Headers"] = (
                asked if asked and _HEADER_NAMES.fullmatch(asked) else _ALLOWED_HEADERS
            )
            headers["Access-Control-Max-Age"] = "600"

    # --- sessions

    def _open_websocket(
        self, transport: asyncio.Transport, handshake: Handshake
    ) -> bool:
        """Open a session; false, with nothing written, if aiohttp should refuse it."""
        peer = transport.get_extra_info("peername")
        remote = peer[0] if isinstance(peer, tuple) else peer
        opening = self._policy.examine(remote, handshake.headers)
        if not self._is_accepting or self._is_at_limit(opening.counted_as):
            return False
        self._new_session(opening).open_websocket(
            transport,
            response=switching_protocols(handshake.key, subprotocol(handshake.headers)),
            received=handshake.rest,
        )
        return True

    def _new_session(self, opening: OpeningRequest) -> EngineSession:
        sid = self._sid_prefix + secrets.token_urlsafe(15)
        if self._slot is not None:
            sid = self._slot.number_session(sid)
        session = self.sessions[sid] = EngineSession(self, sid, opening)
        count = self._by_address.get(session.counted_as, 0)
        self._by_address[session.counted_as] = count + 1
        return session

    def session_closed(self, session: EngineSession, reason: str) -> None:
        """Forget a session, except a polling one that may fetch its last packets."""
        count = self._by_address.pop(session.counted_as, 1) - 1
        if count:
            self._by_address[session.counted_as] = count
        if session.transport_name == "websocket":
            self.sessions.pop(session.sid, None)
        self.handler.session_closed(session, reason)

    def _is_at_limit(self, address: str) -> bool:
        count = self._by_address.get(address, 0)
        is_full = count >= self.limits.sessions_per_address
        return is_full or self.handler.is_suspended(address)

    async def _close_connections(self, _app: web.Application) -> None:
        for session in tuple(self.sessions.values()):
            session.close(CloseReason.SERVER_DISCONNECT, abort=True)


def _not_sent() -> web.Response:
    """Return a response for a connection that was detached from aiohttp."""
    return web.Response()


def _query_problem(query: MultiMapping[str], transport_name: str) -> str | None:
    if "j" in query:
        # JSONP: a script element in any page could open a session.
        return "JSONP is not served"
    if query.getall("EIO", []) != ["4"]:
        return "only Engine.IO 4 is served"
    if transport_name not in {"polling", "websocket"}:
        return "only the transports websocket and polling are served"
    return None


def _invalid_handshake(request: web.Request) -> web.Response:
    if request.headers.get("Sec-WebSocket-Version", "13") != "13":
        # RFC 6455 section 4.2.2.
        return _plain(
            426, "only WebSocket 13 is served", {"Sec-WebSocket-Version": "13"}
        )
    return _plain(400, "not a WebSocket handshake")


def _packets(packets: list[str]) -> web.Response:
    return _plain(200, SEPARATOR.join(packets))


def _plain(
    status: int, text: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(status=status, text=text, headers=headers)
