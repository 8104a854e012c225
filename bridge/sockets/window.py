"""One page of a user: who it is, how far it has read, and until when it may stay."""

from dataclasses import dataclass
from typing import Final

from bridge.core import packets
from bridge.core.access import Identity
from bridge.sockets.transport import Carrier

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


class Window:
    """
    One connected page.

    Attributes:
        sid: The socket.io id.
        carrier: The connection that it came over.
        identity: Whose it is and until when.
        epoch: Of the store that its positions are of.
        offset: Newest message that was written to it, or that it had before.
        has_manual_acks: Whether only its `ack` moves the delivered mark.
        is_live: Whether its replay is over and it gets what is new.
        is_warned: Whether it was told that its token is about to expire.
        warning_s: How long before the token's end it is told.
        connected_s: Unix time.

    """

    __slots__ = (
        "carrier",
        "connected_s",
        "epoch",
        "has_manual_acks",
        "identity",
        "is_live",
        "is_warned",
        "offset",
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
        self.offset = offset
        self.has_manual_acks = has_manual_acks
        self.is_live = False
        self.connected_s = connected_s
        self.renew(identity, now_s=connected_s)

    @property
    def user(self) -> str:
        """Whose window it is."""
        return self.identity.user

    @property
    def delivers_by_writing(self) -> bool:
        """Whether writing to it counts as delivered.

        Not with manual acks, and not while it polls: then a message is delivered when
        it is fetched.
        """
        return not self.has_manual_acks and self.carrier.is_written_at_once

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
