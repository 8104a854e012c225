"""
The request with which a page opens a websocket, if it is as plain as they all are.

Pages come back in crowds, and a whole HTTP server for each of them costs more than all
the rest of a window's life. So the one request that matters is read here, when it came
in one piece and holds nothing unusual. Everything else, and everything doubtful, is left
to the HTTP library: `None` is never a refusal.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bridge.core.websocket import websocket_key

_START: Final = b"GET /socket.io/?"
_MAX_BYTES: Final = 8190
# The stock client's query; `t` stops caches.
_TARGET: Final = re.compile(
    r"GET /socket\.io/\?EIO=4&transport=websocket(?:&t=[A-Za-z0-9_.-]{1,32})? HTTP/1\.1"
)
# RFC 9110 section 5.6.2, and values without control characters.
_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\t]*)")
_BODY: Final = frozenset({"content-length", "transfer-encoding", "expect"})


@dataclass(frozen=True, slots=True)
class Handshake:
    """
    A request for a new session over a websocket.

    Attributes:
        headers: By name in lower case; each stood there once.
        key: Of `Sec-WebSocket-Key`.
        rest: What came behind the request: the page's first frames.

    """

    headers: Mapping[str, str]
    key: str
    rest: bytes


def parse_handshake(data: bytes) -> Handshake | None:
    """Read `data`, the first bytes of a connection; `None` if it is anything else."""
    end = data.find(b"\r\n\r\n", 0, _MAX_BYTES)
    if end < 0 or not data.startswith(_START):
        return None
    first, *lines = data[:end].decode("latin-1").split("\r\n")
    headers = _headers(lines)
    if not headers or not _TARGET.fullmatch(first):
        return None
    key = websocket_key(headers)
    if key is None or "host" not in headers:
        return None
    return Handshake(headers, key, data[end + 4 :])


def _headers(lines: Sequence[str]) -> dict[str, str] | None:
    headers: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            return None
        name = match[1].lower()
        if name in headers or name in _BODY:
            return None
        headers[name] = match[2].rstrip(" \t")
    return headers
