"""The public door: health, the stock client's script, the article's GET."""

import subprocess
from importlib import resources
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from bridge.core.event_schemas import EventSchemas
from bridge.core.schema_set import compile_schemas
from bridge.errors import BrokerUnavailableError, PublishRefusedError
from bridge.http.authentication import Keys, guarded
from bridge.http.public import LegacyDoor, public_app
from bridge.http.publishing import EventCheck
from tests.unit.http.conftest import Client, Desk, Open, Patient

TESTS = Path(__file__).parents[2]


def no_sockets(app: web.Application) -> None:
    """Serve no windows."""


async def door(open_app: Open, health: Patient, *, desk: Desk | None = None) -> Client:
    """Open the door, with the article's GET if there is a desk to publish to."""
    legacy = None if desk is None else LegacyDoor(desk).push
    return await open_app(
        public_app(health=health, route_sockets=no_sockets, legacy=legacy)
    )


def npm_script() -> bytes:
    """Return the browser's client as npm has it."""
    found = subprocess.run(
        ["node", "-p", "require.resolve('socket.io-client/package.json')"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return (Path(found).parent / "dist" / "socket.io.min.js").read_bytes()


# --- health


async def test_health_tells_live_from_ready(open_app: Open, health: Patient) -> None:
    """A broker that is away is a reason to send no traffic, none to be restarted."""
    client = await door(open_app, health)

    async with client.get("/health/ready") as response:
        assert (response.status, await response.json()) == (
            200,
            {"ready": True, "reasons": []},
        )
    health.reasons = ["nothing is consumed from the broker"]
    async with client.get("/health/ready") as response:
        assert response.status == 503
        assert (await response.json())["reasons"] == health.reasons
    async with client.get("/health/live") as response:
        assert (response.status, await response.json()) == (200, {"live": True})


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
async def test_probes_may_ask_with_head(
    open_app: Open, health: Patient, path: str
) -> None:
    """Some load balancers do."""
    client = await door(open_app, health)

    async with client.head(path) as response:
        assert response.status == 200


# --- the script


@pytest.mark.parametrize(
    "path", ["/socket.io/socket.io.js", "/socket.io/socket.io.min.js"]
)
async def test_the_stock_client_is_served_byte_for_byte(
    open_app: Open, health: Patient, path: str
) -> None:
    """The same as npm's, so that a page needs nothing from any other host."""
    client = await door(open_app, health)

    async with client.get(path) as response:
        script = await response.read()
        assert response.content_type == "text/javascript"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"].startswith("public")

    assert script == npm_script()


def test_the_scripts_licence_comes_along() -> None:
    """MIT asks for it."""
    assets = resources.files("bridge.http") / "assets"
    licence = (assets / "socket.io.min.js.LICENSE").read_text(encoding="utf-8")

    assert "MIT" in licence
    assert "Permission is hereby granted" in licence


# --- the article's GET


async def test_the_articles_get_publishes_what_the_article_says(
    open_app: Open, health: Patient, desk: Desk
) -> None:
    """`GET /?name=USER&msg=TEXT` becomes `{"code": 0, "data": TEXT}`."""
    client = await door(open_app, health, desk=desk)

    async with client.get("/", params={"name": "tom", "msg": 'hi "tom" é'}) as response:
        assert (response.status, await response.json()) == (200, {"code": 0})

    (message,) = desk.published
    assert message["user"] == "tom"
    assert message["event"] is None
    assert orjson.loads(message["data"]) == {"code": 0, "data": 'hi "tom" é'}


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("", "name"),
        ("name=&msg=x", "name"),
        ("msg=x", "name"),
        ("name=%00&msg=x", "name"),
        ("name=" + "a" * 256 + "&msg=x", "name"),
        ("name=tom", "msg"),
    ],
)
async def test_a_get_without_user_or_text_publishes_nothing(
    open_app: Open, health: Patient, desk: Desk, query: str, pointer: str
) -> None:
    """422, and which of the two it is about."""
    client = await door(open_app, health, desk=desk)

    async with client.get(f"/?{query}") as response:
        assert response.status == 422
        assert (await response.json())["pointer"] == pointer
    assert not desk.published


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
async def test_only_get_publishes(
    open_app: Open, health: Patient, desk: Desk, method: str
) -> None:
    """Link checkers send HEAD and mean no harm."""
    client = await door(open_app, health, desk=desk)

    async with client.request(method, "/?name=tom&msg=x") as response:
        assert response.status == 405
    assert not desk.published


@pytest.mark.parametrize(
    "failure",
    [
        BrokerUnavailableError("publish", "no connection"),
        PublishRefusedError("bridge.messages", "returned"),
    ],
)
async def test_a_broker_that_is_away_is_a_503_that_says_when_to_come_back(
    open_app: Open, health: Patient, desk: Desk, failure: Exception
) -> None:
    """Nothing was promised."""
    desk.failure = failure
    client = await door(open_app, health, desk=desk)

    async with client.get("/?name=tom&msg=x") as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "2"


async def test_switched_off_there_is_no_such_door(
    open_app: Open, health: Patient
) -> None:
    """The default."""
    client = await door(open_app, health)

    async with client.get("/?name=tom&msg=x") as response:
        assert response.status == 404


async def test_who_comes_to_the_wrong_door_is_told_what_this_one_is(
    open_app: Open, health: Patient
) -> None:
    """`Not Found` alone sends people to look for a typing error in their path."""
    client = await door(open_app, health)

    async with client.post("/api/publish", data="{}") as response:
        assert response.status == 404
        told = (await response.json())["detail"]
    assert told.startswith("nothing is here; this is the public port, for pages: ")
    assert "BRIDGE_OPERATOR_PORT" in told


async def test_behind_a_key_it_publishes_for_those_who_have_it(
    open_app: Open, health: Patient, desk: Desk
) -> None:
    """Outside of open mode."""
    keys = Keys(["secret"], setting="BRIDGE_API_KEY")
    client = await open_app(
        public_app(
            health=health,
            route_sockets=no_sockets,
            legacy=guarded(keys, LegacyDoor(desk).push),
        )
    )
    for headers, status in (({}, 401), ({"X-API-Key": "secret"}, 200)):
        async with client.get("/?name=tom&msg=x", headers=headers) as response:
            assert response.status == status
    assert len(desk.published) == 1


async def test_a_text_that_the_schema_of_messages_forbids_is_refused(
    open_app: Open, health: Patient, desk: Desk
) -> None:
    """It would be a dead letter with reason `schema`, and its sender would not know."""
    schema = b'{"properties": {"data": {"maxLength": 3}}}'
    schemas = compile_schemas({"message.json": schema}, refuses_unknown=True)
    assert isinstance(schemas, EventSchemas)
    door = LegacyDoor(desk, EventCheck(schemas))
    client = await open_app(
        public_app(health=health, route_sockets=no_sockets, legacy=door.push)
    )

    for text, status in (("four", 422), ("two", 200)):
        async with client.get(f"/?name=tom&msg={text}") as response:
            answer = await response.json()
            assert response.status == status, answer
            assert answer.get("pointer") == ("msg" if status == 422 else None)
    assert [message["data"] for message in desk.published] == [
        b'{"code":0,"data":"two"}'
    ]
