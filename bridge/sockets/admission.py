"""
How a session becomes a window: verify, keep a place, look at the inbox, join, reply.

Joining is the last thing and awaits nothing, so whatever fails before it leaves nothing
in a room (traps 1.2, row 2), and whatever happens meanwhile is seen.
"""

import secrets
from dataclasses import dataclass, replace
from time import time
from typing import Final, Protocol

import structlog

from bridge.core import packets
from bridge.core.identity import ConnectOptions, Identity, parse_connect_auth
from bridge.core.packets import Packet
from bridge.core.position import Position, render_recovery_id, user_epoch
from bridge.core.refused_origins import RefusedOrigins
from bridge.core.replay import ReplayPlan, plan_replay
from bridge.enums import Refusal
from bridge.errors import KeysUnavailableError, RefusedError, StoreUnavailableError
from bridge.inbox.contract import InboxReader
from bridge.metrics import Metrics
from bridge.sockets.engineio.session import Carrier
from bridge.sockets.rooms import Rooms
from bridge.sockets.window import Window

log = structlog.get_logger(__name__)

_LET_IN: Final = ConnectOptions()
_TWICE: Final = "this connection is a window already"


@dataclass(frozen=True, slots=True)
class Admitted:
    """
    A window in its room, its gate closed, and what it has yet to get.

    Attributes:
        last: The newest offset of its inbox when that was looked at.

    """

    window: Window
    plan: ReplayPlan
    last: int


class Verifier(Protocol):
    """Checks tokens (the room `auth`)."""

    async def verify(self, token: str) -> Identity:
        """Return whose token it is; RefusedError, KeysUnavailableError otherwise."""


class Entrance:
    """
    Where pages come in. `verifier` is `None` in open mode.

    Attributes:
        cookie: Name of the cookie that may hold a token.
        windows_per_user: At a time.
        is_closed: Whether nobody is let in any more.
        refused_origins: Whose pages were refused lately.

    """

    def __init__(
        self,
        *,
        rooms: Rooms,
        inbox: InboxReader,
        verifier: Verifier | None,
        metrics: Metrics,
    ) -> None:
        self.journal = rooms.journal
        self.refused_origins = RefusedOrigins()
        self._rooms = rooms
        self._inbox = inbox
        self._verifier = verifier
        self._metrics = metrics
        self.cookie = ""
        self.windows_per_user = 0
        self.is_closed = False

    async def connect(self, carrier: Carrier, packet: Packet) -> Admitted | None:
        """
        Answer a CONNECT packet.

        Returns:
            `None` if the page was refused, is gone, or has yet to join (open mode).

        """
        try:
            self._check(carrier, packet)
            auth = parse_connect_auth(packet.data)
            if self._verifier is not None:
                identity = await self._identify(carrier, auth, self._verifier)
                return await self.admit(carrier, identity, auth)
            carrier.auth = auth
            carrier.write_packet("4" + packets.connect_reply(carrier.sid, None))
        except RefusedError as exc:
            self._refuse(carrier, packet.namespace, exc.code, str(exc))
        except KeysUnavailableError as exc:
            log.warning("window.keys_unavailable", error=str(exc))
            self._refuse(carrier, packet.namespace, Refusal.KEYS_UNAVAILABLE)
        except StoreUnavailableError as exc:
            # The store's own line says so once; thousands of windows may come again.
            log.debug("window.store_unavailable", error=str(exc))
            self._refuse(carrier, packet.namespace, Refusal.NOT_AVAILABLE)
        return None

    def _check(self, carrier: Carrier, packet: Packet) -> None:
        if packet.namespace != "/":
            raise RefusedError(Refusal.BAD_REQUEST, "only the namespace / is served")
        if carrier.caller is not None and not carrier.caller.is_origin_allowed:
            self.refused_origins.note(carrier.caller.origin, time())
            raise RefusedError(Refusal.ORIGIN_NOT_ALLOWED)
        if self.is_closed:
            raise RefusedError(Refusal.DRAINING)
        if carrier.auth is not None:
            raise RefusedError(Refusal.BAD_REQUEST, _TWICE)

    async def _identify(
        self, carrier: Carrier, auth: ConnectOptions, verifier: Verifier
    ) -> Identity:
        caller = carrier.caller
        token = auth.token or (caller and caller.token(self.cookie))
        if not token:
            raise RefusedError(Refusal.TOKEN_MISSING)
        return await verifier.verify(token)

    async def admit(
        self, carrier: Carrier, identity: Identity, auth: ConnectOptions
    ) -> Admitted | None:
        """
        Let a page into its user's room.

        Returns:
            `None` if the page is gone.

        Raises:
            RefusedError: If the user has too many windows, or this is one already.
            StoreUnavailableError: If the inbox cannot be read now.

        """
        user = identity.user
        if not self._rooms.expect(user, at_most=self.windows_per_user):
            raise RefusedError(Refusal.TOO_MANY_WINDOWS)
        try:
            await self._inbox.follow(user)
            state = await self._inbox.state(user)
            state = replace(state, epoch=user_epoch(state.epoch, user))
            plan = plan_replay(auth.position, state)
            kept_id = await self._id_to_keep(user, auth, plan)
            # Meanwhile the page may have asked twice, or left.
            if carrier.window is not None:
                raise RefusedError(Refusal.BAD_REQUEST, _TWICE)
            if carrier.closed:
                return None
            window = Window(
                secrets.token_urlsafe(15),
                carrier,
                identity,
                epoch=state.epoch,
                offset=plan.after,
                has_manual_acks=auth.has_manual_acks,
                connected_s=time(),
            )
            admitted = Admitted(window, plan, state.last)
            self._let_in(admitted, kept_id=kept_id)
            return admitted
        finally:
            if self._rooms.expect_no_more(user):
                self._inbox.unfollow(user)

    async def _id_to_keep(
        self, user: str, auth: ConnectOptions, plan: ReplayPlan
    ) -> str | None:
        """
        Return the recovery id of a page that has missed nothing: the same once more.

        It says so to the stock client. What replay will leave out counts as missed; what
        expires while it is going on, only `bridge:sync` can tell.
        """
        if auth.recovery_id is None or not plan.is_complete:
            return None
        if await self._inbox.count_expired(user, after=plan.after):
            return None
        return auth.recovery_id

    def _let_in(self, admitted: Admitted, *, kept_id: str | None) -> None:
        window = admitted.window
        carrier = window.carrier
        began_at = Position(window.epoch, admitted.plan.after)
        recovery_id = kept_id or render_recovery_id(began_at, secrets.token_urlsafe(9))
        self._metrics.connects.labels(recovered=str(bool(kept_id)).lower()).inc()
        # In open mode the page was let in before it said who it is.
        if carrier.auth is None:
            carrier.write_packet("4" + packets.connect_reply(window.sid, recovery_id))
        # The token and what it came with are not needed any more.
        carrier.auth = _LET_IN
        carrier.caller = None
        carrier.window = window
        self._rooms.join(window)

    def _refuse(
        self, carrier: Carrier, namespace: str, code: Refusal, text: str = ""
    ) -> None:
        self._metrics.refused.labels(code=code).inc()
        log.debug("window.refused", code=code, address=carrier.address)
        data: dict[str, object] = {"code": code, "temporary": code.is_temporary}
        packet = packets.connect_error(namespace, text or code.explanation, data)
        carrier.write_packet("4" + packet)

    def leave(self, carrier: Carrier) -> Window | None:
        """Forget a session that ended; returns the window that it was, out of its room."""
        window, carrier.window = carrier.window, None
        if window is not None and self._rooms.leave(window):
            self._inbox.unfollow(window.user)
        return window
