"""
The events that a window may send.

`ack`, `bridge:refresh`, and `join` in open mode are for bridge itself; all others are requests
to workers (`page_requests.py`).
"""

from collections.abc import Coroutine
from time import time
from typing import Any, Final

from bridge.auth.limited_verifier import LimitedVerifier
from bridge.core import packets
from bridge.core.identity import Identity
from bridge.core.journal import Journal
from bridge.core.message import user_problem
from bridge.core.packets import Packet
from bridge.core.position import parse_position
from bridge.enums import EVENT_ACK, EVENT_JOIN, EVENT_REFRESH, EventError, Refusal
from bridge.errors import (
    ClientError,
    EventRefusedError,
    KeysUnavailableError,
    RefusedError,
    StoreUnavailableError,
)
from bridge.inbox.contract import InboxReader
from bridge.metrics import Metrics
from bridge.sockets.admission import Admission
from bridge.sockets.engineio.session import EngineSession, Work
from bridge.sockets.page_requests import PageRequests
from bridge.sockets.window import Guest, Window, window_of

_REFRESH_ERRORS: Final = {
    Refusal.TOKEN_EXPIRED: EventError.TOKEN_EXPIRED,
    Refusal.TOO_MANY_ATTEMPTS: EventError.NOT_AVAILABLE,
}


class WindowRequests:
    """Processes events of windows; the reply holds an `EventRefusedError`."""

    def __init__(
        self,
        inbox: InboxReader,
        verifier: LimitedVerifier | None,
        *,
        admission: Admission,
        journal: Journal,
        metrics: Metrics,
        page_requests: PageRequests | None,
    ) -> None:
        self._inbox = inbox
        self._verifier = verifier
        self._admission = admission
        self._journal = journal
        self._metrics = metrics
        self._page_requests = page_requests

    def process(self, session: EngineSession, packet: Packet) -> Work | None:
        """Process an event; a returned coroutine does the rest and sends the reply."""
        assert isinstance(packet.data, list)  # noqa: S101 - guaranteed by parse_packet
        name, *arguments = packet.data
        argument = arguments[0] if arguments else None
        window = window_of(session)
        if name == EVENT_ACK and window is not None:
            # Without a coroutine: a client may send an ack for each message.
            try:
                reply = self.ack(window, argument)
            except EventRefusedError as exc:
                reply = _refusal(exc)
            _send_reply(session, packet, reply)
        elif name == EVENT_REFRESH and window is not None:
            return self._reply(session, packet, self.refresh(window, argument))
        elif name == EVENT_JOIN:
            return self._reply(session, packet, self.join(session, argument))
        elif window is not None and self._page_requests is not None:
            self._page_requests.process(window, packet, packet.data)
        else:
            self._metrics.ignored.inc()
        return None

    async def _reply(
        self,
        session: EngineSession,
        packet: Packet,
        work: Coroutine[Any, Any, dict[str, object]],
    ) -> None:
        try:
            reply = await work
        except EventRefusedError as exc:
            reply = _refusal(exc)
        _send_reply(session, packet, reply)

    def ack(self, window: Window, argument: object) -> dict[str, object]:
        """
        Mark everything up to a position as delivered.

        Raises:
            EventRefusedError: If the window has received no message at that position.

        """
        if not window.has_manual_acks:
            raise EventRefusedError(
                EventError.NOT_MANUAL, "connect with auth: {acks: 'manual'} to use ack"
            )
        try:
            position = parse_position(argument)
        except ValueError:
            raise EventRefusedError(
                EventError.BAD_POSITION, "ack needs the position of a message"
            ) from None
        if position.epoch != window.epoch or position.offset > window.offset:
            raise EventRefusedError(
                EventError.BAD_POSITION,
                "this window has received no message at that position",
            )
        if window.ack(position.offset):  # a repeated ack costs and records nothing
            self._inbox.mark_delivered(window.user, position.offset)
            self._journal.delivered(
                window.user,
                position.offset,
                at_s=time(),
                text="a window acked it, or a later one",
            )
        return {"ok": True}

    async def refresh(self, window: Window, argument: object) -> dict[str, object]:
        """
        Replace the token of a window by a newer one of the same user.

        Raises:
            EventRefusedError: If the token is invalid, revoked or of another user, or the
                store is away. The old token stays in effect.

        """
        if self._verifier is None:
            raise EventRefusedError(EventError.NOT_OPEN, "open mode has no tokens")
        if not isinstance(argument, str):
            raise EventRefusedError(
                EventError.TOKEN_INVALID, "the token is not a string"
            )
        try:
            identity = await self._verifier.verify(
                argument, address=window.session.counted_as
            )
        except RefusedError as exc:
            code = _REFRESH_ERRORS.get(exc.code, EventError.TOKEN_INVALID)
            raise EventRefusedError(code, str(exc)) from exc
        except KeysUnavailableError as exc:
            raise EventRefusedError(
                EventError.KEYS_UNAVAILABLE, Refusal.KEYS_UNAVAILABLE.explanation
            ) from exc
        if identity.user != window.user:
            raise EventRefusedError(
                EventError.OTHER_USER, "the new token is another user's"
            )
        try:
            await self._inbox.state(window.user)
            self._admission.check_revocations(identity)
        except RefusedError as exc:
            raise EventRefusedError(EventError.TOKEN_REVOKED, str(exc)) from exc
        except StoreUnavailableError as exc:
            raise EventRefusedError(
                EventError.NOT_AVAILABLE, Refusal.NOT_AVAILABLE.explanation
            ) from exc
        window.renew(identity, now_s=time())
        assert identity.expires_s is not None  # noqa: S101 - a verified token has an exp
        # It may have expired already and be accepted only within the leeway.
        left_s = max(0, int(identity.expires_s - time()))
        return {"ok": True, "expires_in_s": left_s}

    async def join(self, session: EngineSession, argument: object) -> dict[str, object]:
        """
        Admit a client as the user that it names, in open mode only.

        Raises:
            EventRefusedError: If that is not allowed, or the client cannot be admitted.

        """
        if self._verifier is not None:
            raise EventRefusedError(
                EventError.NOT_OPEN, "join works only with BRIDGE_AUTH=open"
            )
        user = argument.get("username") if isinstance(argument, dict) else None
        problem = user_problem(user) if isinstance(user, str) else "is not a string"
        if problem or not isinstance(user, str):
            raise EventRefusedError(EventError.BAD_USER, f"username {problem}")
        client = session.client
        if isinstance(client, Window) and client.user == user:
            return {"ok": True}
        if not isinstance(client, Guest):
            raise EventRefusedError(
                EventError.BAD_USER, "this window has joined as another user"
            )
        try:
            await self._admission.admit(session, Identity(user, None), client)
        except ClientError as exc:
            raise EventRefusedError(EventError.NOT_AVAILABLE, str(exc)) from exc
        except StoreUnavailableError as exc:
            raise EventRefusedError(
                EventError.NOT_AVAILABLE, Refusal.NOT_AVAILABLE.explanation
            ) from exc
        return {"ok": True}


def _refusal(error: EventRefusedError) -> dict[str, object]:
    return {"ok": False, "code": error.code, "message": str(error)}


def _send_reply(
    session: EngineSession, packet: Packet, reply: dict[str, object]
) -> None:
    if packet.id is not None:
        session.send(packets.reply(packet.id, reply))
