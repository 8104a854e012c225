"""
The Socket.IO server (protocol version 5): connect, events, expiry and disconnect.

It is the layer above the Engine.IO sessions. A window joins its room only after its token
is verified, as the last step that can fail, so no failure leaves a half-open client in a
room. Recovery works as the stock client expects it.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from time import monotonic, time
from typing import Final

import structlog

from bridge.auth.limited_verifier import LimitedVerifier
from bridge.clock import SteadyClock
from bridge.core import packets
from bridge.core.journal import Journal
from bridge.core.message import Stored
from bridge.core.packets import Packet, PacketType
from bridge.core.revocation import Revocation
from bridge.core.worker_slot import WorkerSlot
from bridge.enums import EVENT_CLOSING, EVENT_EXPIRING, Closing, Refusal
from bridge.inbox.contract import InboxReader
from bridge.logging import user_hash
from bridge.metrics import Metrics
from bridge.sockets.admission import Admission
from bridge.sockets.engineio.server import EngineServer
from bridge.sockets.engineio.session import CloseReason, EngineSession, Work
from bridge.sockets.engineio.websocket import unacknowledged_bytes
from bridge.sockets.options import SocketOptions
from bridge.sockets.page_requests import PageRequests
from bridge.sockets.replay import Replayer
from bridge.sockets.requests import WindowRequests
from bridge.sockets.rooms import Rooms
from bridge.sockets.window import Window, window_of
from bridge.tracing import Tracing

log = structlog.get_logger(__name__)

_DRAIN_STEP_S: Final = 0.1


class SocketIOServer:
    """
    All windows of this bridge.

    `verifier` is `None` in open mode; `slot` is the worker's slot, or `None` if there is
    one worker only; `page_requests` is `None` if pages may send no requests to workers.

    Attributes:
        engine: The Engine.IO server below; it runs all tasks.
        rooms: The windows by user.
        refused_origins: The origins that were refused lately.

    """

    def __init__(
        self,
        options: SocketOptions,
        *,
        inbox: InboxReader,
        verifier: LimitedVerifier | None,
        metrics: Metrics,
        clock: SteadyClock | None = None,
        journal: Journal | None = None,
        tracing: Tracing | None = None,
        slot: WorkerSlot | None = None,
        page_requests: PageRequests | None = None,
        on_presence: Callable[[str], None] | None = None,
    ) -> None:
        self._options = options
        self._inbox = inbox
        self._metrics = metrics
        self.engine = EngineServer(
            self,
            limits=options.limits,
            policy=options.policy,
            metrics=metrics,
            name=options.name,
            slot=slot,
        )
        self.rooms = Rooms(
            metrics,
            outbound_bytes=options.limits.outbound_bytes,
            catch_up=self._catch_up,
            clock=clock or SteadyClock(),
            tracked=lambda: inbox.tracked,
            on_presence=on_presence,
            journal=journal,
            tracing=tracing,
        )
        self._replayer = Replayer(
            options,
            rooms=self.rooms,
            inbox=inbox,
            metrics=metrics,
            engine=self.engine,
            close=self.close_window,
        )
        self._verifier = verifier
        self._admission = Admission(
            options,
            rooms=self.rooms,
            replayer=self._replayer,
            inbox=inbox,
            verifier=verifier,
            metrics=metrics,
        )
        self._requests = WindowRequests(
            inbox,
            verifier,
            admission=self._admission,
            journal=self.rooms.journal,
            metrics=metrics,
            page_requests=page_requests,
        )
        self.refused_origins = self._admission.refused_origins
        inbox.subscribe(
            self.rooms.emit, self.reset, self.rooms.emit_ephemeral, self.revoke
        )
        metrics.windows.set_function(lambda: len(self.rooms))
        metrics.users.set_function(lambda: self.rooms.user_count)

    def apply(self, options: SocketOptions) -> None:
        """Use reloaded options; the name and the timing of pings need a restart."""
        self._options = options
        self.engine.apply(options.limits, options.policy)
        self.rooms.limit_outbound(options.limits.outbound_bytes)
        self._replayer.apply(options)
        self._admission.apply(options)

    def _catch_up(self, window: Window, late: Sequence[Stored]) -> None:
        self._replayer.catch_up(window, late)

    # --- sessions (the methods of SessionHandler)

    def is_suspended(self, address: str) -> bool:
        """Return whether an address has presented too many invalid tokens."""
        return self._verifier is not None and self._verifier.is_suspended(address)

    def message_received(self, session: EngineSession, text: str) -> Work | None:
        """Process a packet; a returned coroutine delays the client's next packet."""
        window = window_of(session)
        if window is not None and window.is_proof_due:
            self._count_written(window, "the page sent a packet after it")
        if packets.is_binary(text):
            self.binary_received(session)
            return None
        try:
            packet = packets.parse_packet(text)
        except ValueError:
            self._metrics.ignored.inc()
            session.close(CloseReason.TRANSPORT_ERROR)
            return None
        if packet.type is PacketType.CONNECT:
            work = self._admission.connect(session, packet)
            return self._log_failure(session, packet, work)
        if packet.namespace != "/":
            self._metrics.ignored.inc()
        elif packet.type is PacketType.DISCONNECT:
            session.close_for_client()
        elif packet.type is PacketType.EVENT and session.client is not None:
            request = self._requests.process(session, packet)
            return request and self._log_failure(session, packet, request)
        else:
            self._metrics.ignored.inc()
        return None

    async def _log_failure(
        self, session: EngineSession, packet: Packet, work: Work
    ) -> None:
        try:
            await work
        except Exception:
            log.exception("window.request_failed", kind=packet.type.name)
            session.close(CloseReason.TRANSPORT_ERROR, abort=True)

    def binary_received(self, session: EngineSession) -> None:
        """Close a window that sends binary data, or refuse a client that starts so."""
        self._metrics.ignored.inc()
        window = window_of(session)
        if window is not None:
            self.close_window(window, Closing.BINARY_NOT_SUPPORTED)
        elif session.client is None:
            self._metrics.refused.labels(code=Refusal.BINARY_NOT_SUPPORTED).inc()
            session.send_binary(packets.binary_refusal())
        else:  # in open mode, before `join`
            session.close(CloseReason.TRANSPORT_ERROR)

    def take_expected_replies(self, session: EngineSession) -> int:
        """Return how many messages were written past the session since the last call."""
        window = window_of(session)
        return 0 if window is None else window.take_expected_replies()

    def messages_received(self, session: EngineSession, offset: int) -> None:
        """Count the messages of a poll's response as delivered."""
        window = window_of(session)
        if window is not None:
            self._count(window, offset, "the page polled again after it")

    def ping_sent(self, session: EngineSession) -> None:
        """Note which messages the client has received if it answers the ping."""
        window = window_of(session)
        if window is not None:
            window.note_ping(self.rooms.received(window))

    def pong_received(self, session: EngineSession) -> None:
        """Count the messages before the ping as delivered: clients read in order."""
        window = window_of(session)
        if window is None:
            return
        pinged = window.take_pinged()
        if pinged is not None:
            self._count(window, pinged, "the page answered a ping after it")
        else:
            self._count_written(window, "the page sent a packet after it")
        self.rooms.ask_for_proof(window)

    def client_closing(self, session: EngineSession) -> None:
        """Count what was written: a page closes its connection while it is alive."""
        window = window_of(session)
        if window is not None:
            self._count_written(window, "the page closed its connection after it")

    def _count_written(self, window: Window, text: str) -> None:
        """
        Count everything written over a WebSocket as delivered, unless it is under way.

        Bytes that the next machine has not acknowledged may have crossed with what the
        page sent; the next pong counts their messages. Polls count by themselves.
        """
        transport = window.session.transport
        if transport is not None and not unacknowledged_bytes(transport):
            self._count(window, self.rooms.received(window), text)

    def _count(self, window: Window, offset: int, text: str) -> None:
        if window.deliver(offset):
            user = window.user
            self._inbox.mark_delivered(user, offset)
            self.rooms.journal.delivered(user, offset, at_s=time(), text=text)

    def limit_exceeded(self, session: EngineSession, code: Closing) -> None:
        """Close a session that exceeds a limit."""
        window = window_of(session)
        if window is not None:
            self.close_window(window, code)
        else:
            session.close(CloseReason.SERVER_DISCONNECT, abort=True)

    def session_checked(self, session: EngineSession, real_s: float) -> None:
        """Warn a window before its token expires, and close it after that."""
        window = window_of(session)
        if window is None or window.expires_real_s is None:
            return
        left_s = window.expires_real_s - real_s
        if left_s <= -self._options.leeway_s:
            self.close_window(window, Closing.EXPIRED)
        elif left_s <= window.warning_s and not window.is_warned:
            window.is_warned = True
            window.send_event(EVENT_EXPIRING, {"in_s": max(0, int(left_s))})

    def session_closed(self, session: EngineSession, reason: str) -> None:
        """Remove the window over a closed session from its room."""
        window = self._admission.leave(session)
        if window is not None:
            log.debug("window.disconnected", user=user_hash(window.user), reason=reason)

    # --- closing windows

    def close_window(
        self, window: Window, code: Closing, *, reason: str | None = None
    ) -> None:
        """
        Send `bridge:closing` and close the window; it has left its room on return.

        `reason` replaces the usual text for people.
        """
        if window.session.is_closed:
            return
        self._metrics.closed.labels(code=code).inc()
        if code is not Closing.DRAINING:
            log.info("window.closed", user=user_hash(window.user), code=code)
        text = reason or code.explanation
        notice = {"code": code, "reason": text, "reconnect": code.reconnect}
        window.send_event(EVENT_CLOSING, notice)
        if not code.reconnect:
            window.session.send(packets.DISCONNECT_PACKET)
        window.session.close(CloseReason.SERVER_DISCONNECT)

    def kick(self, user: str, *, reason: str | None = None) -> int:
        """Close all windows of `user`; returns how many there were."""
        windows = self.rooms.windows_of(user)
        for window in windows:
            self.close_window(window, Closing.KICKED, reason=reason)
        return len(windows)

    def revoke(self, revocation: Revocation) -> None:
        """Close the windows whose tokens are revoked; the store has the revocation."""
        for window in self.rooms.windows_of(revocation.user):
            if revocation.covers(window.identity):
                self.close_window(window, Closing.REVOKED)

    def reset(self, users: Sequence[str]) -> None:
        """
        Close the windows of users whose inboxes have a new epoch.

        They reconnect with positions of the old epoch and are notified of the loss.
        """
        for user in users:
            self.rooms.reset(user)
            for window in self.rooms.windows_of(user):
                self.close_window(window, Closing.UNAVAILABLE)

    async def drain(self, *, within_s: float, per_s: float) -> None:
        """
        Admit no more windows, and close all of them in paced batches.

        The pace keeps them from reaching the next bridge in one instant; the stock client
        adds jitter of its own.

        Args:
            within_s: The longest time that it may take; many windows raise the pace.
            per_s: Windows closed per second if that is enough for `within_s`.

        """
        self.engine.stop_accepting()
        self._admission.close()
        windows = tuple(self.rooms)
        pace = max(per_s, len(windows) / within_s)
        size = max(1, round(pace * _DRAIN_STEP_S))
        started_s = monotonic()
        for start in range(0, len(windows), size):
            if start:
                # The schedule is absolute, whatever a batch costs. The random delay keeps
                # bridges that drain at the same time out of step.
                due_s = (
                    started_s + (start - size * secrets.randbelow(500) / 1000) / pace
                )
                await asyncio.sleep(max(0.0, due_s - monotonic()))
            for window in windows[start : start + size]:
                self.close_window(window, Closing.DRAINING)
        for session in tuple(self.engine.sessions.values()):
            session.close(CloseReason.SERVER_DISCONNECT)
