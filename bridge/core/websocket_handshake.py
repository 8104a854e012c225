"""
The WebSocket handshake: validate the request headers, render the 101 response.

`parse_handshake` reads a whole HTTP request without an HTTP library. After a restart all
clients reconnect at once, and an HTTP server per connection costs more than the rest of
a window's life. So the common request, complete in one read and without anything unusual,
is parsed here. Any other request is left to the HTTP library: `None` is not a refusal.
"""

import re
from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import Final

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_START: Final = b"GET /socket.io/?"
_MAX_BYTES: Final = 1 << 15
# The query of the stock client; `t` defeats caches.
_TARGET: Final = re.compile(
    r"GET /socket\.io/\?EIO=4&transport=websocket(?:&t=[A-Za-z0-9_.-]{1,32})? HTTP/1\.1"
)
# RFC 9110 section 5.6.2, and values without control characters.
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER: Final = re.compile(rf"({_TOKEN.pattern}):[ \t]*([\x20-\x7e\t]*)")
_BODY_HEADERS: Final = frozenset({"content-length", "transfer-encoding", "expect"})


@dataclass(frozen=True, slots=True)
class Handshake:
    """
    A request for a new session over a WebSocket.

    Attributes:
        headers: By lower-case name; no name occurred twice.
        key: The value of `Sec-WebSocket-Key`.
        rest: Bytes received after the request: the client's first frames.

    """

    headers: Mapping[str, str]
    key: str
    rest: bytes


def parse_handshake(data: bytes) -> Handshake | None:
    """Parse the first bytes of a connection; `None` if they are any other request."""
    end = data.find(b"\r\n\r\n", 0, _MAX_BYTES)
    if end < 0 or not data.startswith(_START):
        return None
    first, *lines = data[:end].decode("latin-1").split("\r\n")
    headers = _parse_headers(lines)
    if not headers or not _TARGET.fullmatch(first):
        return None
    key = websocket_key(headers)
    if key is None or "host" not in headers:
        return None
    return Handshake(headers, key, data[end + 4 :])


def _parse_headers(lines: Sequence[str]) -> dict[str, str] | None:
    headers: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            return None
        name = match[1].lower()
        if name in headers or name in _BODY_HEADERS:
            return None
        headers[name] = match[2].rstrip(" \t")
    return headers


def websocket_key(headers: Mapping[str, str]) -> str | None:
    """
    Return the key of a valid handshake; `None` if the request is not one.

    Args:
        headers: Looked up by lower-case name.

    """
    if headers.get("upgrade", "").strip().lower() != "websocket":
        return None
    tokens = headers.get("connection", "").lower().split(",")
    if "upgrade" not in {token.strip() for token in tokens}:
        return None
    if headers.get("sec-websocket-version") != "13":
        return None
    key = headers.get("sec-websocket-key", "")
    try:
        is_valid = len(a2b_base64(key, strict_mode=True)) == 16
    except (Base64Error, ValueError):
        return None
    return key if is_valid else None


def subprotocol(headers: Mapping[str, str]) -> str | None:
    """
    Return the subprotocol for the response: the first that the client names.

    Clients fail a handshake whose response names none of those that they asked for. The
    bridge uses none, as Node's server, and repeats the first.
    """
    name = headers.get("sec-websocket-protocol", "").partition(",")[0].strip(" \t")
    return name if _TOKEN.fullmatch(name) else None


def switching_protocols(key: str, protocol: str | None = None) -> bytes:
    """Return the HTTP response that accepts a handshake, without extensions."""
    accept = b64encode(sha1(key.encode() + _GUID, usedforsecurity=False).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n"
        b"%b"
        b"Server: bridge\r\n\r\n"
        % (
            accept,
            b"Sec-WebSocket-Protocol: %b\r\n" % protocol.encode() if protocol else b"",
        )
    )
