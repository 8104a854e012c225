"""The sign-in to the console, its sessions, and what a cookie allows."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer

from bridge.core.client_address import parse_networks
from tests.unit.http.conftest import Client
from tests.unit.http.console_fakes import OWN, TOKEN, FakeConsole, cookie, try_token


@pytest.fixture
def console() -> FakeConsole:
    """A console with a token."""
    return FakeConsole()


@pytest_asyncio.fixture
async def client(console: FakeConsole) -> AsyncIterator[Client]:
    """A client that keeps no cookies: tests send them explicitly."""
    async with TestClient(
        TestServer(console.app()), cookie_jar=DummyCookieJar()
    ) as client:
        yield client


# --- signing in


async def test_the_token_opens_a_session_that_opens_the_api(client: Client) -> None:
    """The cookie is not accessible to scripts or other sites and contains no token."""
    response = await try_token(client)

    (morsel,) = response.cookies.values()
    assert response.status == 204
    assert morsel["httponly"]
    assert morsel["samesite"] == "Strict"
    assert morsel["path"] == "/"
    assert int(morsel["max-age"]) == 12 * 3600
    assert TOKEN not in morsel.value
    sent = {"Cookie": f"{morsel.key}={morsel.value}"}
    assert (await client.get("/api/thing", headers=sent)).status == 200
    assert (await client.get("/api/thing")).status == 401


async def test_a_session_id_of_an_attacker_is_not_taken_over(client: Client) -> None:
    """A page of the same host can set a cookie before the operator signs in (fixation)."""
    planted = await cookie(client)
    name = planted["Cookie"].partition("=")[0]
    for value in ("chosen-by-an-attacker", planted["Cookie"].partition("=")[2]):
        sent = {**OWN, "Cookie": f"{name}={value}"}
        (morsel,) = (await try_token(client, headers=sent)).cookies.values()
        assert morsel.value != value

    sent = {"Cookie": f"{name}=chosen-by-an-attacker"}
    assert (await client.get("/api/thing", headers=sent)).status == 401


async def test_two_bridges_on_one_machine_have_two_cookies(client: Client) -> None:
    """Browsers share cookies between the ports of a host."""
    names = set()
    for host in ("localhost:8081", "localhost:9081", "ops.example.org"):
        response = await try_token(client, headers={**OWN, "Host": host})
        names |= set(response.cookies)

    assert names == {"bridge_console_8081", "bridge_console_9081", "bridge_console"}


@pytest.mark.parametrize(
    ("trusted", "proto", "is_secure"),
    [
        (("127.0.0.1",), "https", True),
        (("127.0.0.1",), "http", False),
        (("127.0.0.1",), None, False),
        (("127.0.0.1",), "http, https", True),
        (("127.0.0.1",), "https, http", False),  # forged by the browser's program
        ((), "https", False),
    ],
)
async def test_the_cookie_is_secure_behind_a_trusted_proxy_with_tls(
    client: Client,
    console: FakeConsole,
    trusted: tuple[str, ...],
    proto: str | None,
    is_secure: bool,
) -> None:
    """Anyone can send the header, and browsers drop a Secure cookie over HTTP."""
    console.proxies.replace(parse_networks(trusted))
    headers = OWN | ({"X-Forwarded-Proto": proto} if proto else {})

    response = await try_token(client, headers=headers)

    (morsel,) = response.cookies.values()
    assert bool(morsel["secure"]) is is_secure


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"token":"wrong"}', 401),
        (b'{"token":"\xc3\xa9"}', 401),
        (b'{"token":""}', 422),
        (b'{"token":5}', 422),
        (b'"the-operator-token"', 422),
        (b"token=the-operator-token", 422),
        (b"", 422),
        (b"\xff", 422),
        (b'{"token":"' + b"x" * 5000 + b'"}', 422),
    ],
    ids=lambda value: ascii(value)[:30],
)
async def test_a_wrong_token_opens_no_session(
    client: Client, body: bytes, status: int
) -> None:
    """The answer is a problem that does not repeat the token."""
    response = await client.post("/console/session", data=body, headers=OWN)

    assert response.status == status
    assert response.content_type == "application/problem+json"
    assert not response.cookies
    assert "wrong" not in (await response.json())["detail"].replace("is wrong", "")


async def test_without_a_token_in_the_settings_no_one_can_sign_in(
    console: FakeConsole,
) -> None:
    """The answer names the setting."""
    console.keys.replace([None])
    async with TestClient(TestServer(console.app())) as client:
        response = await try_token(client)

        assert response.status == 403
        assert "TOKEN is not set" in (await response.json())["detail"]


async def test_wrong_tokens_lead_to_pauses_for_their_address(
    client: Client, console: FakeConsole
) -> None:
    """The right token is delayed too: otherwise the answer would reveal it."""
    console.proxies.replace(parse_networks(["127.0.0.1"]))
    guesser = {**OWN, "X-Forwarded-For": "198.51.100.7"}
    for number in range(5):
        assert (await try_token(client, f"guess-{number}", guesser)).status == 401

    refused = await try_token(client, TOKEN, guesser)
    other = await try_token(client, TOKEN, {**OWN, "X-Forwarded-For": "198.51.100.8"})
    console.clock.now_s += float(refused.headers["Retry-After"])
    later = await try_token(client, TOKEN, guesser)

    assert refused.status == 429
    assert "try again in 1 s" in (await refused.json())["detail"]
    assert not refused.cookies
    assert (other.status, later.status) == (204, 204)


async def test_a_sign_in_resets_the_count_of_wrong_tokens(client: Client) -> None:
    """Mistakes before and after a sign-in do not add up."""
    for token in (*"abcd", TOKEN, *"efgh"):
        await try_token(client, token)

    assert (await try_token(client)).status == 204


async def test_asking_for_a_session_is_not_an_error_without_one(
    client: Client,
) -> None:
    """Browsers would log an error at each first visit."""
    sent = await cookie(client)

    for headers, is_signed_in in ((sent, True), ({}, False)):
        response = await client.get("/console/session", headers=headers)
        assert await response.json() == {"signed_in": is_signed_in}


async def test_a_new_token_ends_all_sessions_and_the_same_token_none(
    client: Client, console: FakeConsole
) -> None:
    """A reload that changes other settings must not end sessions."""
    sent = await cookie(client)

    console.sign_in.apply(TOKEN)
    kept = await client.get("/api/thing", headers=sent)
    console.sign_in.apply("another")
    ended = await client.get("/api/thing", headers=sent)

    assert (kept.status, ended.status) == (200, 401)
    assert "sign in again" in (await ended.json())["detail"]


# --- requests with a cookie


async def test_signing_out_ends_the_session_on_the_server(client: Client) -> None:
    """A copy of the cookie is invalid too."""
    sent = await cookie(client)

    response = await client.delete("/console/session", headers=sent | OWN)

    (morsel,) = response.cookies.values()
    assert (response.status, morsel.value, morsel["max-age"]) == (204, "", "0")
    assert (await client.get("/api/thing", headers=sent)).status == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (OWN, 200),
        (OWN | {"Origin": "http://{host}", "Sec-Fetch-Site": "same-origin"}, 200),
        ({}, 403),
        ({"X-Bridge-Console": "yes"}, 403),
        (OWN | {"Origin": "http://evil.example"}, 403),
        (OWN | {"Origin": "http://127.0.0.1:1"}, 403),
        (OWN | {"Origin": "null"}, 403),
        (OWN | {"Sec-Fetch-Site": "same-site"}, 403),
        (OWN | {"Sec-Fetch-Site": "cross-site"}, 403),
    ],
    ids=str,
)
async def test_only_the_console_can_make_changes_with_a_cookie(
    client: Client, console: FakeConsole, headers: dict[str, str], status: int
) -> None:
    """Browsers send it with requests of other pages; another port is the same site."""
    host = f"{client.host}:{client.port}"
    sent = await cookie(client) | {
        name: value.format(host=host) for name, value in headers.items()
    }

    assert (await client.post("/api/thing", headers=sent)).status == status
    assert (await client.delete("/console/session", headers=sent)).status in {204, 403}
    assert console.changes == (status == 200)


@pytest.mark.parametrize("site", ["same-site", "cross-site"])
async def test_another_page_cannot_read_with_the_cookie(
    client: Client, site: str
) -> None:
    """This includes loading an answer as a script or an image."""
    sent = await cookie(client) | {"Sec-Fetch-Site": site}

    assert (await client.get("/api/thing", headers=sent)).status == 403


@pytest.mark.parametrize("path", ["/api/thing", "/console/session"])
async def test_another_page_cannot_keep_a_session_open(
    client: Client, console: FakeConsole, path: str
) -> None:
    """Its requests are refused, but would count as a use of the session."""
    sent = await cookie(client)
    for _ in range(2):
        console.clock.now_s += 1801
        await client.get(path, headers=sent | {"Sec-Fetch-Site": "same-site"})

    assert (await client.get("/api/thing", headers=sent)).status == 401


async def test_another_page_cannot_sign_in(client: Client) -> None:
    """It could otherwise try tokens from inside an operator's network."""
    for headers in ({}, OWN | {"Origin": "http://evil.example"}):
        response = await try_token(client, headers=headers)
        assert response.status == 403
        assert not response.cookies


async def test_a_program_with_the_token_needs_no_header(
    client: Client, console: FakeConsole
) -> None:
    """A page cannot send the token; if both are sent, the token is checked."""
    sent = await cookie(client)
    good, bad = ({"Authorization": f"Bearer {key}"} for key in (TOKEN, "other"))

    assert (await client.post("/api/thing", headers=good)).status == 200
    assert (await client.post("/api/thing", headers=good | sent)).status == 200
    assert (await client.post("/api/thing", headers=bad | sent | OWN)).status == 401
    assert console.changes == 2
