"""TLS on the public port: handshakes within the limits, and a certificate that is replaced."""

import asyncio
import socket
import ssl
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from bridge.core.origins import OriginRules
from bridge.enums import ConnectionRefusal
from bridge.http.listening_sockets import bind_sockets
from tests.certificates import Authority
from tests.conftest import eventually
from tests.integration.sockets.js_pages import Pages
from tests.integration.sockets.raw_pages import (
    LIMIT_S,
    RawTcp,
    raw_poller,
    raw_tcp,
    raw_window,
)
from tests.integration.sockets.running_server import (
    Plan,
    RunningServer,
    open_server,
)
from tests.integration.sockets.security import Security, port_certificate
from tests.tokens import token

pytestmark = pytest.mark.parametrize("security", ["tls"], indirect=True)

HEALTH = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
# A record of a handshake that announces 512 bytes; they do not follow.
HALF_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


def refused(server: RunningServer, reason: ConnectionRefusal) -> float:
    """Return how many connections were refused for `reason`."""
    return server.count("connections_refused_total", reason=reason)


async def plain_tcp(stack: AsyncExitStack, server: RunningServer) -> RawTcp:
    """Open a TCP connection without TLS."""
    connection = RawTcp(server)
    stack.callback(connection.socket.close)
    await connection.connect(is_tls=False)
    return connection


async def presented(server: RunningServer, context: ssl.SSLContext) -> bytes:
    """Connect, and return the certificate of the server."""
    async with asyncio.timeout(LIMIT_S):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
    certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(True)  # noqa: FBT003 - its only form
    writer.transport.abort()
    return certificate


@pytest.mark.parametrize("start", [b"", HALF_HELLO])
async def test_a_handshake_that_stalls_is_aborted_at_the_deadline_of_the_request(
    start: bytes,
) -> None:
    """It holds a descriptor and the memory of a TLS connection."""
    async with (
        open_server(Plan(connect_s=1)) as server,
        AsyncExitStack() as stack,
    ):
        slow = await plain_tcp(stack, server)
        await slow.send(start)

        assert await slow.read_to_end() == b""
        await eventually(lambda: not server.waiting_connections)
        await eventually(lambda: server.connection_count == 0)
        assert refused(server, ConnectionRefusal.NO_REQUEST) == 1
        assert server.counted_connections == 0


async def test_a_client_without_a_request_is_aborted_after_its_handshake_too() -> None:
    """The deadline of the request includes the handshake."""
    async with open_server(Plan(connect_s=3)) as server, raw_tcp(server) as slow:
        assert await slow.read_to_end() == b""
        await eventually(lambda: refused(server, ConnectionRefusal.NO_REQUEST) == 1)


async def test_unfinished_handshakes_count_for_the_cap_of_their_address() -> None:
    """Otherwise an address could open any number of connections."""
    async with (
        open_server(Plan(windows_per_address=1)) as server,
        AsyncExitStack() as stack,
    ):
        for _ in range(2):
            half = await plain_tcp(stack, server)
            await half.send(HALF_HELLO)
        await eventually(lambda: server.waiting_connections == 2)
        third = await plain_tcp(stack, server)

        assert await third.read_to_end() == b""
        assert refused(server, ConnectionRefusal.ADDRESS) == 1
        assert server.counted_connections == 2


async def test_plain_http_gets_an_explanation(server: RunningServer) -> None:
    """A browser shows it; otherwise it would say that the connection was reset."""
    async with AsyncExitStack() as stack:
        plain = await plain_tcp(stack, server)
        await plain.send(HEALTH)
        answer = await plain.read_to_end()

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"This port serves https only.\n")
    await eventually(lambda: server.counted_connections == 0)
    await eventually(lambda: refused(server, ConnectionRefusal.TLS) == 1)


async def test_a_client_that_does_not_trust_the_certificate_is_counted(
    server: RunningServer,
) -> None:
    """Many of them after a renewal mean that the certificate, or its issuers, are wrong."""

    def connect() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # it trusts no authority
        with (
            socket.create_connection(("127.0.0.1", server.port)) as connection,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            context.wrap_socket(connection, server_hostname="127.0.0.1")

    await asyncio.to_thread(connect)
    await eventually(lambda: refused(server, ConnectionRefusal.TLS) == 1)
    await eventually(lambda: server.counted_connections == 0)


async def test_old_versions_of_tls_are_refused_with_an_alert(
    server: RunningServer,
) -> None:
    """Their ciphers are weak."""
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        await presented(server, old)
    await eventually(lambda: refused(server, ConnectionRefusal.TLS) == 1)


async def test_what_is_not_a_record_ends_the_connection(
    server: RunningServer,
) -> None:
    """An attacker in the network may write anything; the window reconnects."""
    async with raw_tcp(server) as connection:
        await connection.open_websocket()
        (session,) = server.sessions()
        await asyncio.get_running_loop().sock_sendall(connection.socket, b"\x17" * 99)
        await eventually(lambda: session.is_closed)
        await eventually(lambda: server.connection_count == 0)
    assert refused(server, ConnectionRefusal.TLS) == 0


async def test_the_end_of_a_connection_is_authenticated(server: RunningServer) -> None:
    """A cut connection and a closed one differ for the client (`close_notify`)."""
    async with raw_tcp(server) as connection:
        await connection.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        while await connection.receive():  # a cut raises ConnectionResetError
            pass


async def test_a_client_that_ends_the_stream_is_disconnected(
    server: RunningServer,
) -> None:
    """It may keep its TCP connection open, and still be gone."""
    async with raw_tcp(server) as connection:
        await connection.open_websocket()
        (session,) = server.sessions()
        await connection.end_stream()
        await eventually(lambda: session.is_closed)
        await eventually(lambda: server.connection_count == 0)


async def test_a_large_message_and_its_neighbors_arrive(server: RunningServer) -> None:
    """A message is longer than a record of TLS, or many are in one."""
    texts = ["a", "b" * 16384, "c" * 250_000, "d"]
    async with raw_window(server) as window, raw_poller(server) as page:
        await window.join("alice")
        await window.synced()
        await page.join("alice")
        await server.store("alice", *texts)
        for text in texts:
            assert (await window.receive()).startswith(f'42["message","{text}",')
        polled: list[str] = []
        while len(polled) < len(texts):
            polled += await page.poll()
        assert [packet.split('"')[3] for packet in polled] == texts


async def test_a_new_certificate_is_presented_to_new_connections_only(
    security: Security, pages: Pages, tmp_path: Path
) -> None:
    """A renewal neither disconnects a window nor loses a message."""
    async with open_server() as server:
        await pages.connected("page", server.url, auth={"token": token()})
        old = await presented(server, security.client)
        certificate = security.certificate
        before = certificate.current
        renewed = Authority(tmp_path, "other").sign("server", address="127.0.0.1")
        client = ssl.create_default_context(cafile=tmp_path / "other.pem")
        try:
            certificate.replace(
                (await asyncio.to_thread(port_certificate, renewed)).current
            )
            await server.store("alice", 1)
            new = await presented(server, client)
            with pytest.raises(ssl.SSLCertVerificationError):
                await presented(server, security.client)
        finally:
            certificate.replace(before)
        await server.store("alice", 2)
        await pages.until("page", "event", "message", count=2)

        assert new != old
        assert pages.data("page") == [1, 2]
        assert len(pages.all("page", "connect")) == 1


async def test_only_https_pages_of_the_own_host_may_connect() -> None:
    """Without a list of origins, the page of an insecure site must not use the cookie."""
    plan = Plan(origins=OriginRules(own_scheme="https"))
    async with open_server(plan) as server:
        host = "push.example"
        for origin, is_allowed in (
            (f"https://{host}", True),
            (f"http://{host}", False),
        ):
            headers = {"Origin": origin, "Host": host}
            async with raw_window(server, headers=headers) as window:
                answer = await window.connect(token=token())
            assert answer.startswith("40" if is_allowed else "44"), origin


async def test_a_unix_socket_stays_plain(
    server: RunningServer, security: Security, tmp_path: Path
) -> None:
    """A proxy on the same machine uses it, and terminates TLS itself."""
    path = str(tmp_path / "bridge.sock")
    (bound,) = await asyncio.to_thread(
        bind_sockets, (f"unix:{path}",), 0, "BRIDGE_PORT"
    )
    await server.io.engine.site(server.runner, bound, security.certificate).start()
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as http,
        http.get(URL("http://localhost/health/live")) as response,
    ):
        assert response.status == 200
