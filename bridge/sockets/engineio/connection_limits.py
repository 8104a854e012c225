"""
Which TCP connections a port accepts.

Sessions over a WebSocket have limits of their own. All other connections of an address,
those that wait for a request and those that aiohttp serves, are counted here. The last
file descriptors of the process are kept for the broker, the store and the operators.
"""

import asyncio
import resource
from time import monotonic
from typing import Final

import structlog

from bridge.enums import ConnectionRefusal
from bridge.metrics import Metrics, SupervisorMetrics
from bridge.sockets.engineio.handshake import HandshakePolicy
from bridge.sockets.engineio.session import SessionLimits

log = structlog.get_logger(__name__)

# A page over long polling holds a GET and sends its packets by POST.
_CONNECTIONS_PER_WINDOW: Final = 2
_SPARE_DESCRIPTORS: Final = 64
_SPARE_SHARE: Final = 8  # at most 1/8 of all descriptors are spared
_LOG_INTERVAL_S: Final = 60.0
# Browsers open connections ahead and leave some of them unused; scanners try anything.
_ORDINARY: Final = frozenset({ConnectionRefusal.NO_REQUEST, ConnectionRefusal.TLS})


class ConnectionLimits:
    """
    The limits of one port, and its connections by address.

    An address may have twice as many connections as windows, and never more than half of
    the descriptors. Trusted proxies and Unix sockets have no limit, because all clients
    share their address.

    Attributes:
        limits: The limits of sessions.
        policy: The trusted proxies, and how addresses are counted.

    """

    def __init__(
        self,
        limits: SessionLimits,
        policy: HandshakePolicy,
        *,
        metrics: Metrics | SupervisorMetrics,
        is_for_operators: bool = False,
    ) -> None:
        """
        Start without a connection.

        Args:
            limits: The limits of sessions.
            policy: The trusted proxies, and how addresses are counted.
            metrics: Counts refused connections by reason.
            is_for_operators: Whether the port may use half of the descriptors that are
                kept from windows.

        """
        self.limits = limits
        self.policy = policy
        self._metrics = metrics
        self._is_for_operators = is_for_operators
        self._by_address: dict[str, int] = {}
        self._logged_s: float | None = None
        self._unlogged = 0

    def apply(self, limits: SessionLimits, policy: HandshakePolicy) -> None:
        """Use reloaded limits for new connections."""
        self.limits = limits
        self.policy = policy

    def admit(self, transport: asyncio.Transport) -> str | None:
        """
        Count a new connection.

        Returns:
            The argument for `release`; ``None`` if the connection is refused.

        """
        peer = transport.get_extra_info("peername")
        remote = peer[0] if isinstance(peer, tuple) else ""
        maximum, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        at_most = _CONNECTIONS_PER_WINDOW * self.limits.sessions_per_address
        if maximum != resource.RLIM_INFINITY:
            spare = min(_SPARE_DESCRIPTORS, maximum // _SPARE_SHARE)
            own_spare = spare // 2 if self._is_for_operators else spare
            # The kernel gives the lowest free descriptor, so all below this one are in use.
            if transport.get_extra_info("socket").fileno() >= maximum - own_spare:
                self.note_refusal(ConnectionRefusal.DESCRIPTORS, remote)
                return None
            at_most = min(at_most, (maximum - spare) // 2)
        if not remote or self.policy.trusts(remote):
            return ""
        address = self.policy.counted_as(remote)
        count = self._by_address.get(address, 0)
        if count >= at_most:
            self.note_refusal(ConnectionRefusal.ADDRESS, remote)
            return None
        self._by_address[address] = count + 1
        return address

    def release(self, address: str) -> None:
        """Stop counting a connection: it was closed, or became a session."""
        count = self._by_address.pop(address, 1) - 1
        if count:
            self._by_address[address] = count

    def note_failed_handshake(self, reason: str) -> None:
        """Count a failed TLS handshake; `reason` is that of OpenSSL."""
        log.debug("tls.handshake_failed", problem=reason)
        self.note_refusal(ConnectionRefusal.TLS)

    def note_refusal(self, reason: ConnectionRefusal, remote: str = "") -> None:
        """Count a refusal; the first one in each minute is logged."""
        self._metrics.connections_refused.labels(reason=reason).inc()
        if reason in _ORDINARY:
            return
        self._unlogged += 1
        now_s = monotonic()
        if self._logged_s is None or now_s - self._logged_s >= _LOG_INTERVAL_S:
            log.warning(
                "connections.refused",
                reason=reason,
                problem=reason.explanation,
                address=remote,
                count=self._unlogged,
            )
            self._logged_s, self._unlogged = now_s, 0
