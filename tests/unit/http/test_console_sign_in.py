"""The console's door: who gets in, how long, and what a cookie may do."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer

from bridge.core.client_address import parse_networks
from tests.unit.http.conftest import Client
from tests.unit.http.console_fakes import OWN, TOKEN, Door, cookie, try_token


@pytest.fixture
def door() -> Door:
    """A door with the token set."""
    return Door()


@pytest_asyncio.fixture
async def client(door: Door) -> AsyncIterator[Client]:
    """Somebody with a browser that keeps no cookies: tests hand them over themselves."""
    async with TestClient(
        TestServer(door.app()), cookie_jar=DummyCookieJar()
    ) as client:
        yield client


# --- signing in


async def test_the_token_opens_a_session_that_opens_the_api(client: Client) -> None:
    """The cookie is out of reach of scripts and other sites, and says nothing."""
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


async def test_two_bridges_on_one_machine_have_two_cookies(client: Client) -> None:
    """Browsers keep one jar for all ports of a host."""
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
        ((), "https", False),
    ],
)
async def test_behind_a_trusted_proxy_with_tls_the_cookie_is_for_tls_alone(
    client: Client,
    door: Door,
    trusted: tuple[str, ...],
    proto: str | None,
    is_secure: bool,
) -> None:
    """Anybody can write that header; and a Secure cookie over http is lost."""
    door.sign_in.trusted_proxies = parse_networks(trusted)
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
async def test_whatever_is_not_the_token_opens_nothing(
    client: Client, body: bytes, status: int
) -> None:
    """And is told as a problem, without repeating it."""
    response = await client.post("/console/session", data=body, headers=OWN)

    assert response.status == status
    assert response.content_type == "application/problem+json"
    assert not response.cookies
    assert "wrong" not in (await response.json())["detail"].replace("is wrong", "")


async def test_without_a_token_in_the_settings_nothing_opens(door: Door) -> None:
    """And the reader is told which setting it is."""
    door.keys.replace([None])
    async with TestClient(TestServer(door.app())) as client:
        response = await try_token(client)

        assert response.status == 403
        assert "TOKEN is not set" in (await response.json())["detail"]


async def test_guessing_is_slowed_down_by_address(client: Client, door: Door) -> None:
    """The good token has to wait as well, or the answer would tell that it was good."""
    door.sign_in.trusted_proxies = parse_networks(["127.0.0.1"])
    guesser = {**OWN, "X-Forwarded-For": "198.51.100.7"}
    for _ in range(5):
        assert (await try_token(client, "guess", guesser)).status == 401

    refused = await try_token(client, TOKEN, guesser)
    neighbour = await try_token(
        client, TOKEN, {**OWN, "X-Forwarded-For": "198.51.100.8"}
    )
    door.clock.now_s += float(refused.headers["Retry-After"])
    later = await try_token(client, TOKEN, guesser)

    assert refused.status == 429
    assert "try again in 1 s" in (await refused.json())["detail"]
    assert not refused.cookies
    assert (neighbour.status, later.status) == (204, 204)


async def test_who_got_in_may_mistype_again(client: Client) -> None:
    """Four mistakes yesterday and four today are not eight."""
    for token in ("wrong",) * 4 + (TOKEN,) + ("wrong",) * 4:
        await try_token(client, token)

    assert (await try_token(client)).status == 204


async def test_the_page_asks_whether_it_is_signed_in_without_an_error(
    client: Client,
) -> None:
    """An error would be red in every browser's log at each first visit."""
    sent = await cookie(client)

    for headers, is_signed_in in ((sent, True), ({}, False)):
        response = await client.get("/console/session", headers=headers)
        assert await response.json() == {"signed_in": is_signed_in}


async def test_other_keys_end_all_sessions_and_the_same_keys_none(
    client: Client, door: Door
) -> None:
    """A reload that changes something else throws nobody out."""
    sent = await cookie(client)

    door.sign_in.apply(TOKEN, ())
    kept = await client.get("/api/thing", headers=sent)
    door.sign_in.apply("another", ())
    ended = await client.get("/api/thing", headers=sent)

    assert (kept.status, ended.status) == (200, 401)
    assert "sign in again" in (await ended.json())["detail"]


# --- what a cookie may do


async def test_signing_out_ends_the_session_for_good(client: Client) -> None:
    """Also for who has copied the cookie."""
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
async def test_with_a_cookie_only_the_console_itself_changes_anything(
    client: Client, door: Door, headers: dict[str, str], status: int
) -> None:
    """Browsers send it with whatever any page causes; another port is the same site."""
    host = f"{client.host}:{client.port}"
    sent = await cookie(client) | {
        name: value.format(host=host) for name, value in headers.items()
    }

    assert (await client.post("/api/thing", headers=sent)).status == status
    assert (await client.delete("/console/session", headers=sent)).status in {204, 403}
    assert door.changes == (status == 200)


@pytest.mark.parametrize("site", ["same-site", "cross-site"])
async def test_another_page_reads_nothing_by_the_cookie(
    client: Client, site: str
) -> None:
    """Not even as a script or a picture."""
    sent = await cookie(client) | {"Sec-Fetch-Site": site}

    assert (await client.get("/api/thing", headers=sent)).status == 403


async def test_another_page_cannot_sign_anybody_in(client: Client) -> None:
    """Nor try tokens from inside an operator's network."""
    for headers in ({}, OWN | {"Origin": "http://evil.example"}):
        response = await try_token(client, headers=headers)
        assert response.status == 403
        assert not response.cookies


async def test_a_program_with_the_token_needs_no_header(
    client: Client, door: Door
) -> None:
    """The token cannot be sent by accident; with both, the token counts."""
    sent = await cookie(client)
    good, bad = ({"Authorization": f"Bearer {key}"} for key in (TOKEN, "other"))

    assert (await client.post("/api/thing", headers=good)).status == 200
    assert (await client.post("/api/thing", headers=good | sent)).status == 200
    assert (await client.post("/api/thing", headers=bad | sent | OWN)).status == 401
    assert door.changes == 2
