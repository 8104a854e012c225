"""The demo answers only its own page on this machine."""

import aiohttp
import pytest

from tests.browser.demo_process import DemoProcess

pytestmark = pytest.mark.asyncio(loop_scope="session")

_JSON = {"Content-Type": "application/json"}
_POSTS = ("/demo/token", "/demo/publish", "/demo/cut")
_FOREIGN_REQUESTS = {
    "a page of another site": {"Origin": "https://evil.example"},
    "a page of another port": {"Origin": "http://127.0.0.1:1"},
    "a page without an origin": {"Origin": "null"},
    "a link or image elsewhere": {"Sec-Fetch-Site": "cross-site"},
    "a page of the same site, another port": {"Sec-Fetch-Site": "same-site"},
    # Origin and host agree, but the name is not a loopback name (DNS rebinding).
    "a name made to point here": {
        "Host": "evil.example",
        "Origin": "http://evil.example",
    },
}


@pytest.mark.parametrize("source", _FOREIGN_REQUESTS)
async def test_foreign_requests_get_no_token_and_no_key(
    demo: DemoProcess, source: str
) -> None:
    """Any site in the same browser can send requests to loopback addresses."""
    headers = _FOREIGN_REQUESTS[source]
    async with aiohttp.ClientSession(demo.url, headers=headers) as session:
        for path in _POSTS:
            async with session.post(
                path, data=b'{"user":"ann"}', headers=_JSON
            ) as answer:
                assert answer.status == 403, path
        async with session.get("/demo/facts") as answer:
            assert answer.status == 403


@pytest.mark.parametrize("path", _POSTS)
async def test_requests_must_be_json(demo: DemoProcess, path: str) -> None:
    """Forms of other sites can send plain text, but JSON needs a CORS preflight."""
    async with aiohttp.ClientSession(demo.url) as session:
        for kind in ("text/plain", "application/x-www-form-urlencoded"):
            headers = {"Content-Type": kind}
            async with session.post(
                path, data=b'{"user":"ann"}', headers=headers
            ) as answer:
                assert answer.status == 415


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/demo/token", b'{"user": ""}', 422),
        ("/demo/token", b'{"user": 7}', 422),
        ("/demo/token", b"[]", 422),
        ("/demo/token", b"{", 422),
        ("/demo/cut", b'{"sid": "unknown"}', 404),
        ("/demo/publish", b'{"user": "ann"}', 422),
        ("/demo/publish", b"not json", 400),
    ],
)
async def test_bad_requests_are_answered_with_problems(
    demo: DemoProcess, path: str, body: bytes, status: int
) -> None:
    """The demo is an example of a backend, so its errors are explained, too."""
    async with (
        aiohttp.ClientSession(demo.url) as session,
        session.post(path, data=body, headers=_JSON) as answer,
    ):
        assert answer.status == status
        assert answer.content_type == "application/problem+json"


@pytest.mark.parametrize("path", ["/", "/demo/window.html", "/demo/connection.js"])
async def test_the_page_allows_no_inline_code_and_no_other_origins(
    demo: DemoProcess, path: str
) -> None:
    """Even if untrusted text became markup, it could neither run nor send requests."""
    async with aiohttp.ClientSession(demo.url) as session, session.get(path) as answer:
        policy = answer.headers["Content-Security-Policy"]
        text = await answer.text()

    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'self'" in policy
    assert "unsafe" not in policy
    assert "innerHTML" not in text
    assert "style=" not in text


async def test_the_printed_token_opens_the_console(
    demo: DemoProcess,
) -> None:
    """The console shows the demo to an operator; each start creates a new token."""
    url, token = demo.console
    async with (
        aiohttp.ClientSession(headers={"X-Bridge-Console": "1"}) as session,
        session.get(url) as page,
        session.post(f"{url}/session", json={"token": token}) as signed_in,
    ):
        assert page.status == 200
        assert signed_in.status == 204


async def test_a_rebound_name_does_not_get_the_page(demo: DemoProcess) -> None:
    """The shell command on the page contains a key."""
    headers = {"Host": "evil.example"}
    async with (
        aiohttp.ClientSession(demo.url, headers=headers) as session,
        session.get("/") as answer,
    ):
        assert answer.status == 403
