"""
What a page may ask for: that messages count as delivered, a longer life, and in open
mode to be let in under a name.
"""

from collections.abc import Callable, Coroutine
from time import time
from typing import Any

from bridge.core import packets
from bridge.core.identity import ConnectOptions, Identity
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
from bridge.sockets.admission import Admitted, Entrance, Verifier
from bridge.sockets.engineio.session import Carrier
from bridge.sockets.window import Window

Work = Coroutine[Any, Any, None]


class WindowRequests:
    """
    Answers to pages; `EventRefusedError` is told to the one that asked.

    `admitted` is called with a page that was let in, `ignore` for an event that means
    nothing.
    """

    def __init__(
        self,
        inbox: InboxReader,
        verifier: Verifier | None,
        *,
        entrance: Entrance,
        admitted: Callable[[Admitted | None], None],
        ignore: Callable[[], None],
    ) -> None:
        self._inbox = inbox
        self._verifier = verifier
        self._entrance = entrance
        self._journal = entrance.journal
        self._admitted = admitted
        self._ignore = ignore

    def take(self, carrier: Carrier, packet: Packet) -> Work | None:
        """Do what an event asks for; returns what takes time."""
        assert isinstance(packet.data, list)  # noqa: S101 - parse_packet promises it
        name, *arguments = packet.data
        argument = arguments[0] if arguments else None
        window = carrier.window
        if name == EVENT_ACK and window is not None:
            # Nothing to wait for: a page may send one for each message.
            try:
                answer = self.ack(window, argument)
            except EventRefusedError as exc:
                answer = _refusal(exc)
            _reply(carrier, packet, answer)
        elif name == EVENT_REFRESH and window is not None:
            return self._answer(carrier, packet, self.refresh(window, argument))
        elif name == EVENT_JOIN:
            return self._answer(carrier, packet, self.join(carrier, argument))
        else:
            self._ignore()
        return None

    async def _answer(
        self,
        carrier: Carrier,
        packet: Packet,
        work: Coroutine[Any, Any, dict[str, object]],
    ) -> None:
        try:
            answer = await work
        except EventRefusedError as exc:
            answer = _refusal(exc)
        _reply(carrier, packet, answer)

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
        self._journal.delivered(
            window.user,
            position.offset,
            at_s=time(),
            text="a page acked it, or one behind it",
        )
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

    async def join(self, carrier: Carrier, argument: object) -> dict[str, object]:
        """
        Let a page say who it is: the article's way, in open mode alone.

        Raises:
            EventRefusedError: If it may not, or cannot be let in now.

        """
        if self._verifier is not None:
            raise EventRefusedError(
                EventError.NOT_OPEN, "join works with BRIDGE_AUTH=open alone"
            )
        user = argument.get("username") if isinstance(argument, dict) else None
        problem = user_problem(user) if isinstance(user, str) else "is not a string"
        if problem or not isinstance(user, str):
            raise EventRefusedError(EventError.BAD_USER, f"username {problem}")
        if carrier.window is not None:
            if carrier.window.user == user:
                return {"ok": True}
            raise EventRefusedError(
                EventError.BAD_USER, "this window has joined as another user"
            )
        auth = carrier.auth or ConnectOptions()
        try:
            admitted = await self._entrance.admit(carrier, Identity(user, None), auth)
        except ClientError as exc:
            raise EventRefusedError(EventError.NOT_AVAILABLE, str(exc)) from exc
        except StoreUnavailableError as exc:
            raise EventRefusedError(
                EventError.NOT_AVAILABLE, Refusal.NOT_AVAILABLE.explanation
            ) from exc
        self._admitted(admitted)
        return {"ok": True}


def _refusal(error: EventRefusedError) -> dict[str, object]:
    return {"ok": False, "code": error.code, "message": str(error)}


def _reply(carrier: Carrier, packet: Packet, answer: dict[str, object]) -> None:
    if packet.id is not None:
        carrier.write_packet("4" + packets.reply(packet.id, answer))
