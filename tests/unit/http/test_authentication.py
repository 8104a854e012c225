"""Keys: each is sufficient, nothing else is, and timing reveals nothing about them."""

import secrets

import pytest
from aiohttp import web

from bridge.http.authentication import Keys, guarded
from bridge.http.responses import answer_with_problems
from tests.unit.http.conftest import Open


def app_behind(keys: Keys) -> web.Application:
    """Return an application with one handler behind `keys`."""

    async def open_handler(_request: web.Request) -> web.Response:
        return web.Response(text="open")

    app = web.Application(middlewares=[answer_with_problems])
    app.router.add_get("/", guarded(keys, open_handler))
    return app


GOOD = [
    {"Authorization": "Bearer first"},
    {"Authorization": "bearer  second "},
    {"X-API-Key": "first"},
    {"Authorization": "Basic Zmlyc3Q=", "X-API-Key": "second"},
]
BAD: list[dict[str, str]] = [
    {},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer "},
    {"Authorization": "Bearer firs"},
    {"Authorization": "Bearer firstt"},
    {"Authorization": "Bearer First"},
    {"Authorization": "first"},
    {"Authorization": "Basic first"},
    {"Authorization": "Bearer None"},
    {"X-API-Key": ""},
    {"X-API-Key": "None"},
    {"X-API-Key": "first second"},
    {"X-API-Key": "\u00e9"},
    {"Cookie": "key=first"},
]


@pytest.mark.parametrize("headers", GOOD, ids=str)
async def test_each_key_is_sufficient(open_app: Open, headers: dict[str, str]) -> None:
    """It may be in either header: curl users and API gateways differ."""
    keys = Keys(["first", None, "second", ""], setting="BRIDGE_API_KEY")
    client = await open_app(app_behind(keys))

    async with client.get("/", headers=headers) as response:
        assert response.status == 200


@pytest.mark.parametrize("headers", BAD, ids=ascii)
async def test_a_wrong_key_is_refused(open_app: Open, headers: dict[str, str]) -> None:
    """401 as a problem that explains how to send a key."""
    keys = Keys(["first", None, "second", ""], setting="BRIDGE_API_KEY")
    client = await open_app(app_behind(keys))

    async with client.get("/", headers=headers) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.content_type == "application/problem+json"
        assert "first" not in await response.text()


async def test_the_answer_to_a_wrong_key_names_the_right_one(open_app: Open) -> None:
    """A producer that calls the operator API with its API key has no wrong key."""
    keys = Keys(["first"], setting="BRIDGE_OPERATOR_TOKEN")
    client = await open_app(app_behind(keys))

    async with client.get("/", headers={"X-API-Key": "other"}) as response:
        detail = (await response.json())["detail"]

    expected = "expected BRIDGE_OPERATOR_TOKEN of the running bridge"
    assert detail == f"the key is wrong: {expected}"


@pytest.mark.parametrize("keys", [[], [None], [""], [None, ""]])
async def test_without_keys_every_request_is_refused_with_the_name_of_the_setting(
    open_app: Open, keys: list[str | None]
) -> None:
    """An empty key must never be valid."""
    client = await open_app(app_behind(Keys(keys, setting="BRIDGE_API_KEY")))

    for headers in ({}, {"X-API-Key": ""}, {"Authorization": "Bearer "}):
        async with client.get("/", headers=headers) as response:
            assert response.status == 403
            assert "BRIDGE_API_KEY is not set" in (await response.json())["detail"]


async def test_keys_can_be_replaced_while_serving(open_app: Open) -> None:
    """SIGHUP does that if the settings have a new key."""
    keys = Keys(["old"], setting="BRIDGE_API_KEY")
    client = await open_app(app_behind(keys))
    keys.replace(["new"])

    statuses = []
    for key in ("old", "new"):
        async with client.get("/", headers={"X-API-Key": key}) as response:
            statuses.append(response.status)
    assert statuses == [401, 200]


async def test_all_keys_are_compared_in_constant_time(
    open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison that stops at the first difference reveals the key byte by byte."""
    compared: list[bytes] = []
    original = secrets.compare_digest

    def compare(given: bytes, key: bytes) -> bool:
        compared.append(key)
        return original(given, key)

    monkeypatch.setattr(secrets, "compare_digest", compare)
    keys = Keys(["one", "two"], setting="BRIDGE_API_KEY")
    client = await open_app(app_behind(keys))

    async with client.get("/", headers={"X-API-Key": "one"}) as response:
        assert response.status == 200

    assert compared == [b"one", b"two"]
