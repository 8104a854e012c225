"""The options of the Socket.IO server, from the settings."""

from dataclasses import dataclass

from bridge.sockets.engineio.handshake import HandshakePolicy
from bridge.sockets.engineio.session import SessionLimits


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """
    What the operator chose for windows.

    Attributes:
        limits: The limits and the timing of each session.
        policy: Which requests may open a session.
        max_windows_per_user: Concurrent windows of one user, in this process.
        cookie: Name of the cookie that may hold a token.
        leeway_s: How long after the expiry of its token a window may stay
            (BRIDGE_JWT_LEEWAY).
        name: The bridge's name, which starts its session ids; may be empty.

    """

    limits: SessionLimits
    policy: HandshakePolicy
    max_windows_per_user: int
    cookie: str
    leeway_s: float
    name: str = ""
