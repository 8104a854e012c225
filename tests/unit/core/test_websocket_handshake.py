"""The WebSocket handshake; only the common request is parsed without the HTTP library."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.websocket_handshake import (
    parse_handshake,
    switching_protocols,
    websocket_key,
)

HEAD = (
    b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n"
    b"Host: example.com\r\n"
    b"Connection: keep-alive, Upgrade\r\n"
    b"Upgrade: websocket\r\n"
    b"Origin:  https://example.com \r\n"
    b"X-Forwarded-For: 192.0.2.1, 192.0.2.2\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def test_a_browsers_handshake_is_parsed_with_the_bytes_after_it() -> None:
    """A client may send its first frame before it receives the response."""
    handshake = parse_handshake(HEAD + b"\r\n\x81\x80abcd")

    assert handshake is not None
    assert handshake.key == "dGhlIHNhbXBsZSBub25jZQ=="
    assert handshake.headers["host"] == "example.com"
    assert handshake.headers["origin"] == "https://example.com"
    assert handshake.headers["x-forwarded-for"] == "192.0.2.1, 192.0.2.2"
    assert handshake.rest == b"\x81\x80abcd"


def test_the_cache_busting_parameter_of_the_stock_client_is_accepted() -> None:
    """The parameter is `t`."""
    data = HEAD.replace(b"=websocket ", b"=websocket&t=Pa3_x.1-0 ") + b"\r\n"
    assert parse_handshake(data) is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET",
        HEAD,  # incomplete
        HEAD[:40] + b"\r\n\r\n",
        b"P" + HEAD[1:] + b"\r\n",
        HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n",
        HEAD.replace(b"EIO=4", b"EIO=3") + b"\r\n",
        HEAD.replace(b"=websocket ", b"=websocket&sid=abc ") + b"\r\n",
        HEAD.replace(b"=websocket ", b"=websocket&j=0 ") + b"\r\n",
        HEAD.replace(b"=websocket ", b"=websocket&x=%0a ") + b"\r\n",
        HEAD.replace(b"=websocket ", b"=polling ") + b"\r\n",
        HEAD.replace(b"/socket.io/", b"/other/") + b"\r\n",
        HEAD.replace(b"Host: example.com\r\n", b"") + b"\r\n",
        HEAD + b"Host: other.example\r\n\r\n",
        HEAD + b"X-Forwarded-For: 192.0.2.3\r\n\r\n",
        HEAD + b"Content-Length: 5\r\n\r\nhello",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Expect: 100-continue\r\n\r\n",
        HEAD + b"no colon\r\n\r\n",
        HEAD + b"Space : before the colon\r\n\r\n",
        HEAD + b"A: b\r\n folded: line\r\n\r\n",
        HEAD + b"A: bare\nline feed\r\n\r\n",
        HEAD + b"A: bare\rreturn\r\n\r\n",
        HEAD + b"A: nul\x00\r\n\r\n",
        HEAD + "A: é\r\n\r\n".encode(),
        HEAD + b"A: " + b"x" * 33_000 + b"\r\n\r\n",
        HEAD.replace(b"Version: 13", b"Version: 12") + b"\r\n",
        HEAD.replace(b"dGhl", b"!!!!") + b"\r\n",
    ],
    ids=lambda data: ascii(data[-30:]),
)
def test_any_other_request_is_left_to_the_http_library(data: bytes) -> None:
    """The library refuses invalid requests and understands unusual ones."""
    assert parse_handshake(data) is None


@given(st.binary() | st.binary().map(lambda junk: HEAD + junk + b"\r\n\r\n"))
def test_arbitrary_bytes_never_raise(data: bytes) -> None:
    """The parser sees the first bytes of every connection."""
    handshake = parse_handshake(data)
    assert handshake is None or handshake.headers["host"] == "example.com"


# --- the headers

REQUEST_HEADERS = {
    "upgrade": "websocket",
    "connection": "Upgrade",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def test_the_response_matches_the_example_of_the_rfc() -> None:
    """RFC 6455 section 1.3."""
    key = websocket_key(REQUEST_HEADERS)
    assert key == REQUEST_HEADERS["sec-websocket-key"]
    response = switching_protocols(key).split(b"\r\n")
    assert response[0] == b"HTTP/1.1 101 Switching Protocols"
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in response
    assert response[-2:] == [b"", b""]


@pytest.mark.parametrize(
    ("name", "value", "is_valid"),
    [
        ("upgrade", "WebSocket", True),
        ("upgrade", "h2c", False),
        ("connection", "keep-alive, Upgrade", True),
        ("connection", "keep-alive", False),
        ("sec-websocket-version", "8", False),
        ("sec-websocket-key", "", False),
        ("sec-websocket-key", "dGhlIHNhbXBsZQ==", False),
        ("sec-websocket-key", "not base64 at all, no", False),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25j\u00e9==", False),
    ],
)
def test_only_a_complete_handshake_has_a_key(
    name: str, value: str, *, is_valid: bool
) -> None:
    """RFC 6455 section 4.2.1."""
    assert bool(websocket_key(REQUEST_HEADERS | {name: value})) is is_valid
    assert (
        websocket_key({k: v for k, v in REQUEST_HEADERS.items() if k != name}) is None
    )
