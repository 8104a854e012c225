"""
TLS on a TCP connection, for a port without a proxy.

The transport encrypts each write at once and passes it to the TCP transport, so it has no
buffer of its own: all limits, and what counts as delivered, rest on the bytes that wait in
the TCP transport. The TLS transports of asyncio and uvloop buffer a second time, and do
not count the bytes below them; uvloop's reserves 256 KiB per connection.
"""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, cast

# The most that a TLS record holds. More at once would enlarge OpenSSL's buffers, which
# keep their size.
_RECORD_BYTES: Final = 1 << 14
# Replies of TLS itself, for a client that does not read.
_REPLIES_MAX_BYTES: Final = 1 << 16
_PLAIN_HTTP: Final = b"This port serves https only.\n"
_PLAIN_HTTP_RESPONSE: Final = (
    f"HTTP/1.1 {HTTPStatus.BAD_REQUEST.value} {HTTPStatus.BAD_REQUEST.phrase}\r\n"
    "Server: bridge\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    f"Content-Length: {len(_PLAIN_HTTP)}\r\n\r\n"
).encode() + _PLAIN_HTTP


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """
    The server's end of a TLS connection: the protocol of a TCP transport, and a transport.

    `protocol` is connected before the handshake: its limits and deadlines include it.
    `on_failure` is called with OpenSSL's reason if the handshake fails.
    """

    __slots__ = (
        "_incoming",
        "_is_open",
        "_on_failure",
        "_outgoing",
        "_protocol",
        "_tcp",
        "_tls",
    )

    _tcp: asyncio.Transport

    def __init__(
        self,
        context: ssl.SSLContext,
        protocol: asyncio.Protocol,
        *,
        on_failure: Callable[[str], None],
    ) -> None:
        self._protocol = protocol
        self._on_failure = on_failure
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._is_open = False  # whether the handshake is complete

    # --- the protocol of the TCP transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the handshake."""
        # The transports of uvloop are not subclasses of asyncio's.
        self._tcp = cast("asyncio.Transport", transport)
        self._protocol.connection_made(self)

    def data_received(self, data: bytes) -> None:
        """Continue the handshake, or decrypt what was received."""
        received: list[bytes] = []
        is_ended = False
        try:
            for start in range(0, len(data), _RECORD_BYTES):
                self._incoming.write(data[start : start + _RECORD_BYTES])
                is_ended = self._decrypt(received)
        except ssl.SSLError as exc:
            self._fail(exc)
            return
        # The handshake, or a reply of TLS itself.
        if self._outgoing.pending:
            if self._tcp.get_write_buffer_size() > _REPLIES_MAX_BYTES:
                self._tcp.abort()
                return
            self._flush()
        if received:
            # All at once: a protocol that pauses reading gets no more of it afterwards.
            self._protocol.data_received(b"".join(received))
        if is_ended and not self._tcp.is_closing():
            self.eof_received()
            self.close()

    def _decrypt(self, received: list[bytes]) -> bool:
        """Append decrypted bytes to `received`; true if the client ended the stream."""
        with suppress(ssl.SSLWantReadError):
            if not self._is_open:
                self._tls.do_handshake()
                self._is_open = True
            while self._incoming.pending or self._tls.pending():
                part = self._tls.read(_RECORD_BYTES)
                if not part:
                    return True
                received.append(part)
        return False

    def _fail(self, exc: ssl.SSLError) -> None:
        if self._is_open:
            self._tcp.abort()
            return
        self._on_failure(exc.reason or "unknown")
        # The client learns the reason, if it reads; the protocol has a deadline.
        if exc.reason == "HTTP_REQUEST":
            self._tcp.write(_PLAIN_HTTP_RESPONSE)
        else:
            self._flush()
        self._tcp.close()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._tcp.write(self._outgoing.read())

    def eof_received(self) -> None:
        """Report the end of the stream; the connection is closed then."""
        self._protocol.eof_received()

    def pause_writing(self) -> None:
        """Pass the state of the TCP transport on."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass the state of the TCP transport on."""
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end."""
        # Without the reference back, the objects are freed without a garbage collection.
        protocol, self._protocol = self._protocol, asyncio.Protocol()
        protocol.connection_lost(exc)

    # --- the transport of the protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Replace the protocol."""
        self._protocol = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - asyncio's
        """Return a fact about the connection."""
        if name == "sslcontext":
            return self._tls.context
        return self._tcp.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and write; nothing is written before the handshake and after `close`."""
        if not self._is_open or self._tcp.is_closing():
            return
        rest = memoryview(data)
        while rest:
            # A client may negotiate records that are smaller.
            rest = rest[self._tls.write(rest[:_RECORD_BYTES]) :]
            self._tcp.write(self._outgoing.read())

    def get_write_buffer_size(self) -> int:
        """Return how many encrypted bytes are buffered."""
        return self._tcp.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the low and the high limit, in encrypted bytes."""
        return self._tcp.get_write_buffer_limits()

    def set_write_buffer_limits(
        self, high: int | None = None, low: int | None = None
    ) -> None:
        """Set the limits at which the protocol is paused, in encrypted bytes."""
        self._tcp.set_write_buffer_limits(high, low)

    def pause_reading(self) -> None:
        """Stop reading."""
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._tcp.resume_reading()

    def is_reading(self) -> bool:
        """Return whether reading is not paused."""
        return self._tcp.is_reading()

    def is_closing(self) -> bool:
        """Return whether the connection is closed or closing."""
        return self._tcp.is_closing()

    def can_write_eof(self) -> bool:
        """Return that only both directions can be closed."""
        return False

    def close(self) -> None:
        """Close the connection after the buffered bytes."""
        if self._is_open and not self._tcp.is_closing():
            # It writes the alert `close_notify`. The client's own is not awaited.
            with suppress(ssl.SSLError):
                self._tls.unwrap()
            self._flush()
        self._tcp.close()

    def abort(self) -> None:
        """Close the connection at once; buffered bytes are discarded."""
        self._tcp.abort()
