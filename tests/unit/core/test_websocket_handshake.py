"""The one request that is read without the HTTP library: taken only if it is plain."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.websocket_handshake import parse_handshake

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


def test_a_browsers_handshake_is_read_with_what_came_behind_it() -> None:
    """A client need not wait for the answer before it sends its first frame."""
    handshake = parse_handshake(HEAD + b"\r\n\x81\x80abcd")

    assert handshake is not None
    assert handshake.key == "dGhlIHNhbXBsZSBub25jZQ=="
    assert handshake.headers["host"] == "example.com"
    assert handshake.headers["origin"] == "https://example.com"
    assert handshake.headers["x-forwarded-for"] == "192.0.2.1, 192.0.2.2"
    assert handshake.rest == b"\x81\x80abcd"


def test_the_stock_clients_mark_against_caches_is_no_obstacle() -> None:
    """It adds `t`."""
    data = HEAD.replace(b"=websocket ", b"=websocket&t=Pa3_x.1-0 ") + b"\r\n"
    assert parse_handshake(data) is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET",
        HEAD,  # its end has not come yet
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
        HEAD + b"A: " + b"x" * 8200 + b"\r\n\r\n",
        HEAD.replace(b"Version: 13", b"Version: 12") + b"\r\n",
        HEAD.replace(b"dGhl", b"!!!!") + b"\r\n",
    ],
    ids=lambda data: ascii(data[-30:]),
)
def test_everything_else_is_left_to_the_http_library(data: bytes) -> None:
    """It knows how to refuse, and how to understand what is unusual."""
    assert parse_handshake(data) is None


@given(st.binary() | st.binary().map(lambda junk: HEAD + junk + b"\r\n\r\n"))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    """It sees what strangers send first."""
    handshake = parse_handshake(data)
    assert handshake is None or handshake.headers["host"] == "example.com"
