"""
The life of a window: verify, join, reply, replay, live, close.

Socket.io, protocol version 5. A window joins its room only after its token was verified,
as the last thing that can fail; recovery is as the stock client knows it; no handler can
leave a half-open client in a room (traps 1.2, row 2).
"""

import asyncio
import secrets
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from time import monotonic, time
from typing import Any, Final

import structlog
from aiohttp import web

from bridge.core import packets
from bridge.core.journal import Journal
from bridge.core.packets import Packet, PacketType
from bridge.core.worker_slot import Workplace
from bridge.enums import (
    EVENT_CLOSING,
    EVENT_EXPIRING,
    Closing,
)
from bridge.inbox.contract import InboxReader
from bridge.logging import user_hash
from bridge.metrics import Metrics
from bridge.sockets.admission import Admitted, Entrance, Verifier
from bridge.sockets.engineio.fd_passing import Handover
from bridge.sockets.engineio.listener import FrontDoors, FrontSite
from bridge.sockets.engineio.server import Admission, Bounds, Engine
from bridge.sockets.engineio.session import Carrier, Ending
from bridge.sockets.replay import Replays
from bridge.sockets.requests import WindowRequests
from bridge.sockets.rooms import Rooms
from bridge.sockets.window import Window, WindowReport
from bridge.tracing import Tracing

log = structlog.get_logger(__name__)

_TICK_S: Final = 1.0
_TICK_STEPS: Final = 10  # at most: few sessions are no reason to wake up ten times
_SESSIONS_A_STEP: Final = 100
_DRAIN_STEP_S: Final = 0.1


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
        name: Of this bridge, told in the ids of its sessions; may be empty.

    """

    bounds: Bounds
    admission: Admission
    ping_interval_s: int
    ping_timeout_s: int
    max_event_bytes: int
    cookie: str
    leeway_s: float
    name: str = ""


class BridgeServer:
    """
    All windows of this bridge.

    `verifier` is `None` in open mode, where a page says itself who it is; `place` is
    `None` where there is one worker alone.
    """

    def __init__(
        self,
        options: ServerOptions,
        *,
        inbox: InboxReader,
        verifier: Verifier | None,
        metrics: Metrics,
        journal: Journal | None = None,
        tracing: Tracing | None = None,
        place: Workplace | None = None,
    ) -> None:
        self.rooms = Rooms(
            metrics,
            journal=journal,
            tracing=tracing,
            mark_delivered=inbox.mark_delivered,
            catch_up=self._catch_up,
        )
        self.engine = Engine(
            self,
            bounds=options.bounds,
            admission=options.admission,
            ping_interval_s=options.ping_interval_s,
            ping_timeout_s=options.ping_timeout_s,
            max_event_bytes=options.max_event_bytes,
            name=options.name,
        )
        self.doors = FrontDoors(self.engine)
        self._handover = Handover(place, self.doors) if place else None
        self.engine.neighbours = self._handover
        self._inbox = inbox
        self._verifier = verifier
        self._metrics = metrics
        self._entrance = Entrance(
            rooms=self.rooms, inbox=inbox, verifier=verifier, metrics=metrics
        )
        self.refused_origins = self._entrance.refused_origins
        self._requests = WindowRequests(
            inbox,
            verifier,
            entrance=self._entrance,
            admitted=self._start_replay,
            ignore=self.ignore,
        )
        self._replays = Replays(
            rooms=self.rooms, inbox=inbox, metrics=metrics, close=self.close
        )
        self._tasks: asyncio.TaskGroup | None = None
        self.is_draining = False
        inbox.subscribe(self.rooms.feed, self.renew)
        self.apply(options)

    def apply(self, options: ServerOptions) -> None:
        """Use `options` from now on; pings and sizes of open sessions stay."""
        self._options = options
        self.engine.bounds = options.bounds
        self.engine.admission = options.admission
        self._entrance.cookie = options.cookie
        self._entrance.windows_per_user = options.bounds.windows_per_user
        self.rooms.outbound_bytes = options.bounds.outbound_bytes
        self._replays.page_bytes = options.bounds.outbound_bytes // 4
        self._replays.patience_s = options.ping_timeout_s

    # --- running

    async def run(self) -> None:
        """
        Keep time for all windows, and be the parent of their tasks.

        Cancellation: ends the tasks; windows stay open until `drain` or the transport
        ends them.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            if self._handover is not None:
                tasks.create_task(self._handover.run(), name="handovers")
            try:
                while True:
                    await self._pass()
            finally:
                self._tasks = None

    async def _pass(self) -> None:
        """Look at all sessions once in `_TICK_S`, at a few at a time: nobody waits."""
        carriers = tuple(self.engine.carriers.values())
        steps = min(_TICK_STEPS, len(carriers) // _SESSIONS_A_STEP + 1)
        size = -(-len(carriers) // steps)
        for step in range(steps):
            await asyncio.sleep(_TICK_S / steps)
            now_s, monotonic_s = time(), monotonic()
            for carrier in carriers[step * size : (step + 1) * size]:
                self._look_at(carrier, monotonic_s=monotonic_s, now_s=now_s)
        self.doors.tick(monotonic())
        self._metrics.windows.set(len(self.rooms))
        self._metrics.users.set(self.rooms.user_count)

    def tick(self, *, monotonic_s: float, now_s: float) -> None:
        """Do what is due: pings, unfinished connects, expired tokens."""
        for carrier in tuple(self.engine.carriers.values()):
            self._look_at(carrier, monotonic_s=monotonic_s, now_s=now_s)
        self.doors.tick(monotonic_s)

    def _look_at(self, carrier: Carrier, *, monotonic_s: float, now_s: float) -> None:
        self.engine.tick(carrier, monotonic_s)
        if carrier.closed:
            return
        window = carrier.window
        if carrier.has_too_much:
            # It asks and pongs but does not read: answers and pings pile up.
            self._close_session(carrier, Closing.SLOW)
        elif window is not None:
            self._check_expiry(window, now_s)
        elif (
            carrier.auth is None
            and monotonic_s - carrier.opened_s > self._options.bounds.connect_s
        ):
            # A session that never says who it is (traps 1.2, row 6).
            carrier.end(Ending.SERVER_DISCONNECT, abort=True)

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

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Do `work`, which takes time and never raises, as a task of this server's."""
        if self._tasks is None:  # as in `take`
            work.close()
        else:
            self._tasks.create_task(work, name=name)

    # --- packets from pages

    def take(self, carrier: Carrier, text: str) -> Coroutine[Any, Any, None] | None:
        """
        Do what a packet from a page asks for. Never raises.

        Returns:
            What takes time; the page's next packet has to wait for it.

        """
        if self._tasks is None:  # going down: the session is about to end as well
            return None
        try:
            packet = packets.parse_packet(text)
        except ValueError:
            self.ignore()
            carrier.end(Ending.TRANSPORT_ERROR)
            return None
        if packet.type is PacketType.CONNECT:
            return self._guarded(carrier, packet, self._connect(carrier, packet))
        if packet.namespace != "/":
            self.ignore()
        elif packet.type is PacketType.DISCONNECT:
            carrier.end(Ending.CLIENT_DISCONNECT)
        elif packet.type is PacketType.EVENT and carrier.auth is not None:
            work = self._requests.take(carrier, packet)
            return work and self._guarded(carrier, packet, work)
        else:
            self.ignore()
        return None

    async def _guarded(
        self, carrier: Carrier, packet: Packet, work: Coroutine[Any, Any, None]
    ) -> None:
        try:
            await work
        except Exception:
            log.exception("window.request_failed", kind=packet.type.name)
            carrier.end(Ending.TRANSPORT_ERROR, abort=True)

    async def _connect(self, carrier: Carrier, packet: Packet) -> None:
        self._start_replay(await self._entrance.connect(carrier, packet))

    def ignore(self) -> None:
        """Count something from a page that means nothing to the bridge."""
        self._metrics.ignored.inc()

    def flooded(self, carrier: Carrier) -> None:
        """Close a page that sends more than it may."""
        self._close_session(carrier, Closing.FLOODING)

    def fetched(self, window: Window, offset: int) -> None:
        """Count messages that a polling page took with it as delivered."""
        if not window.has_manual_acks:
            self._inbox.mark_delivered(window.user, offset)
            self.rooms.journal.delivered(
                window.user,
                offset,
                at_s=time(),
                text="a polling page fetched it, or one behind it",
            )

    def left(self, carrier: Carrier, reason: str) -> None:
        """Forget the window of a session that ended."""
        window = self._entrance.leave(carrier)
        if window is not None:
            log.debug("window.left", user=user_hash(window.user), reason=reason)

    # --- replay

    def _start_replay(self, admitted: Admitted | None) -> None:
        if admitted is None:
            return
        window, plan = admitted.window, admitted.plan
        if not self._replays.sync_at_once(window, plan, last=admitted.last):
            self.spawn(self._replays.sync(window, plan), name="replay")

    def _catch_up(self, window: Window) -> None:
        self.spawn(self._replays.catch_up(window), name="catch up")

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
        window.carrier.end(Ending.SERVER_DISCONNECT)

    def _close_session(self, carrier: Carrier, code: Closing) -> None:
        window = carrier.window
        if window is not None:
            self.close(window, code)
        else:
            carrier.end(Ending.SERVER_DISCONNECT, abort=True)

    def windows_of(self, user: str) -> list[WindowReport]:
        """Say which windows `user` has, the oldest first."""
        return [window.report() for window in self.rooms.windows_of(user)]

    def kick(self, user: str) -> int:
        """Close all windows of `user`; returns how many there were."""
        windows = self.rooms.windows_of(user)
        for window in windows:
            self.close(window, Closing.KICKED)
        return len(windows)

    def renew(self, users: Sequence[str]) -> None:
        """
        Close the windows of users whose inboxes are of a new life.

        They come back with positions that mean nothing any more, and are told so.
        """
        for user in users:
            self.rooms.renew(user)
            for window in self.rooms.windows_of(user):
                self.close(window, Closing.UNAVAILABLE)

    def open_no_more(self) -> None:
        """Open no new sessions; those that are there go on, to windows too."""
        self.is_draining = True

    async def drain(self, *, within_s: float, per_s: float) -> None:
        """
        Tell all windows to connect elsewhere, in paced batches, and let none in.

        Paced, so that they do not all arrive at the next bridge in one instant; the
        stock client adds its own jitter to that.

        Args:
            within_s: The longest that it may take; with many windows it sets the pace.
            per_s: Windows to be told in a second, if that is enough for `within_s`.

        """
        self.is_draining = self._entrance.is_closed = True
        windows = tuple(self.rooms)
        pace = max(per_s, len(windows) / within_s)
        size = max(1, round(pace * _DRAIN_STEP_S))
        began_s = monotonic()
        for start in range(0, len(windows), size):
            if start:
                # In step with the clock whatever a batch costs; some later than others,
                # so that bridges that leave together do not keep in step.
                due_s = began_s + (start - size * secrets.randbelow(500) / 1000) / pace
                await asyncio.sleep(max(0.0, due_s - monotonic()))
            for window in windows[start : start + size]:
                self.close(window, Closing.DRAINING)
        for carrier in tuple(self.engine.carriers.values()):
            carrier.end(Ending.SERVER_DISCONNECT)

    def route(self, app: web.Application) -> None:
        """Serve `/socket.io/` in `app`."""
        self.engine.route(app, "/socket.io/")
        app.on_shutdown.append(self._shut)

    async def _shut(self, _app: web.Application) -> None:
        self.doors.shut()
        self.engine.shut()

    def site(self, runner: web.BaseRunner, host: str, port: int) -> web.BaseSite:
        """Return where connections to the app of `runner` come in, to be started."""
        is_shared = self._handover is not None
        return FrontSite(runner, host, port, doors=self.doors, is_shared=is_shared)
