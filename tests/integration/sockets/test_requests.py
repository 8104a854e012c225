"""HTTP requests: origins, session ids, limits per address, and invalid requests."""

import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from yarl import URL

from bridge.core.client_address import parse_networks
from bridge.core.origins import OriginRules
from tests.conftest import eventually
from tests.integration.sockets.conftest import Log
from tests.integration.sockets.raw_pages import (
    raw_poller,
    raw_tcp,
    raw_window,
)
from tests.integration.sockets.running_server import Plan, RunningServer, open_server
from tests.integration.sockets.security import http_session
from tests.tokens import token

LISTED = Plan(origins=OriginRules(allowed=frozenset({"https://app.example"})))
APPS = Plan(
    origins=OriginRules(
        allowed=frozenset(
            {"capacitor://localhost", "https://*.example.org", "dangerously-null"}
        )
    )
)
OPENING = {"EIO": "4", "transport": "polling"}


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A plain HTTP client."""
    async with http_session() as http:
        yield http


# --- origins

ORIGINS = pytest.mark.parametrize(
    ("plan", "headers", "is_allowed"),
    [
        (Plan(), {}, True),
        (Plan(), {"Origin": "https://evil.example"}, False),
        (Plan(), {"Origin": "null"}, False),
        (Plan(), {"Origin": ""}, False),
        (Plan(), {"Origin": "http://127.0.0.1"}, False),  # another port
        (Plan(), {"Origin": "http://{host}"}, True),
        (Plan(), {"Origin": "https://{host}"}, True),  # a proxy terminates TLS
        (Plan(), {"Origin": "http://app.example", "Host": "app.example"}, True),
        (
            Plan(),
            {"Origin": "https://evil.example", "X-Forwarded-Host": "evil.example"},
            False,
        ),
        (Plan(), {"Sec-Fetch-Site": "cross-site"}, False),
        (Plan(), {"Sec-Fetch-Site": "same-origin"}, True),
        (LISTED, {"Origin": "https://app.example"}, True),
        (LISTED, {"Origin": "https://evil.example"}, False),
        (LISTED, {"Origin": "http://{host}"}, False),
        (LISTED, {"Origin": "null"}, False),
        (LISTED, {}, True),
        (LISTED, {"Sec-Fetch-Site": "same-site"}, False),
        (APPS, {"Origin": "capacitor://localhost"}, True),
        (APPS, {"Origin": "https://eu.example.org"}, True),
        (APPS, {"Origin": "https://example.org"}, False),
        (APPS, {"Origin": "null"}, True),
        (
            Plan(origins=OriginRules(allows_any=True)),
            {"Origin": "https://evil.example"},
            True,
        ),
    ],
    ids=lambda value: "listed" if value == LISTED else ascii(value)[:60],
)


def filled(headers: dict[str, str], server: RunningServer) -> dict[str, str]:
    """Replace the placeholder in a case by the server's address."""
    return {
        name: value.format(host=f"127.0.0.1:{server.port}")
        for name, value in headers.items()
    }


@ORIGINS
@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_other_origins_are_refused_with_a_reason(
    plan: Plan, headers: dict[str, str], *, is_allowed: bool, transport: str
) -> None:
    """A browser sends the user's cookie for pages of any origin; the server must check it."""
    packets: list[str] = []
    async with open_server(plan) as server:
        headers = filled(headers, server) | {"Cookie": f"bridge_token={token()}"}
        if transport == "websocket":
            async with raw_window(server, headers=headers) as window:
                packets.append(await window.connect())
                joined = len(server.windows("alice"))
        else:
            async with raw_poller(server, headers=headers) as page:
                await page.post("40")
                packets += await page.poll()
                joined = len(server.windows("alice"))

    if is_allowed:
        assert joined == 1
        assert packets[0].startswith("40")
    else:
        assert joined == 0
        assert json.loads(packets[0][2:])["data"] == {
            "code": "origin_not_allowed",
            "temporary": False,
        }


@ORIGINS
async def test_only_allowed_origins_may_read_with_credentials(
    http: aiohttp.ClientSession,
    plan: Plan,
    headers: dict[str, str],
    *,
    is_allowed: bool,
) -> None:
    """Preflights and responses agree; a refused page can read only its refusal."""
    async with open_server(plan) as server:
        headers = filled(headers, server)
        origin = headers.get("Origin")
        for method in ("OPTIONS", "GET"):
            async with http.request(
                method, server.socket_url(transport="polling"), headers=headers
            ) as response:
                assert response.status == 200
                allowed = response.headers.get("Access-Control-Allow-Origin")
                credentials = response.headers.get("Access-Control-Allow-Credentials")
        assert allowed == (origin or None)
        assert credentials == ("true" if origin and is_allowed else None)
        assert allowed != "*"


async def test_a_preflight_allows_a_token_in_a_header(
    http: aiohttp.ClientSession,
) -> None:
    """Browsers send a preflight before a request with `Authorization`."""
    async with (
        open_server(LISTED) as server,
        http.options(
            server.socket_url(transport="polling"),
            headers={
                "Origin": "https://app.example",
                "Access-Control-Request-Method": "GET",
                "Access-Control-Request-Headers": "authorization",
            },
        ) as response,
    ):
        assert response.headers["Access-Control-Allow-Headers"] == "authorization"
        assert response.headers["Vary"] == "Origin"
        assert not server.sessions()


@pytest.mark.parametrize(
    ("origin", "asked", "allowed"),
    [
        ("https://app.example", "x-tenant,x-trace-id", "x-tenant,x-trace-id"),
        ("https://app.example", "x-tenant, authorization", "x-tenant, authorization"),
        ("https://app.example", None, "Authorization, Content-Type"),
        ("https://app.example", "x\u00e9", "Authorization, Content-Type"),
        ("https://app.example", 'x"y', "Authorization, Content-Type"),
        ("https://evil.example", "x-tenant", "Authorization, Content-Type"),
    ],
    ids=ascii,
)
async def test_a_preflight_allows_the_headers_that_an_allowed_page_asks_for(
    http: aiohttp.ClientSession, origin: str, asked: str | None, allowed: str
) -> None:
    """Without them, polling with `extraHeaders` of the stock client fails."""
    headers = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    if asked is not None:
        headers["Access-Control-Request-Headers"] = asked
    async with (
        open_server(LISTED) as server,
        http.options(
            server.socket_url(transport="polling"), headers=headers
        ) as response,
    ):
        assert response.status == 200
        assert response.headers["Access-Control-Allow-Headers"] == allowed


@pytest.mark.parametrize(
    "query",
    [
        "EIO=4&transport=polling&j=0",
        "EIO=4&transport=polling&j",
        "EIO=4&transport=polling&j=",
        "EIO=4&transport=polling&%6a=0",
        "EIO=4&transport=websocket&j=0",
    ],
)
async def test_jsonp_is_not_served(
    server: RunningServer, http: aiohttp.ClientSession, query: str
) -> None:
    """A script element in any page could open a session."""
    url = URL(f"{server.url}/socket.io/?{query}", encoded=True)
    async with http.get(url) as response:
        assert response.status == 400
        assert "___eio" not in await response.text()
    assert not server.sessions()


# --- session ids


@pytest.mark.parametrize(
    "query",
    [
        "sid=forged%0Aline",
        "sid=",
        "sid",
        "sid=%00",
        "sid=<script>alert(1)</script>",
        "sid=" + "a" * 20,
        "sid=" + "a" * 5000,
        "sid=forged%0Aline&sid=x",
        "sid=%F0%28%8C%28",
    ],
    ids=lambda query: query[:30],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unknown_session_is_neither_logged_nor_quoted(
    server: RunningServer,
    http: aiohttp.ClientSession,
    log: Log,
    query: str,
    method: str,
) -> None:
    """python-engineio does both, newlines included."""
    url = URL(f"{server.url}/socket.io/?EIO=4&transport=polling&{query}", encoded=True)
    async with http.request(method, url, data=b"3") as response:
        text = await response.text()
        assert response.status == 400
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.content_type == "text/plain"
    assert text == "unknown session"
    for part in ("forged", "script", "aaaaaaaaaa"):
        assert part not in log.text


async def test_ambiguous_queries_are_parsed_once(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    """python-engineio parsed the query again, by other rules than aiohttp."""
    async with raw_poller(server) as page:
        for trick in (f"x=%26sid%3D{page.sid}", f"x=;sid={page.sid}", "x=%26j%3D0"):
            url = f"{server.url}/socket.io/?EIO=4&transport=polling&{trick}"
            async with http.get(URL(url, encoded=True)) as response:
                opening = json.loads((await response.text())[1:])
                assert opening["sid"] != page.sid


@pytest.mark.parametrize(
    ("method", "query", "status"),
    [
        ("GET", "", 400),
        ("GET", "EIO=3&transport=polling", 400),
        ("GET", "EIO=4", 400),
        ("GET", "EIO=4&transport=flashsocket", 400),
        ("GET", "EIO=4&transport=websocket", 400),
        ("POST", "EIO=4&transport=polling", 400),
        ("HEAD", "EIO=4&transport=polling", 400),
        ("PUT", "EIO=4&transport=polling", 400),
        ("DELETE", "EIO=4&transport=polling", 400),
        ("OPTIONS", "EIO=4&transport=polling", 200),
        ("OPTIONS", "EIO=4&transport=polling&sid=unknown", 200),
    ],
)
async def test_invalid_requests_are_answered_and_leave_nothing_behind(
    server: RunningServer,
    http: aiohttp.ClientSession,
    method: str,
    query: str,
    status: int,
) -> None:
    """Scanners, old clients and preflights send them."""
    async with http.request(method, f"{server.url}/socket.io/?{query}") as response:
        assert response.status == status
        assert response.headers["Server"] == "bridge"
    assert not server.sessions()


async def test_a_failed_handshake_leaves_no_session(server: RunningServer) -> None:
    """The request names the WebSocket transport but lacks headers."""
    async with raw_tcp(server) as connection:
        await connection.send(
            b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\n"
            b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        )
        assert b" 400 " in await connection.receive_until(b"\r\n\r\n")
        assert all(session.is_closed for session in server.sessions())
    server.tick(later_s=5)
    assert not server.sessions()


# --- limits per address


async def test_the_sessions_of_one_address_are_limited(
    http: aiohttp.ClientSession,
) -> None:
    """Connected or not. A session that ends makes room for another."""
    async with (
        open_server(Plan(windows_per_address=3)) as server,
        raw_window(server) as first,
        raw_poller(server),
        raw_window(server),
    ):
        async with http.get(server.socket_url(transport="polling")) as response:
            assert response.status == 429
            assert response.headers["Retry-After"]
        await first.websocket.close()
        await eventually(lambda: len(server.sessions()) == 2)
        async with raw_window(server) as again:
            await again.join("alice")


async def test_behind_a_trusted_proxy_the_address_of_the_client_counts(
    http: aiohttp.ClientSession,
) -> None:
    """Otherwise all users would share one limit."""
    plan = Plan(windows_per_address=1, trusted_proxies=parse_networks(["127.0.0.1"]))

    async def status(server: RunningServer, *forwarded: str) -> int:
        headers = [("X-Forwarded-For", each) for each in forwarded]
        url = server.socket_url(transport="polling")
        async with http.get(url, headers=headers) as response:
            return response.status

    async with open_server(plan) as server:
        assert await status(server, "192.0.2.1") == 200
        assert await status(server, "192.0.2.1") == 429
        assert (
            await status(server, "198.51.100.9, 192.0.2.1") == 429
        )  # forged by the client
        assert await status(server, "192.0.2.2") == 200
        assert await status(server, "192.0.2.2:4711") == 429
        # HAProxy adds a header line of its own after the one that the client forged.
        assert await status(server, "198.51.100.9", "192.0.2.2") == 429


async def test_without_trusted_proxies_the_header_is_ignored(
    http: aiohttp.ClientSession,
) -> None:
    """Any client can send it."""
    async with open_server(Plan(windows_per_address=1)) as server:
        url = server.socket_url(transport="polling")
        for number, status in enumerate([200, 429, 429]):
            headers = {"X-Forwarded-For": f"192.0.2.{number}", "X-Real-IP": "192.0.2.9"}
            async with http.get(url, headers=headers) as response:
                assert response.status == status


async def test_a_client_that_disconnects_before_the_response_causes_no_error(
    server: RunningServer,
) -> None:
    """Browsers do it at every reload, at any moment."""
    handshake = (
        b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\n"
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    polling = b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: x\r\n\r\n"
    for request in (handshake, polling, polling + handshake, handshake[:60]):
        for _ in range(5):
            async with raw_tcp(server) as connection:
                await connection.send(request)
    await eventually(lambda: server.connection_count == 0)
    server.tick(later_s=60)
    server.tick(later_s=70)
    assert not server.sessions()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 100,
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\nbad header\r\n\r\n",
        b"GET /socket.io/ HTTP/9.9\r\n\r\n",
        b"POST /socket.io/ HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    ],
    ids=lambda garbage: ascii(garbage[:24]),
)
async def test_input_that_is_not_http_is_closed_without_a_traceback(
    server: RunningServer, garbage: bytes
) -> None:
    """Scanners send it all day, and tracebacks would fill the log."""
    async with raw_tcp(server) as connection:
        await connection.send(garbage)
        await connection.read_to_end()
    async with raw_window(server) as window:
        await window.join("alice")
