"""The request that opens a WebSocket, against h11."""

from typing import Final

import h11

from bridge.core.websocket_handshake import (
    parse_handshake,
    subprotocol,
    switching_protocols,
    websocket_key,
)

MODULES: Final = ("bridge.core.websocket_handshake",)
_HEAD: Final = (
    b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: a.example\r\n"
    b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
SEEDS: Final = (
    _HEAD + b"\r\n",
    _HEAD
    + b"Sec-WebSocket-Protocol: a, b\r\nOrigin: https://a.example\r\n\r\n\x81\x80\x00\x00\x00\x00",
    _HEAD + b"Content-Length: 4\r\n\r\n",
    _HEAD + b"Cookie: a=b\r\nCookie: c=d\r\n\r\n",
    _HEAD.replace(b"websocket ", b"websocket&t=abc ") + b"\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
)


def fuzz_one(data: bytes) -> None:
    """Every accepted request is one that h11 reads with the same headers and the same end."""
    found = parse_handshake(data)
    if found is None:
        return
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 16)
    connection.receive_data(data[: len(data) - len(found.rest)])
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    assert isinstance(connection.next_event(), h11.EndOfMessage)
    theirs = {name.decode(): value.decode("latin-1") for name, value in request.headers}
    assert theirs == dict(found.headers)
    assert not connection.trailing_data[0]
    assert websocket_key(found.headers) == found.key
    response = switching_protocols(found.key, subprotocol(found.headers))
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[
        ("Host", "a"), ("Upgrade", "websocket"), ("Connection", "Upgrade"),
    ]))  # fmt: skip
    client.send(h11.EndOfMessage())
    client.receive_data(response)
    assert isinstance(client.next_event(), h11.InformationalResponse)
