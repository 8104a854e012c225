"""Storms: while thousands of pages connect at once, other pages are served."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.bench.windows import masked
from tests.conftest import eventually
from tests.integration.sockets.raw_pages import RawWindow, raw_window
from tests.integration.sockets.running_server import (
    Plan,
    RunningServer,
    open_server,
)
from tests.integration.sockets.security import WITHOUT_AND_WITH_TLS, Security
from tests.tokens import token

STORM: Final = 200
HANDSHAKE: Final = (
    b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@contextmanager
def storm(server: RunningServer) -> Iterator[list[socket.socket]]:
    """Connect many clients that send nothing yet."""
    clients: list[socket.socket] = []
    try:
        for _ in range(STORM):
            clients.append(socket.create_connection(("127.0.0.1", server.port)))
            clients[-1].settimeout(0)
        yield clients
    finally:
        for client in clients:
            client.close()


def client_hello(context: ssl.SSLContext) -> bytes:
    """Return the first bytes of a TLS handshake."""
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError


def is_answered(client: socket.socket) -> bool:
    """Return whether the server has sent something."""
    try:
        return bool(client.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


async def round_trip(window: RawWindow) -> None:
    """Send an event and receive the answer, which takes several turns of the event loop."""
    await window.emit("ack", "1.x", packet_id=1)
    await window.answer(1)


@WITHOUT_AND_WITH_TLS
async def test_an_open_window_is_served_before_all_new_connections() -> None:
    """Otherwise its messages arrive after the whole storm."""
    async with (
        open_server(Plan()) as server,
        raw_window(server) as ann,
    ):
        await ann.join("ann")
        await ann.synced()
        with storm(server) as clients:
            await eventually(lambda: server.waiting_connections == STORM)
            tls = Security.current
            for (
                client
            ) in clients:  # without an await: the server reads all of them at once
                client.send(
                    client_hello(tls.client) if tls else HANDSHAKE % server.port
                )

            await round_trip(ann)
            answered = sum(map(is_answered, clients))

            assert 0 < answered < STORM
            await eventually(lambda: all(map(is_answered, clients)))


async def test_an_open_window_is_served_before_all_windows_are_admitted() -> None:
    """A network that was stalled delivers all their CONNECT packets at once."""
    async with open_server(Plan()) as server, raw_window(server) as ann:
        await ann.join("ann")
        await ann.synced()
        with storm(server) as clients:
            for client in clients:
                client.send(HANDSHAKE % server.port)
            await eventually(lambda: len(server.sessions()) == STORM + 1)
            for client in clients:
                client.send(masked(b'40{"token":"%b"}' % token(sub="bob").encode()))

            await round_trip(ann)

            assert 0 < len(server.windows("bob")) < STORM
            await eventually(lambda: len(server.windows("bob")) == STORM)


async def test_a_session_whose_connect_waits_is_not_closed_at_its_deadline() -> None:
    """A client that is disconnected comes back, and makes the storm worse."""
    async with open_server(Plan()) as server, raw_window(server):
        (session,) = server.sessions()
        turns = server.io.engine._listener.turns
        late_s = session.opened_s + 11

        while not turns.is_behind:
            turns.call(lambda: None)
        server.io.engine.check_session(session, monotonic_s=late_s, real_s=0)
        assert not session.is_closed

        await eventually(lambda: not turns.is_behind)
        server.io.engine.check_session(session, monotonic_s=late_s, real_s=0)
        assert session.is_closed
