"""The public port of a bridge without a broker: messages enter by `inbox.append`."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from yarl import URL

from bridge.auth.jwt import TokenRules, TokenVerifier
from bridge.auth.limited_verifier import LimitedVerifier
from bridge.clock import real_time
from bridge.core.client_address import Network
from bridge.core.message import Message
from bridge.core.origins import OriginRules
from bridge.core.worker_slot import WorkerSlot
from bridge.http.listeners import http_url
from bridge.http.listening_sockets import bind_sockets
from bridge.http.public import public_app
from bridge.inbox.contract import Retention
from bridge.inbox.memory.store import MemoryInbox
from bridge.metrics import Metrics
from bridge.sockets.engineio.handshake import HandshakePolicy
from bridge.sockets.engineio.session import EngineSession, SessionLimits
from bridge.sockets.options import SocketOptions
from bridge.sockets.server import SocketIOServer
from bridge.sockets.window import Window
from bridge.trusted_proxies import TrustedProxies
from tests.integration.sockets.security import Security
from tests.tokens import SECRET

COOKIE = "bridge_token"
LEEWAY_S = 10.0
_SAME_HOST = OriginRules()
# States in /proc/net/tcp in which the bridge's end is open.
_ESTABLISHED, _CLOSE_WAIT = "01", "08"


@dataclass(frozen=True)
class Plan:
    """The options of a test server; the defaults are generous."""

    outbound_bytes: int = 1 << 20
    events_per_second: int = 10_000
    windows_per_user: int = 1000
    windows_per_address: int = 10_000
    connect_s: float = 10.0
    origins: OriginRules = _SAME_HOST
    trusted_proxies: tuple[Network, ...] = ()
    ping_interval_s: int = 25
    ping_timeout_s: int = 20
    max_event_bytes: int = 16384
    is_open_mode: bool = False
    port: int = 0
    name: str = ""

    @property
    def options(self) -> SocketOptions:
        """The options for the server."""
        return SocketOptions(
            limits=SessionLimits(
                outbound_bytes=self.outbound_bytes,
                events_per_second=self.events_per_second,
                sessions_per_address=self.windows_per_address,
                connect_s=self.connect_s,
                ping_interval_s=self.ping_interval_s,
                ping_timeout_s=self.ping_timeout_s,
                max_packet_bytes=self.max_event_bytes,
            ),
            policy=HandshakePolicy(self.origins, TrustedProxies(self.trusted_proxies)),
            max_windows_per_user=self.windows_per_user,
            cookie=COOKIE,
            leeway_s=LEEWAY_S,
            name=self.name,
        )


@dataclass(frozen=True)
class RunningServer:
    """A server that listens, and its parts."""

    io: SocketIOServer
    inbox: MemoryInbox
    metrics: Metrics
    url: str
    port: int
    runner: web.AppRunner

    async def store(self, user: str, *data: object, event: str = "message") -> None:
        """Store one message for each of `data`, in one batch."""
        await self.inbox.append([message(user, each, event=event) for each in data])

    async def store_numbers(self, user: str, *, start: int, stop: int) -> None:
        """Store the numbers from `start` to `stop` - 1 as messages."""
        await self.store(user, *range(start, stop))

    def windows(self, user: str) -> list[Window]:
        """Return the windows of `user`."""
        return list(self.io.rooms.windows_of(user))

    def sessions(self) -> list[EngineSession]:
        """Return all sessions, also those without a window."""
        return list(self.io.engine.sessions.values())

    @property
    def http_connections(self) -> list[asyncio.Transport]:
        """The TCP connections that aiohttp serves."""
        assert self.runner.server is not None
        transports = [each.transport for each in self.runner.server.connections]
        return [each for each in transports if each is not None]

    @property
    def waiting_connections(self) -> int:
        """The number of TCP connections that have sent no complete request yet."""
        return len(self.io.engine._listener.waiting)

    @property
    def counted_connections(self) -> int:
        """The number of TCP connections that count for the cap of their address."""
        return sum(self.io.engine._listener.limits._by_address.values())

    @property
    def connection_count(self) -> int:
        """The number of TCP connections that this process has not closed, from the kernel."""
        rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
        fields = [row.split() for row in rows]
        mine = f":{self.port:04X}"
        return sum(
            field[1].endswith(mine) and field[3] in {_ESTABLISHED, _CLOSE_WAIT}
            for field in fields
        )

    def cut(self, user: str) -> None:
        """Abort all connections of `user`, as a bad network does."""
        for window in self.windows(user):
            window.session.close("cut by the test", abort=True)

    def tick(self, *, later_s: float = 0.0, calendar_later_s: float = 0.0) -> None:
        """Check all sessions with the clocks moved: pings by the first, tokens by the second."""
        engine = self.io.engine
        monotonic_s = time.monotonic() + later_s
        real_s = real_time() + calendar_later_s
        for session in tuple(engine.sessions.values()):
            engine.check_session(session, monotonic_s=monotonic_s, real_s=real_s)

    def count(self, name: str, **labels: str) -> float:
        """Return the value of a metric."""
        value = self.metrics.registry.get_sample_value(f"bridge_{name}", labels)
        return 0.0 if value is None else value

    def socket_url(self, **query: str) -> URL:
        """Return the URL of the Engine.IO endpoint."""
        return URL(f"{self.url}/socket.io/").with_query(EIO="4", **query)


def message(
    user: str,
    data: object,
    *,
    event: str = "message",
    message_id: str | None = None,
    deadline_s: float | None = None,
) -> Message:
    """Return a message that was consumed just now."""
    return Message(user, event, orjson.dumps(data), time.time(), message_id, deadline_s)


def memory_inbox(
    *, max_messages: int = 100_000, max_age_s: float = 3600
) -> MemoryInbox:
    """Return an inbox that deletes nothing during a test by default."""
    return MemoryInbox(Retention(max_messages, max_age_s, dedupe_s=600))


@asynccontextmanager
async def open_server(
    plan: Plan = Plan(),
    *,
    inbox: MemoryInbox | None = None,
    legacy: Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]
    | None = None,
    slot: WorkerSlot | None = None,
    verifier: TokenVerifier | None = None,
    failures_per_second: float = 10_000,
) -> AsyncIterator[RunningServer]:
    """
    Serve the public port on a free port of this machine until the block is left.

    With `slot` it is the port of one of several workers.
    """
    inbox = memory_inbox() if inbox is None else inbox
    metrics = Metrics()
    rules = TokenRules(algorithms=("HS256",), secrets=(SECRET,), leeway_s=LEEWAY_S)
    limited = LimitedVerifier(
        verifier or TokenVerifier(rules), failures_per_second=failures_per_second
    )
    io = SocketIOServer(
        plan.options,
        inbox=inbox,
        verifier=None if plan.is_open_mode else limited,
        metrics=metrics,
        slot=slot,
    )
    app = await asyncio.to_thread(  # it reads a file: a bridge does it before its loop runs
        public_app,
        unready_reasons=list,
        warnings=list,
        route_sockets=io.engine.route,
        legacy=legacy,
    )
    runner = web.AppRunner(
        app, access_log=None, keepalive_timeout=15, shutdown_timeout=0.2
    )
    running = asyncio.create_task(
        io.engine.run(), name=f"server {secrets.token_hex(2)}"
    )
    await runner.setup()
    try:
        (bound,) = bind_sockets(
            ("127.0.0.1",), plan.port, "BRIDGE_PORT", is_shared=slot is not None
        )
        security = Security.current
        certificate = security.certificate if security else None
        await io.engine.site(runner, bound, certificate).start()
        port = runner.addresses[0][1]
        url = http_url("127.0.0.1", port, is_tls=certificate is not None)
        yield RunningServer(io, inbox, metrics, url, port, runner)
    finally:
        for session in tuple(io.engine.sessions.values()):
            session.close("the test is over", abort=True)
        running.cancel()
        await asyncio.wait({running})
        await runner.cleanup()
