"""Who is connected to this bridge: what operators see of windows, and may do to them."""

from collections.abc import Collection, Sequence

from bridge.core.contracts.operator.users import WindowFacts
from bridge.core.journal import Journal
from bridge.core.story import WindowFact
from bridge.sockets.server import BridgeServer


class Online:
    """The windows of one bridge, as the groups of users and of traces ask for them."""

    def __init__(self, sockets: BridgeServer, journal: Journal) -> None:
        self._sockets = sockets
        self._journal = journal

    def users_online(self) -> Collection[str]:
        """Return who has a window, in no order."""
        return list(self._sockets.rooms.users)

    def windows_of(self, user: str) -> Sequence[WindowFacts]:
        """Return the windows of `user`, the oldest first."""
        return [
            WindowFacts(
                sid_short=window.id,
                transport="polling" if window.transport == "polling" else "websocket",
                address=window.address,
                connected_s=window.connected_s,
                offset=window.offset,
                acks="manual" if window.has_manual_acks else "auto",
                live=window.is_live,
                waiting_bytes=window.waiting_bytes,
            )
            for window in self._sockets.windows_of(user)
        ]

    def windows_now(self, user: str) -> Sequence[WindowFact]:
        """Return what the windows of `user` have been given."""
        return [
            WindowFact(window.offset, window.has_manual_acks)
            for window in self._sockets.rooms.windows_of(user)
        ]

    def last_connect_s(self, user: str) -> float | None:
        """When a window of `user` was let in last; ``None`` if not since the start."""
        return self._journal.last_connect_s(user)

    def kick(self, user: str) -> int:
        """Close all windows of `user`; returns how many there were."""
        return self._sockets.kick(user)
