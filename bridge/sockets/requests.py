"""What a window may ask for: that messages count as delivered, and a longer life."""

from time import time
from typing import Protocol

from bridge.core.access import Identity
from bridge.core.position import parse_position
from bridge.errors import EventRefusedError, KeysUnavailableError, RefusedError
from bridge.names import EventError, Refusal
from bridge.sockets.replay import Inboxes
from bridge.sockets.window import Window


class Verifier(Protocol):
    """Checks tokens (the room `auth`)."""

    async def verify(self, token: str) -> Identity:
        """Return whose token it is; RefusedError, KeysUnavailableError otherwise."""


class WindowRequests:
    """Answers to windows; `EventRefusedError` is told to the one that asked."""

    def __init__(self, inbox: Inboxes, verifier: Verifier | None) -> None:
        self._inbox = inbox
        self._verifier = verifier

    def ack(self, window: Window, argument: object) -> dict[str, object]:
        """
        Count everything up to a position as delivered.

        Raises:
            EventRefusedError: If it is no position that this window has been given.

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
                "this window has had no message at that position",
            )
        self._inbox.mark_delivered(window.user, position.offset)
        return {"ok": True}

    async def refresh(self, window: Window, argument: object) -> dict[str, object]:
        """
        Let the window stay for as long as a new token of the same user says.

        Raises:
            EventRefusedError: If the token is not good, or another user's. The old one
                goes on to count.

        """
        if self._verifier is None:
            raise EventRefusedError(EventError.NOT_OPEN, "open mode has no tokens")
        if not isinstance(argument, str):
            raise EventRefusedError(
                EventError.TOKEN_INVALID, "the token is not a string"
            )
        try:
            identity = await self._verifier.verify(argument)
        except RefusedError as exc:
            code = (
                EventError.TOKEN_EXPIRED
                if exc.code is Refusal.TOKEN_EXPIRED
                else EventError.TOKEN_INVALID
            )
            raise EventRefusedError(code, str(exc)) from exc
        except KeysUnavailableError as exc:
            raise EventRefusedError(
                EventError.KEYS_UNAVAILABLE, Refusal.KEYS_UNAVAILABLE.explanation
            ) from exc
        if identity.user != window.user:
            raise EventRefusedError(
                EventError.OTHER_USER, "the new token is another user's"
            )
        window.renew(identity, now_s=time())
        assert identity.expires_s is not None  # noqa: S101 - a token has an exp
        left_s = max(0, int(identity.expires_s - time()))  # it may live on leeway
        return {"ok": True, "expires_in_s": left_s}
