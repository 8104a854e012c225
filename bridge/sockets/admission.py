"""
Admission: authenticate and limit a connecting client, then join it to its user's room.

Joining comes last and awaits nothing. So a failure before it leaves nothing in a room, and
the state of the session is checked in the same step as it changes.
"""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from time import time
from typing import Final

import structlog

from bridge.auth.limited_verifier import LimitedVerifier
from bridge.core import packets
from bridge.core.identity import (
    ConnectOptions,
    Identity,
    parse_connect_auth,
    request_token,
)
from bridge.core.packets import Packet
from bridge.core.position import (
    Position,
    parse_recovery_id,
    render_recovery_id,
    user_epoch,
)
from bridge.core.refused_origins import RefusedOrigins
from bridge.core.replay import ReplayPlan, plan_replay
from bridge.enums import Refusal
from bridge.errors import KeysUnavailableError, RefusedError, StoreUnavailableError
from bridge.inbox.contract import InboxReader
from bridge.metrics import Metrics
from bridge.sockets.engineio.session import CloseReason, EngineSession
from bridge.sockets.options import SocketOptions
from bridge.sockets.replay import Replayer
from bridge.sockets.rooms import Rooms
from bridge.sockets.window import Guest, Window, window_of

log = structlog.get_logger(__name__)

# A page connects again with a new token; the stock client opens a new session for that.
_REFUSALS_MAX: Final = 5
_ALREADY_CONNECTED: Final = "this session is connected already"


class Admission:
    """
    Turns sessions into windows. `verifier` is `None` in open mode.

    In open mode a session is connected without a user at first; the event `join` names
    the user.

    Attributes:
        refused_origins: The origins that were refused lately.

    """

    def __init__(
        self,
        options: SocketOptions,
        *,
        rooms: Rooms,
        replayer: Replayer,
        inbox: InboxReader,
        verifier: LimitedVerifier | None,
        metrics: Metrics,
    ) -> None:
        self.refused_origins = RefusedOrigins()
        self._options = options
        self._rooms = rooms
        self._replayer = replayer
        self._inbox = inbox
        self._verifier = verifier
        self._metrics = metrics
        # To find a counter by its label takes twenty times as long as to count.
        self._connects = {
            recovered: metrics.connects.labels(recovered=str(recovered).lower())
            for recovered in (False, True)
        }
        self._is_open = True
        # How often each session without a client was refused.
        self._refusals: dict[EngineSession, int] = {}

    def apply(self, options: SocketOptions) -> None:
        """Use reloaded options for new windows."""
        self._options = options

    def close(self) -> None:
        """Refuse all clients from now on."""
        self._is_open = False

    async def connect(self, session: EngineSession, packet: Packet) -> None:
        """Process a CONNECT packet: reply to it and admit the client, or refuse it."""
        try:
            self._check(session, packet)
            client = Guest(secrets.token_urlsafe(15), parse_connect_auth(packet.data))
            if self._verifier is None:
                session.attach(client)
                session.send(packets.connect_reply(client.sid, None))
                return
            identity = await self._authenticate(session, client.options, self._verifier)
            await self.admit(session, identity, client)
        except RefusedError as exc:
            self._refuse(session, packet.namespace, exc.code, str(exc))
        except KeysUnavailableError as exc:
            # The key set logs each failed fetch. Any client can invent the name of a key.
            log.debug("window.keys_unavailable", error=str(exc))
            self._refuse(session, packet.namespace, Refusal.KEYS_UNAVAILABLE)
        except StoreUnavailableError as exc:
            # The store logs an outage once; thousands of windows may reconnect during it.
            log.debug("window.store_unavailable", error=str(exc))
            self._refuse(session, packet.namespace, Refusal.NOT_AVAILABLE)

    def _check(self, session: EngineSession, packet: Packet) -> None:
        if packet.namespace != "/":
            raise RefusedError(Refusal.BAD_REQUEST, "only the namespace / is served")
        request = session.request
        if request is not None and not request.is_origin_allowed:
            self.refused_origins.note(request.origin, time())
            raise RefusedError(Refusal.ORIGIN_NOT_ALLOWED)
        if not self._is_open:
            raise RefusedError(Refusal.DRAINING)
        if session.client is not None:
            raise RefusedError(Refusal.BAD_REQUEST, _ALREADY_CONNECTED)

    async def _authenticate(
        self, session: EngineSession, options: ConnectOptions, verifier: LimitedVerifier
    ) -> Identity:
        token, request = options.token, session.request
        if token is None and request is not None:
            token = request_token(
                request.authorization, request.cookies, self._options.cookie
            )
        if not token:
            raise RefusedError(Refusal.TOKEN_MISSING)
        return await verifier.verify(token, address=session.counted_as)

    async def admit(
        self, session: EngineSession, identity: Identity, client: Guest
    ) -> None:
        """
        Join a client to its user's room and start its replay.

        Does nothing if the session has been closed meanwhile.

        Raises:
            RefusedError: If the user has too many windows, the session is one already, or
                the token is revoked.
            StoreUnavailableError: If the inbox cannot be read now.

        """
        user, options = identity.user, client.options
        if not self._rooms.reserve(user, at_most=self._options.max_windows_per_user):
            raise RefusedError(Refusal.TOO_MANY_WINDOWS)
        try:
            await self._inbox.follow(user)
            state = await self._inbox.state(user)
            epoch = user_epoch(state.epoch, user)
            plan = plan_replay(options.position, state, epoch=epoch)
            kept_id = await self._kept_recovery_id(user, options, plan)
            # During these awaits the client may have connected a second time or left.
            if window_of(session) is not None:
                raise RefusedError(Refusal.BAD_REQUEST, _ALREADY_CONNECTED)
            if session.is_closed:
                return
            self.check_revocations(identity)
            # A position after the start of a window proves that it has the retained messages.
            if state.retained and (
                kept_id is None or options.position == parse_recovery_id(kept_id)
            ):
                plan = replace(plan, sends_retained=True)
            window = Window(
                client.sid,
                session,
                identity,
                epoch=epoch,
                offset=plan.after,
                delivered=state.delivered,
                has_manual_acks=options.has_manual_acks,
                connected_s=time(),
            )
            replies = self._join(window, kept_id=kept_id)
        finally:
            if self._rooms.release(user):
                self._inbox.unfollow(user)
        self._replayer.start(window, plan, last=state.last, replies=replies)

    def check_revocations(self, identity: Identity) -> None:
        """
        Check that the token of `identity` is not revoked, as of the last read of the user.

        The race: a revocation is stored while its user connects. The store reports it in the
        event loop: either before this check, which then finds it, or after the window has
        joined its room, and then the window is closed. So no `await` may be between this
        check and the join, and the user's state must have been read before, after the token
        was received: the read fails if the store is away, so nothing is admitted unchecked.

        Raises:
            RefusedError: If it is revoked.

        """
        if self._inbox.is_revoked(identity):
            raise RefusedError(Refusal.TOKEN_REVOKED)

    async def _kept_recovery_id(
        self, user: str, options: ConnectOptions, plan: ReplayPlan
    ) -> str | None:
        """
        Return the recovery id of a client that has missed nothing, otherwise `None`.

        The same id in the reply means "recovered" to the stock client. Messages that the
        replay will skip count as missed. Messages that expire during the replay cannot be
        foreseen; `bridge:sync` reports them.
        """
        if options.recovery_id is None or not plan.is_complete:
            return None
        if await self._inbox.count_expired(user, after=plan.after):
            return None
        return options.recovery_id

    def _join(self, window: Window, *, kept_id: str | None) -> Sequence[str]:
        """Add `window` to its room; return the replies that are to be sent first."""
        session = window.session
        is_new = session.client is None
        session.attach(window)
        self._rooms.join(window)
        recovery_id = kept_id or render_recovery_id(
            Position(window.epoch, window.offset), secrets.token_urlsafe(9)
        )
        self._connects[bool(kept_id)].inc()
        # In open mode the session is connected and the CONNECT is answered already.
        return (packets.connect_reply(window.sid, recovery_id),) if is_new else ()

    def _refuse(
        self, session: EngineSession, namespace: str, code: Refusal, text: str = ""
    ) -> None:
        self._metrics.refused.labels(code=code).inc()
        log.debug("window.refused", code=code, address=session.address)
        data: dict[str, object] = {"code": code, "temporary": code.is_temporary}
        session.send(packets.connect_error(namespace, text or code.explanation, data))
        if session.client is not None or session.is_closed:
            return  # the rate limit of its packets applies
        count = self._refusals[session] = self._refusals.get(session, 0) + 1
        if count >= _REFUSALS_MAX:
            session.close(CloseReason.SERVER_DISCONNECT)

    def leave(self, session: EngineSession) -> Window | None:
        """Remove the window over a closed session from its room, and return it."""
        self._refusals.pop(session, None)
        window = session.detach()
        if not isinstance(window, Window):
            return None
        if self._rooms.leave(window):
            self._inbox.unfollow(window.user)
        return window
