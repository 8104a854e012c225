"""The listener: a connection counts until it is closed or handed over."""

import asyncio
import socket

import pytest

from bridge.core.origins import OriginRules
from bridge.core.websocket_handshake import Handshake
from bridge.metrics import Metrics
from bridge.sockets.engineio.connection_limits import ConnectionLimits
from bridge.sockets.engineio.handshake import HandshakePolicy
from bridge.sockets.engineio.listener import Listener
from bridge.sockets.engineio.session import SessionLimits

HANDSHAKE = (
    b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: a.example\r\n"
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def test_a_connection_whose_session_fails_to_open_does_not_count() -> None:
    """It would count until a restart, and the cap of its address lock clients out."""
    limits = ConnectionLimits(
        SessionLimits(
            outbound_bytes=1000,
            events_per_second=5,
            sessions_per_address=1,
            connect_s=1.0,
            ping_interval_s=25,
            ping_timeout_s=20,
            max_packet_bytes=1000,
        ),
        HandshakePolicy(OriginRules()),
        metrics=Metrics(),
    )

    def fail(_transport: asyncio.Transport, _handshake: Handshake) -> bool:
        raise OSError("no session")

    listener = Listener(limits, open_websocket=fail)
    with socket.socket() as connection:
        extra = {"peername": ("192.0.2.7", 4711), "socket": connection}
        transport = asyncio.Transport(extra)
        for _ in range(3):  # one more than an address may have
            address = limits.admit(transport)
            assert address == "192.0.2.7"
            with pytest.raises(OSError, match="no session"):
                listener.serve(transport, HANDSHAKE, address)
