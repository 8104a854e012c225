"""
A window, one Socket.IO connection of a user, and the group of windows written together.

Most windows of a room use WebSockets and have received the same messages: all of the
room. A message is written to their TCP transports directly, and nothing else is touched
for each window: with a thousand windows in a room the memory is cold, and each object on
the way to a transport costs about a tenth of the write. So the group tracks how far its
windows have received the inbox, and how many replies their clients may send.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bridge.clock import real_time
from bridge.core import packets
from bridge.core.identity import ConnectOptions, Identity
from bridge.sockets.engineio.session import EngineSession

# How long before its token expires a window is warned.
_WARNING_S: Final = 60.0


class Window:
    """
    One connected window.

    Attributes:
        sid: The Socket.IO id.
        session: The Engine.IO session under it.
        identity: Its user.
        epoch: The epoch of its positions.
        has_manual_acks: Whether only its `ack` moves the delivered mark.
        is_live: Whether its gate is open: it receives new messages.
        replayed: The offset that it had when its gate opened.
        is_warned: Whether it was warned that its token expires soon.
        expires_real_s: The real time until which it may stay; ``None`` for no limit.
        warning_s: How long before the expiry it is warned.
        connected_s: Unix time.

    """

    __slots__ = (
        "_counted",
        "_delivered",
        "_group",
        "_offset",
        "_pinged",
        "connected_s",
        "epoch",
        "expires_real_s",
        "has_manual_acks",
        "identity",
        "is_live",
        "is_warned",
        "replayed",
        "session",
        "sid",
        "warning_s",
    )

    def __init__(
        self,
        sid: str,
        session: EngineSession,
        identity: Identity,
        *,
        epoch: str,
        offset: int,
        delivered: int,
        has_manual_acks: bool,
        connected_s: float,
    ) -> None:
        self.sid = sid
        self.session = session
        self.epoch = epoch
        self.has_manual_acks = has_manual_acks
        self.is_live = False
        self.replayed = 0
        self.connected_s = connected_s
        self._offset = offset
        self._delivered = delivered
        self._pinged: int | None = None  # the offset at the ping that is unanswered
        self._group: BroadcastGroup | None = None
        self._counted = 0  # messages of the group that may no longer be replied to
        self.renew(identity, now_s=connected_s)

    @property
    def user(self) -> str:
        """The user of the window."""
        return self.identity.user

    @property
    def offset(self) -> int:
        """The newest message that was written to the window, or that it had before."""
        return self._offset if self._group is None else self._group.offset

    @property
    def is_in_group(self) -> bool:
        """Whether messages are written to it together with other windows."""
        return self._group is not None

    def open_gate(self) -> None:
        """Receive new messages, after everything up to its offset."""
        self.is_live = True
        self.replayed = self.offset

    def advance(self, offset: int) -> None:
        """Record that everything up to `offset` was written to this window alone."""
        self._offset = offset

    def join_group(self, group: "BroadcastGroup") -> None:
        """Become a member of `group`, which has received the same messages."""
        self._group = group
        self._counted = group.written

    def leave_group(self) -> None:
        """Keep the group's offset, and the replies that the client may still send."""
        self.session.expect_replies(self.take_expected_replies())
        self._offset = self.offset
        self._group = None

    def take_expected_replies(self) -> int:
        """Return how many messages were written to its group since the last call."""
        if self._group is None:
            return 0
        before, self._counted = self._counted, self._group.written
        return self._counted - before

    # --- what counts as delivered

    def note_ping(self, received: int) -> None:
        """Note that a ping follows everything up to the offset `received`."""
        self._pinged = received

    def take_pinged(self) -> int | None:
        """Return the offset at the ping that the client answers; ``None`` if unknown."""
        offset, self._pinged = self._pinged, None
        return offset

    @property
    def is_proof_due(self) -> bool:
        """
        Whether a sign of life of the page would change what counts as delivered.

        A sign of life is a pong, any other packet, a completed poll or an orderly close.
        """
        return self.would_deliver(self.offset)

    def would_deliver(self, offset: int) -> bool:
        """Return whether `deliver(offset)` would change what counts as delivered."""
        return not self.has_manual_acks and offset > self._delivered

    def deliver(self, offset: int) -> bool:
        """
        Record that the page was alive after everything up to `offset` was written.

        Returns:
            False if that does not change what counts as delivered.

        """
        return not self.has_manual_acks and self.ack(offset)

    def ack(self, offset: int) -> bool:
        """Record that the page has received everything up to `offset`; as `deliver`."""
        if offset <= self._delivered:
            return False
        self._delivered = offset
        return True

    def send_event(self, event: str, data: object) -> None:
        """Send one of the bridge's own events."""
        self.session.send(packets.event(event, data))

    def renew(self, identity: Identity, *, now_s: float) -> None:
        """
        Replace the identity, and with it the time until which the window may stay.

        From now on real time decides: a jump of the wall clock neither closes the window
        nor lets it stay longer.
        """
        self.identity = identity
        self.is_warned = False
        self.warning_s = _WARNING_S
        self.expires_real_s = None
        if identity.expires_s is not None:
            life_s = identity.expires_s - now_s
            self.expires_real_s = real_time() + life_s
            # At most half of a short life, so that there is time to get a new token.
            self.warning_s = min(_WARNING_S, life_s / 2)


@dataclass(frozen=True, slots=True)
class Guest:
    """
    A client before it has a window: in open mode it is connected without a user.

    Attributes:
        sid: The Socket.IO id, which its window will keep.
        options: What the client passed in `auth`.

    """

    sid: str
    options: ConnectOptions


def window_of(session: EngineSession) -> Window | None:
    """Return the window over `session`; ``None`` before it is admitted or after it left."""
    client = session.client
    return client if isinstance(client, Window) else None


class BroadcastGroup:
    """
    The windows of a room that have received the same messages over WebSockets.

    Attributes:
        windows: The members.
        offset: All members have received everything up to it; undefined without members.
        written: Messages that were written to the group so far.

    """

    __slots__ = ("_transports", "offset", "windows", "written")

    def __init__(self) -> None:
        self.windows: list[Window] = []
        self.offset = 0
        self.written = 0
        self._transports: list[asyncio.Transport] = []  # of `windows`, in their order

    def add(self, window: Window) -> bool:
        """Add `window`; false if it polls or has not received the same messages."""
        transport = window.session.transport
        if transport is None or (self.windows and window.offset != self.offset):
            return False
        self.offset = window.offset
        self.windows.append(window)
        self._transports.append(transport)
        window.join_group(self)
        return True

    def remove(self, window: Window) -> None:
        """Remove a member, which keeps the offset of the group."""
        index = self.windows.index(window)
        del self.windows[index], self._transports[index]
        window.leave_group()

    def write(self, frames: bytes, *, outbound_bytes: int) -> Sequence[Window]:
        """
        Write `frames` to every member; `advance` must follow.

        If this raises half-way, the next message finds a gap and the members read it from
        the inbox; some receive messages twice.

        Args:
            frames: WebSocket frames.
            outbound_bytes: Bytes that may wait for one client.

        Returns:
            The members that would exceed the limit. Nothing was written to them, and
            their gates must be closed.

        """
        full: list[asyncio.Transport] = []
        limit_bytes = outbound_bytes - len(frames)
        for transport in self._transports:
            if transport.get_write_buffer_size() > limit_bytes:
                full.append(transport)
            else:
                transport.write(frames)
        if not full:
            return ()
        return [self.windows[self._transports.index(each)] for each in full]

    def advance(self, offset: int, *, written: int) -> None:
        """Record that `written` messages up to `offset` were written to all members."""
        self.offset = offset
        self.written += written
