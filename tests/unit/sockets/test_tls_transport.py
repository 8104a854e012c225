"""The TLS transport, between a client of OpenSSL and a TCP transport in memory."""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from bridge.sockets.engineio.tls import TlsTransport
from tests.certificates import Authority


class TcpTransport(asyncio.Transport):
    """Keeps what is written; `buffered` is what it claims not to have sent."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.7", 4711)})
        self.written = bytearray()
        self.buffered = 0
        self.is_aborted = False
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep what is written."""
        assert data, "nothing is written"
        self.written += data

    def get_write_buffer_size(self) -> int:
        """Return `buffered`."""
        return self.buffered

    def is_closing(self) -> bool:
        """Return whether it was closed."""
        return self._is_closing

    def close(self) -> None:
        """Note it."""
        self._is_closing = True

    def abort(self) -> None:
        """Note it."""
        self._is_closing = self.is_aborted = True


class Recorder(asyncio.Protocol):
    """Notes the calls of a transport."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.calls: list[object] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Note it."""
        self.calls.append(data)

    def eof_received(self) -> None:
        """Note it."""
        self.calls.append("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        """Note it."""
        self.calls.append(exc)


class Connection:
    """A server's end under test, and a client."""

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder, "authority")
        signed = authority.sign("server", address="127.0.0.1")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(signed.cert, signed.key)
        self.failures: list[str] = []
        self.tcp = TcpTransport()
        self.protocol = Recorder()
        self.server = TlsTransport(
            self.context, self.protocol, on_failure=self.failures.append
        )
        self.server.connection_made(self.tcp)
        self._to_client, self._to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        trusting = ssl.create_default_context(cafile=authority.cert)
        self.client = trusting.wrap_bio(
            self._to_client, self._to_server, server_hostname="127.0.0.1"
        )

    def sent(self) -> bytes:
        """Take what the client has to send."""
        return self._to_server.read()

    def receive(self) -> None:
        """Let the client receive all that was written."""
        self._to_client.write(bytes(self.tcp.written))
        self.tcp.written.clear()

    def shake_hands(self, *, piece_bytes: int = 1 << 16) -> None:
        """Complete the handshake; the server receives it in pieces."""
        for _ in range(3):
            with suppress(ssl.SSLWantReadError):
                self.client.do_handshake()
            data = self.sent()
            for start in range(0, len(data), piece_bytes):
                self.server.data_received(data[start : start + piece_bytes])
            self.receive()

    def read(self, count: int) -> bytes:
        """Let the client read `count` decrypted bytes."""
        self.receive()
        data = b""
        while len(data) < count:
            data += self.client.read(count - len(data))
        return data


@pytest.fixture
def connection(tmp_path: Path) -> Connection:
    return Connection(tmp_path)


@pytest.mark.parametrize("piece_bytes", [1, 7, 1 << 16])
def test_records_may_come_in_any_pieces(
    connection: Connection, piece_bytes: int
) -> None:
    """TCP knows no records."""
    connection.shake_hands(piece_bytes=piece_bytes)
    text = b"x" * 70_000
    for start in range(0, len(text), 10_000):
        connection.client.write(text[start : start + 10_000])
    data = connection.sent()
    for start in range(0, len(data), piece_bytes):
        connection.server.data_received(data[start : start + piece_bytes])

    received = [call for call in connection.protocol.calls if isinstance(call, bytes)]
    assert b"".join(received) == text


def test_one_read_is_one_call_of_the_protocol(connection: Connection) -> None:
    """A protocol that pauses reading expects at most one more read."""
    connection.shake_hands()
    for part in (b"a" * 16384, b"b" * 16384, b"c"):
        connection.client.write(part)
    connection.server.data_received(connection.sent())

    assert len(connection.protocol.calls) == 1


@pytest.mark.parametrize("size", [1, 16_384, 16_385, 300_000])
def test_a_write_is_passed_on_at_once(connection: Connection, size: int) -> None:
    """The transport has no buffer: that of the TCP transport is all that waits."""
    connection.shake_hands()
    connection.server.write(b"x" * size)

    assert connection.read(size) == b"x" * size
    connection.tcp.buffered = 12
    assert connection.server.get_write_buffer_size() == 12


def test_nothing_is_written_before_the_handshake(connection: Connection) -> None:
    """It would not be encrypted."""
    connection.server.write(b"secret")
    connection.server.close()

    assert not connection.tcp.written
    assert connection.tcp.is_closing()


def test_a_close_is_an_alert_and_the_end_of_all_writes(
    connection: Connection,
) -> None:
    """A client can tell it from a connection that was cut."""
    connection.shake_hands()
    connection.server.write(b"last")
    connection.server.close()
    connection.server.close()
    connection.server.write(b"too late")

    assert connection.read(4) == b"last"
    assert connection.client.read(1) == b""
    assert not connection.tcp.written


def test_the_end_of_the_stream_closes_the_connection(connection: Connection) -> None:
    """After the last bytes are processed."""
    connection.shake_hands()
    connection.client.write(b"last")
    with suppress(ssl.SSLWantReadError):
        connection.client.unwrap()
    connection.server.data_received(connection.sent())

    assert connection.protocol.calls == [b"last", "eof"]
    assert connection.tcp.is_closing()


def test_the_protocol_may_close_while_it_receives(connection: Connection) -> None:
    """As it does for the close frame of a page."""
    connection.shake_hands()

    class Closing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            connection.server.close()

    closing = Closing()
    connection.server.set_protocol(closing)
    connection.client.write(b"last")
    with suppress(ssl.SSLWantReadError):
        connection.client.unwrap()
    connection.server.data_received(connection.sent())

    assert closing.calls == [b"last"]
    assert not connection.failures


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x00\x05hello", b"GET / HTTP/1.1\r\n\r\n"]
)
def test_a_failed_handshake_is_reported_and_closed(
    connection: Connection, garbage: bytes
) -> None:
    """The client learns the reason before the end."""
    connection.server.data_received(garbage)

    assert len(connection.failures) == 1
    assert connection.tcp.written
    assert connection.tcp.is_closing()
    assert not connection.tcp.is_aborted


def test_a_broken_record_aborts_the_connection(connection: Connection) -> None:
    """Nothing else of it can be trusted."""
    connection.shake_hands()
    connection.server.data_received(b"\x17\x03\x03\x00\x20" + b"x" * 32)

    assert connection.tcp.is_aborted
    assert not connection.failures
    assert not connection.protocol.calls


def test_replies_of_tls_to_a_client_that_does_not_read_are_bounded(
    connection: Connection,
) -> None:
    """A client may ask for new keys without end; each request has a reply."""
    with suppress(ssl.SSLWantReadError):
        connection.client.do_handshake()
    connection.tcp.buffered = 1 << 20
    connection.server.data_received(connection.sent())

    assert connection.tcp.is_aborted
    assert not connection.tcp.written


def test_the_end_is_reported_once_and_frees_the_protocol(
    connection: Connection,
) -> None:
    """A reference back would keep both until a garbage collection."""
    connection.shake_hands()
    error = ConnectionResetError()
    connection.server.connection_lost(error)
    connection.server.connection_lost(None)

    assert connection.protocol.calls == [error]
    assert connection.server.get_protocol() is not connection.protocol


def test_facts_of_the_connection_are_those_of_tcp(connection: Connection) -> None:
    """And the context, by which HTTP libraries know the scheme."""
    get: Callable[[str], object] = connection.server.get_extra_info
    assert get("peername") == ("192.0.2.7", 4711)
    assert get("sslcontext") is connection.context
