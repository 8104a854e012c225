"""
The life of a window: verify, join, reply, replay, live, close.

Over python-socketio's server, which keeps the wiring to engine.io and aiohttp. What is
ours: a window joins its room only after its token was verified, as the last thing that
can fail; recovery as the stock client knows it; no handler whose exception leaves a
half-open client in a room (traps 1.2, row 2).
"""

import asyncio
import logging
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass
from time import monotonic, time
from typing import Any, Final

import structlog
from aiohttp import web
from socketio import AsyncServer

from bridge.core import packets
from bridge.core.access import Identity
from bridge.core.message import user_problem
from bridge.core.packets import Packet, PacketType
from bridge.errors import (
    ClientError,
    EventRefusedError,
    StoreUnavailableError,
)
from bridge.logs import user_hash
from bridge.metrics import Metrics
from bridge.names import (
    EVENT_ACK,
    EVENT_CLOSING,
    EVENT_EXPIRING,
    EVENT_JOIN,
    EVENT_REFRESH,
    Closing,
    EventError,
    Refusal,
)
from bridge.sockets.engine import Admission, Bounds, EngineServer
from bridge.sockets.entrance import Admitted, Entrance
from bridge.sockets.replay import Inboxes, Replays
from bridge.sockets.requests import Verifier, WindowRequests
from bridge.sockets.rooms import Rooms
from bridge.sockets.transport import Carrier
from bridge.sockets.window import Window, WindowReport

log = structlog.get_logger(__name__)

# Both libraries log payloads and what strangers wrote (traps 1.2, row 16).
_SILENT: Final = logging.getLogger("socketio")
_TICK_S: Final = 1.0
_DRAIN_BATCHES: Final = 40
_DRAIN_BATCH_LEAST: Final = 50


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """
    What the operator chose for windows.

    Attributes:
        bounds: What connections may cost.
        admission: Whose pages may connect.
        ping_interval_s: Whole seconds.
        ping_timeout_s: Whole seconds.
        max_event_bytes: Largest frame or body that a page may send.
        cookie: Name of the cookie that may hold a token.
        leeway_s: How far past its `exp` a token's window may stay.

    """

    bounds: Bounds
    admission: Admission
    ping_interval_s: int
    ping_timeout_s: int
    max_event_bytes: int
    cookie: str
    leeway_s: float


class BridgeServer(AsyncServer):  # type: ignore[misc] # socketio has no types
    """
    All windows of this bridge.

    `verifier` is `None` in open mode, where a page says itself who it is.
    """

    def __init__(
        self,
        options: ServerOptions,
        *,
        inbox: Inboxes,
        verifier: Verifier | None,
        metrics: Metrics,
    ) -> None:
        self.rooms = Rooms(
            metrics,
            mark_delivered=inbox.mark_delivered,
            catch_up=self._catch_up,
        )
        super().__init__(
            client_manager=self.rooms,
            async_mode="aiohttp",
            async_handlers=False,
            # The list [] would switch the check off (traps 1.2, row 7); ours is in
            # EngineServer and knows same-host pages and refused ones.
            cors_allowed_origins="*",
            ping_interval=options.ping_interval_s,
            ping_timeout=options.ping_timeout_s,
            max_http_buffer_size=options.max_event_bytes,
            http_compression=False,
            monitor_clients=False,
            logger=_SILENT,
            engineio_logger=_SILENT,
        )
        self.eio.owner = self
        self._inbox = inbox
        self._verifier = verifier
        self._metrics = metrics
        self._requests = WindowRequests(inbox, verifier)
        self._entrance = Entrance(
            rooms=self.rooms, inbox=inbox, verifier=verifier, metrics=metrics
        )
        self._replays = Replays(
            rooms=self.rooms, inbox=inbox, metrics=metrics, close=self.close
        )
        self._tasks: asyncio.TaskGroup | None = None
        self.is_draining = False
        self.apply(options)

    def apply(self, options: ServerOptions) -> None:
        """Use `options` from now on; pings and sizes of open sessions stay."""
        self._options = options
        self.eio.bounds = options.bounds
        self.eio.admission = options.admission
        self._entrance.cookie = options.cookie
        self._entrance.windows_per_user = options.bounds.windows_per_user
        self._replays.page_bytes = options.bounds.outbound_bytes // 4
        self._replays.patience_s = options.ping_timeout_s

    def _engineio_server_class(self) -> type[EngineServer]:
        return EngineServer

    # --- running

    async def run(self) -> None:
        """
        Keep time for all windows, and be the parent of their tasks.

        Cancellation: ends the tasks; windows stay open until `drain` or the transport
        ends them.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                while True:
                    await asyncio.sleep(_TICK_S)
                    self.tick(monotonic_s=monotonic(), now_s=time())
            finally:
                self._tasks = None

    def tick(self, *, monotonic_s: float, now_s: float) -> None:
        """Do what is due: pings, unfinished connects, expired tokens."""
        self.eio.tick(monotonic_s)
        for carrier in tuple(self.eio.sockets.values()):
            if carrier.closed:
                continue
            window = self._entrance.windows.get(carrier.sid)
            # A replay waits for its window and loses patience by itself.
            is_replaying = window is not None and not window.is_live
            if (
                not is_replaying
                and carrier.waiting_bytes > self._options.bounds.outbound_bytes
            ):
                # It asks and pongs but does not read: answers and pings pile up.
                self._close_session(carrier, Closing.SLOW)
                continue
            if window is not None:
                self._check_expiry(window, now_s)
            elif (
                carrier.sid not in self._entrance.entered
                and monotonic_s - carrier.opened_s > self._options.bounds.connect_s
            ):
                # A session that never says who it is (traps 1.2, row 6).
                carrier.end(self.reason.SERVER_DISCONNECT, abort=True)
        self._metrics.windows.set(len(self.rooms))
        self._metrics.users.set(len(tuple(self.rooms.users)))

    def _check_expiry(self, window: Window, now_s: float) -> None:
        expires_s = window.identity.expires_s
        if expires_s is None:
            return
        left_s = expires_s - now_s
        if left_s <= -self._options.leeway_s:
            self.close(window, Closing.EXPIRED)
        elif left_s <= window.warning_s and not window.is_warned:
            window.is_warned = True
            window.tell(EVENT_EXPIRING, {"in_s": max(0, int(left_s))})

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        if self._tasks is None:  # going down: the window is about to end as well
            work.close()
        else:
            self._tasks.create_task(work, name=name)

    # --- packets from pages

    async def take(self, carrier: Carrier, text: str) -> None:
        """Do what a packet from a page asks for. Never raises."""
        try:
            packet = packets.parse_packet(text)
        except ValueError:
            self.ignore()
            carrier.end(self.reason.TRANSPORT_ERROR)
            return
        try:
            await self._dispatch(carrier, packet)
        except Exception:
            log.exception("window.request_failed", kind=packet.type.name)
            carrier.end(self.reason.TRANSPORT_ERROR, abort=True)

    async def _dispatch(self, carrier: Carrier, packet: Packet) -> None:
        window = self._entrance.windows.get(carrier.sid)
        if packet.type is PacketType.CONNECT:
            self._start_replay(await self._entrance.connect(carrier, packet))
        elif packet.namespace != "/":
            self.ignore()
        elif packet.type is PacketType.DISCONNECT:
            carrier.end(self.reason.CLIENT_DISCONNECT)
        elif packet.type is PacketType.EVENT and carrier.sid in self._entrance.entered:
            await self._event(carrier, window, packet)
        else:
            self.ignore()

    def ignore(self) -> None:
        """Count something from a page that means nothing to the bridge."""
        self._metrics.ignored.inc()

    def flooded(self, carrier: Carrier) -> None:
        """Close a page that sends more than it may."""
        self._close_session(carrier, Closing.FLOODING)

    def left(self, carrier: Carrier, reason: str) -> None:
        """Forget the window of a session that ended."""
        window = self._entrance.leave(carrier)
        if window is not None:
            log.debug("window.left", user=user_hash(window.user), reason=reason)

    # --- replay

    def _start_replay(self, admitted: Admitted | None) -> None:
        if admitted is not None:
            self._spawn(
                self._replays.sync(admitted.window, admitted.plan), name="replay"
            )

    def _catch_up(self, window: Window) -> None:
        self._spawn(self._replays.catch_up(window), name="catch up")

    # --- events from pages

    async def _event(
        self, carrier: Carrier, window: Window | None, packet: Packet
    ) -> None:
        assert isinstance(packet.data, list)  # noqa: S101 - parse_packet promises it
        name, *arguments = packet.data
        argument = arguments[0] if arguments else None
        answer: dict[str, object]
        try:
            if name == EVENT_ACK and window is not None:
                answer = self._requests.ack(window, argument)
            elif name == EVENT_REFRESH and window is not None:
                answer = await self._requests.refresh(window, argument)
            elif name == EVENT_JOIN:
                answer = await self._join(carrier, window, argument)
            else:
                self.ignore()
                return
        except EventRefusedError as exc:
            answer = {"ok": False, "code": exc.code, "message": str(exc)}
        if packet.id is not None:
            carrier.write_packet("4" + packets.reply(packet.id, answer))

    async def _join(
        self, carrier: Carrier, window: Window | None, argument: object
    ) -> dict[str, object]:
        """Let a page say who it is: the article's way, in open mode alone."""
        if self._verifier is not None:
            raise EventRefusedError(
                EventError.NOT_OPEN, "join works with BRIDGE_AUTH=open alone"
            )
        user = argument.get("username") if isinstance(argument, dict) else None
        problem = user_problem(user) if isinstance(user, str) else "is not a string"
        if problem or not isinstance(user, str):
            raise EventRefusedError(EventError.BAD_USER, f"username {problem}")
        if window is not None:
            if window.user == user:
                return {"ok": True}
            raise EventRefusedError(
                EventError.BAD_USER, "this window has joined as another user"
            )
        auth = self._entrance.entered[carrier.sid]
        try:
            admitted = await self._entrance.admit(carrier, Identity(user, None), auth)
        except ClientError as exc:
            raise EventRefusedError(EventError.NOT_AVAILABLE, str(exc)) from exc
        except StoreUnavailableError as exc:
            raise EventRefusedError(
                EventError.NOT_AVAILABLE, Refusal.NOT_AVAILABLE.explanation
            ) from exc
        self._start_replay(admitted)
        return {"ok": True}

    # --- closing

    def close(self, window: Window, code: Closing) -> None:
        """Tell a window why, and close it. It is out of its room when this returns."""
        if window.carrier.closed:
            return
        self._metrics.closed.labels(code=code).inc()
        if code is not Closing.DRAINING:
            log.info("window.closed", user=user_hash(window.user), code=code)
        notice = {"code": code, "reason": code.explanation, "reconnect": code.reconnect}
        window.tell(EVENT_CLOSING, notice)
        if not code.reconnect:
            window.carrier.write_packet("4" + packets.DISCONNECT_PACKET)
        window.carrier.end(self.reason.SERVER_DISCONNECT)

    def _close_session(self, carrier: Carrier, code: Closing) -> None:
        window = self._entrance.windows.get(carrier.sid)
        if window is not None:
            self.close(window, code)
        else:
            carrier.end(self.reason.SERVER_DISCONNECT, abort=True)

    def windows_of(self, user: str) -> list[WindowReport]:
        """Say which windows `user` has, the oldest first."""
        return [window.report() for window in self.rooms.windows_of(user)]

    def kick(self, user: str) -> int:
        """Close all windows of `user`; returns how many there were."""
        windows = self.rooms.windows_of(user)
        for window in windows:
            self.close(window, Closing.KICKED)
        return len(windows)

    async def drain(self, *, within_s: float) -> None:
        """
        Tell all windows to connect elsewhere, in paced batches, and let none in.

        Paced, so that they do not all arrive at the next bridge in one instant; the
        stock client adds its own jitter to that.
        """
        self.is_draining = self._entrance.is_closed = True
        windows = tuple(self.rooms)
        size = max(_DRAIN_BATCH_LEAST, -(-len(windows) // _DRAIN_BATCHES))
        for start in range(0, len(windows), size):
            if start:
                pause_s = within_s / _DRAIN_BATCHES
                await asyncio.sleep(pause_s * (0.5 + secrets.randbelow(500) / 1000))
            for window in windows[start : start + size]:
                self.close(window, Closing.DRAINING)
        for carrier in tuple(self.eio.sockets.values()):
            carrier.end(self.reason.SERVER_DISCONNECT)

    def route(self, app: web.Application) -> None:
        """Serve `/socket.io/` in `app`."""
        self.attach(app, socketio_path="socket.io")
