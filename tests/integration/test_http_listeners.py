"""Publishing over HTTP: `POST /api/publish` and the legacy GET endpoint."""

import asyncio
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from bridge.cli.operator_client import OperatorOptions, operator_client
from bridge.core.contracts.operator.overview import Overview
from tests.conftest import eventually
from tests.integration.running import (
    OPERATOR_TOKEN,
    open_windows,
    post,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode

API_KEY = "api-key-of-the-tests"

# --- addresses ---


async def test_both_ports_listen_on_several_addresses_and_unix_sockets(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """Windows come by IPv4, IPv6 and the socket of a proxy; commands by a socket, too."""
    public, operator = f"unix:{tmp_path}/public", f"unix:{tmp_path}/operator"
    settings = settings_for(
        broker, namespace, host=f"::,{public}", operator_host=operator
    )
    async with running_bridge(settings) as running:
        port = URL(running.listening.public_url).port
        tokens = [running.token("ann")]
        async with (
            open_windows(f"http://127.0.0.1:{port}", tokens),
            open_windows(f"http://[::1]:{port}", tokens),
        ):
            options = OperatorOptions(
                url=running.listening.operator_url, token=OPERATOR_TOKEN
            )
            async with operator_client(options) as client:
                overview = await client.ask("GET", "/api/overview", Overview)
            assert overview.windows == 2
        connector = aiohttp.UnixConnector(f"{tmp_path}/public")
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.get("http://localhost/health/ready") as response,
        ):
            assert response.status == 200
    assert not list(await asyncio.to_thread(lambda: [*tmp_path.iterdir()]))


# --- POST /api/publish ---------------------------------------------------------------


async def test_publishing_over_http_is_confirmed_and_arrives(
    broker: LocalNode, namespace: str
) -> None:
    """Some producers have no AMQP client."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        open_windows(running.listening.public_url, [running.token("ann")]) as (ann,),
    ):
        status, body, _ = await post(
            running, b'{"user": "ann", "event": "note", "data": {"n": 1}, "id": "x"}'
        )
        await eventually(lambda: ann.data("note"))

        assert (status, body) == (202, {"id": "x"})
        assert ann.data("note") == [{"n": 1}]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        (b"[]", 400, "not a JSON object"),
        (b'{"user": "ann", "data": 1, "colour": 2}', 400, "'colour' is not a field"),
        (b'{"data": 1}', 422, "user is missing"),
        (b'{"user": "", "data": 1}', 422, "user"),
        (b'{"user": "ann"}', 422, "data is missing"),
        (b'{"user": "ann", "data": 1, "event": "connect"}', 422, "reserved"),
        (b'{"user": "ann", "data": "' + b"x" * 300_000 + b'"}', 413, ""),
    ],
)
async def test_a_bad_body_is_answered_with_a_problem(
    broker: LocalNode, namespace: str, body: bytes, status: int, words: str
) -> None:
    """The problem follows RFC 9457 and has a sentence for the reader."""
    async with running_bridge(settings_for(broker, namespace)) as running:
        answered, problem, headers = await post(running, body)

    assert answered == problem["status"] == status
    assert headers["Content-Type"] == "application/problem+json"
    assert words in str(problem["detail"])


@pytest.mark.parametrize("token", [None, "wrong"])
async def test_without_a_valid_key_nothing_is_published(
    broker: LocalNode, namespace: str, token: str | None
) -> None:
    """The endpoint always needs a key."""
    async with running_bridge(settings_for(broker, namespace)) as running:
        status, _, headers = await post(
            running, b'{"user": "ann", "data": 1}', token=token
        )

        assert status == 401
        assert headers["WWW-Authenticate"] == "Bearer"
        assert running.sample("bridge_published_total") == 0


# --- the legacy endpoint, GET / -----------------------------------------------------------


async def test_a_legacy_push_reaches_a_page_that_joined(
    broker: LocalNode, namespace: str
) -> None:
    """GET /?name=USER&msg=TEXT emits `{"code": 0, "data": TEXT}` to pages that joined."""
    settings = settings_for(
        broker, namespace, auth="open", legacy_push="true", jwt_secret=""
    )
    async with running_bridge(settings) as running:
        url = running.listening.public_url
        async with (
            open_windows(url, [""], until=lambda _: True) as (page,),
            aiohttp.ClientSession() as session,
        ):
            await page.websocket.send_str('42["join",{"username":"ann"}]')
            await eventually(lambda: page.is_synced)
            query = {"name": "ann", "msg": "hello & more"}
            async with session.get(url, params=query) as response:
                assert response.status == 200
                assert await response.json() == {"code": 0}
            await eventually(page.data)

            assert page.data() == [{"code": 0, "data": "hello & more"}]


async def test_the_legacy_endpoint_is_disabled_by_default(
    broker: LocalNode, namespace: str
) -> None:
    """A GET with an effect can be triggered by any page."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        aiohttp.ClientSession() as session,
        session.get(
            running.listening.public_url, params={"name": "ann", "msg": "x"}
        ) as response,
    ):
        assert response.status == 404


async def test_the_legacy_endpoint_needs_a_key_unless_the_mode_is_open(
    broker: LocalNode, namespace: str
) -> None:
    """Only open mode, which has no authentication, needs no key."""
    settings = settings_for(broker, namespace, legacy_push="true", api_key=API_KEY)
    async with running_bridge(settings) as running, aiohttp.ClientSession() as session:
        url = running.listening.public_url
        query = {"name": "ann", "msg": "x"}
        async with session.get(url, params=query) as response:
            assert response.status == 401
        async with session.get(
            url, params=query, headers={"X-API-Key": API_KEY}
        ) as response:
            assert response.status == 200
        async with session.head(
            url, params=query, headers={"X-API-Key": API_KEY}
        ) as response:
            assert response.status == 405


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://listed.example", "Sec-Fetch-Site": "cross-site"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),  # such as an image
    ],
    ids=str,
)
@pytest.mark.parametrize("is_exposed", ["false", "true"])
async def test_a_page_of_another_origin_cannot_push_in_open_mode(
    broker: LocalNode,
    namespace: str,
    headers: dict[str, str],
    status: int,
    is_exposed: str,
) -> None:
    """Any page can cause a GET, and open mode needs no key; reloads change the origins."""
    changes = {
        "auth": "open",
        "legacy_push": "true",
        "jwt_secret": "",
        "dangerously_open_to_the_network": is_exposed,
    }
    async with running_bridge(settings_for(broker, namespace, **changes)) as running:
        await running.bridge.reload(
            settings_for(
                broker, namespace, **changes, allowed_origins="https://listed.example"
            )
        )
        query = {"name": "ann", "msg": "x"}
        url = running.listening.public_url
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(url, params=query) as response,
        ):
            assert response.status == status, await response.text()
