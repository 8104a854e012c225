"""The listener: a connection counts until it is closed or handed over."""

import asyncio
import socket

import pytest

from bridge.core.origins import OriginRules
from bridge.core.websocket_handshake import Handshake
from bridge.metrics import Metrics
from bridge.sockets.engineio.connection_limits import ConnectionLimits
from bridge.sockets.engineio.handshake import HandshakePolicy
from bridge.sockets.engineio.listener import Listener, NewConnection
from bridge.sockets.engineio.session import SessionLimits
from tests.conftest import eventually

HANDSHAKE = (
    b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: a.example\r\n"
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def limits_of(*, connect_s: float) -> ConnectionLimits:
    """Return limits that allow an address two connections."""
    return ConnectionLimits(
        SessionLimits(
            outbound_bytes=1000,
            events_per_second=5,
            sessions_per_address=1,
            connect_s=connect_s,
            ping_interval_s=25,
            ping_timeout_s=20,
            max_packet_bytes=1000,
        ),
        HandshakePolicy(OriginRules()),
        metrics=Metrics(),
    )


def test_a_connection_whose_session_fails_to_open_does_not_count() -> None:
    """It would count until a restart, and the cap of its address lock clients out."""
    limits = limits_of(connect_s=1.0)

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


class Aborting(asyncio.Transport):
    """The transport of a connection; notes that it was aborted."""

    is_aborted = False

    def abort(self) -> None:
        """Note it."""
        self.is_aborted = True


async def test_the_deadline_of_a_request_does_not_count_while_the_bridge_is_behind() -> (
    None
):
    """Its bytes may have arrived in time. A client that is aborted makes a storm worse."""
    listener = Listener(limits_of(connect_s=0.0))
    is_storm = True

    def again() -> None:
        if is_storm:
            listener.turns.call(again)

    for _ in range(100):  # more than one turn has capacity for
        listener.turns.call(again)
    with socket.socket() as connection:
        transport = Aborting({"peername": ("192.0.2.7", 4711), "socket": connection})
        NewConnection(listener).connection_made(transport)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not transport.is_aborted

        is_storm = False
        await eventually(lambda: transport.is_aborted)
