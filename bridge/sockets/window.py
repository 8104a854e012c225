"""One page of a user: who it is, how far it has read, and until when it may stay."""

from dataclasses import dataclass
from typing import Final, Protocol

from bridge.core import packets
from bridge.core.identity import Identity
from bridge.sockets.engineio.session import Carrier

# How long before its token's end a window is told.
_WARNING_S: Final = 60.0
# Enough of a window's id to tell a user's windows apart.
_ID_CHARACTERS: Final = 8


@dataclass(frozen=True, slots=True)
class WindowReport:
    """
    A window at an instant, for operators.

    Attributes:
        id: The beginning of its `sid`.
        transport: `websocket` or `polling`.
        address: Where the page is, as far as it can be believed.
        connected_s: Unix time.
        offset: Newest message that was written to it, or that it had before.
        has_manual_acks: Whether only its `ack` moves the delivered mark.
        is_live: Whether it is up to date and gets what is new.
        waiting_bytes: What was sent to it and that it has not read yet.

    """

    id: str
    transport: str
    address: str
    connected_s: float
    offset: int
    has_manual_acks: bool
    is_live: bool
    waiting_bytes: int


class Level(Protocol):
    """What all windows know that are written to together (a room)."""

    @property
    def offset(self) -> int:
        """Newest message that was written to all of them."""

    @property
    def written(self) -> int:
        """How many messages were written to them, since there are any."""


class Window:
    """
    One connected page.

    Attributes:
        sid: The socket.io id.
        carrier: The connection that it came over.
        identity: Whose it is and until when.
        epoch: Of the store that its positions are of.
        has_manual_acks: Whether only its `ack` moves the delivered mark.
        is_live: Whether its replay is over and it gets what is new.
        level: With whom it is written to; `None` = alone.
        is_warned: Whether it was told that its token is about to expire.
        warning_s: How long before the token's end it is told.
        connected_s: Unix time.

    """

    __slots__ = (
        "_answers_from",
        "_offset",
        "carrier",
        "connected_s",
        "epoch",
        "has_manual_acks",
        "identity",
        "is_live",
        "is_warned",
        "level",
        "sid",
        "warning_s",
    )

    def __init__(
        self,
        sid: str,
        carrier: Carrier,
        identity: Identity,
        *,
        epoch: str,
        offset: int,
        has_manual_acks: bool,
        connected_s: float,
    ) -> None:
        self.sid = sid
        self.carrier = carrier
        self.epoch = epoch
        self._offset = offset
        self.has_manual_acks = has_manual_acks
        self.is_live = False
        self.level: Level | None = None
        self._answers_from = 0  # what was written to its level before can be answered
        self.connected_s = connected_s
        self.renew(identity, now_s=connected_s)

    @property
    def user(self) -> str:
        """Whose window it is."""
        return self.identity.user

    @property
    def offset(self) -> int:
        """Newest message that was written to it, or that it had before."""
        return self._offset if self.level is None else self.level.offset

    @offset.setter
    def offset(self, offset: int) -> None:
        """Note what was written to it alone."""
        self._offset = offset

    def join_level(self, level: Level) -> None:
        """Be written to together with others, who have had the same."""
        self.level = level
        self._answers_from = level.written

    def leave_level(self) -> None:
        """Be written to alone, from where all of them are."""
        self.carrier.expect_answers(self.take_written())
        self._offset = self.offset
        self.level = None

    def take_written(self) -> int:
        """Count what was written to it with others since this was asked last."""
        if self.level is None:
            return 0
        before, self._answers_from = self._answers_from, self.level.written
        return self._answers_from - before

    @property
    def delivers_by_writing(self) -> bool:
        """Whether writing to it counts as delivered.

        Not with manual acks, and not while it polls: then a message is delivered when
        it is fetched.
        """
        return not self.has_manual_acks and self.carrier.transport is not None

    def tell(self, event: str, data: object) -> None:
        """Send one of the bridge's own events."""
        self.carrier.write_packet("4" + packets.event(event, data))

    def report(self) -> WindowReport:
        """Say how it is now."""
        carrier = self.carrier
        return WindowReport(
            id=self.sid[:_ID_CHARACTERS],
            transport=carrier.transport_name,
            address=carrier.address,
            connected_s=self.connected_s,
            offset=self.offset,
            has_manual_acks=self.has_manual_acks,
            is_live=self.is_live,
            waiting_bytes=carrier.waiting_bytes,
        )

    def renew(self, identity: Identity, *, now_s: float) -> None:
        """Let the window stay for as long as `identity` says."""
        self.identity = identity
        self.is_warned = False
        self.warning_s = _WARNING_S
        if identity.expires_s is not None:
            # Half of a short life, so that even such a page has time to get a new token.
            self.warning_s = min(_WARNING_S, (identity.expires_s - now_s) / 2)
