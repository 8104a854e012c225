"""The public port: health, the stock client's script, the legacy GET."""

import subprocess
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from bridge.core.event_schemas import EventSchemas
from bridge.core.schema_compiler import compile_schemas
from bridge.errors import BrokerUnavailableError, PublishRefusedError
from bridge.http.authentication import Keys, guarded
from bridge.http.public import public_app
from bridge.http.publish import CurrentSchemas, LegacyPushEndpoint
from tests.unit.http.conftest import Client, FakePublisher, Open

TESTS = Path(__file__).parents[2]


def no_sockets(app: web.Application) -> None:
    """Serve no windows."""


async def open_public(
    open_app: Open,
    publisher: FakePublisher | None = None,
    *,
    reasons: Sequence[str] = (),
) -> Client:
    """Serve the public port, with the legacy GET if there is a publisher."""
    legacy = None if publisher is None else LegacyPushEndpoint(publisher).push
    return await open_app(
        public_app(
            unready_reasons=lambda: list(reasons),
            warnings=lambda: ["a dead letter waits"],
            route_sockets=no_sockets,
            legacy=legacy,
        )
    )


def npm_file(name: str) -> bytes:
    """Return a file of the browser's client as npm has it."""
    found = subprocess.run(
        ["node", "-p", "require.resolve('socket.io-client/package.json')"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return (Path(found).parent / "dist" / name).read_bytes()


# --- health


async def test_a_bridge_that_is_not_ready_is_still_live(open_app: Open) -> None:
    """An unavailable broker is a reason to send no traffic, but none for a restart."""
    reasons: list[str] = []
    client = await open_public(open_app, reasons=reasons)

    async with client.get("/health/ready") as response:
        assert (response.status, await response.json()) == (
            200,
            {"ready": True, "reasons": [], "warnings": ["a dead letter waits"]},
        )
    reasons.append("nothing is consumed from the broker")
    async with client.get("/health/ready") as response:
        assert response.status == 503
        assert (await response.json())["reasons"] == reasons
    async with client.get("/health/live") as response:
        assert (response.status, await response.json()) == (200, {"live": True})


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
async def test_probes_may_use_head(open_app: Open, path: str) -> None:
    """Some load balancers do."""
    client = await open_public(open_app)

    async with client.head(path) as response:
        assert response.status == 200


# --- the script


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("socket.io.js", "socket.io.min.js"),
        ("socket.io.min.js", "socket.io.min.js"),
        ("socket.io.min.js.map", "socket.io.min.js.map"),
        ("socket.io.esm.min.js", "socket.io.esm.min.js"),
        ("socket.io.esm.min.js.map", "socket.io.esm.min.js.map"),
    ],
)
async def test_the_stock_client_is_served_byte_for_byte(
    open_app: Open, path: str, name: str
) -> None:
    """It equals npm's file, so a page depends on no other host."""
    client = await open_public(open_app)

    async with client.get(f"/socket.io/{path}") as response:
        script = await response.read()
        is_map = name.endswith(".map")
        assert response.content_type == (
            "application/json" if is_map else "text/javascript"
        )
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"].startswith("public")

    assert script == npm_file(name)


def test_the_license_of_the_script_is_included() -> None:
    """The MIT license requires it."""
    assets = resources.files("bridge.http") / "assets"
    licence = (assets / "socket.io.min.js.LICENSE").read_text(encoding="utf-8")

    assert "MIT" in licence
    assert "Permission is hereby granted" in licence


# --- the legacy GET


async def test_the_legacy_get_publishes_its_text(
    open_app: Open, publisher: FakePublisher
) -> None:
    """`GET /?name=USER&msg=TEXT` becomes `{"code": 0, "data": TEXT}`."""
    client = await open_public(open_app, publisher)

    async with client.get("/", params={"name": "tom", "msg": 'hi "tom" é'}) as response:
        assert (response.status, await response.json()) == (200, {"code": 0})

    (message,) = publisher.published
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
    open_app: Open, publisher: FakePublisher, query: str, pointer: str
) -> None:
    """422, with the parameter that is missing or invalid."""
    client = await open_public(open_app, publisher)

    async with client.get(f"/?{query}") as response:
        assert response.status == 422
        assert (await response.json())["pointer"] == pointer
    assert not publisher.published


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
async def test_only_get_publishes(
    open_app: Open, publisher: FakePublisher, method: str
) -> None:
    """Link checkers send HEAD, which must have no effect."""
    client = await open_public(open_app, publisher)

    async with client.request(method, "/?name=tom&msg=x") as response:
        assert response.status == 405
    assert not publisher.published


@pytest.mark.parametrize(
    "failure",
    [
        BrokerUnavailableError("publish", "no connection"),
        PublishRefusedError("bridge.messages", "returned"),
    ],
)
async def test_an_unavailable_broker_is_a_503_with_retry_after(
    open_app: Open, publisher: FakePublisher, failure: Exception
) -> None:
    """The message was not accepted, so the client may repeat the request."""
    publisher.failure = failure
    client = await open_public(open_app, publisher)

    async with client.get("/?name=tom&msg=x") as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "2"


async def test_the_legacy_get_is_off_by_default(open_app: Open) -> None:
    """It answers 404 like any unknown path."""
    client = await open_public(open_app)

    async with client.get("/?name=tom&msg=x") as response:
        assert response.status == 404


async def test_a_request_to_the_wrong_port_learns_what_this_port_serves(
    open_app: Open,
) -> None:
    """`Not Found` alone makes people look for a typing error in their path."""
    client = await open_public(open_app)

    async with client.post("/api/publish", data="{}") as response:
        assert response.status == 404
        detail = (await response.json())["detail"]
    assert detail.startswith("not found; this is the public port, for pages: ")
    assert "BRIDGE_OPERATOR_PORT" in detail


async def test_the_legacy_get_may_require_a_key(
    open_app: Open, publisher: FakePublisher
) -> None:
    """It does in every mode but open mode."""
    keys = Keys(["secret"], setting="BRIDGE_API_KEY")
    client = await open_app(
        public_app(
            unready_reasons=list,
            warnings=list,
            route_sockets=no_sockets,
            legacy=guarded(keys, LegacyPushEndpoint(publisher).push),
        )
    )
    for headers, status in (({}, 401), ({"X-API-Key": "secret"}, 200)):
        async with client.get("/?name=tom&msg=x", headers=headers) as response:
            assert response.status == status
    assert len(publisher.published) == 1


async def test_a_text_that_the_schema_of_messages_forbids_is_refused(
    open_app: Open, publisher: FakePublisher
) -> None:
    """It would silently become a dead letter with reason `schema`."""
    schema = b'{"properties": {"data": {"maxLength": 3}}}'
    schemas = compile_schemas({"message.json": schema}, refuses_unknown=True)
    assert isinstance(schemas, EventSchemas)
    endpoint = LegacyPushEndpoint(publisher, CurrentSchemas(schemas))
    client = await open_app(
        public_app(
            unready_reasons=list,
            warnings=list,
            route_sockets=no_sockets,
            legacy=endpoint.push,
        )
    )

    for text, status in (("four", 422), ("two", 200)):
        async with client.get(f"/?name=tom&msg={text}") as response:
            answer = await response.json()
            assert response.status == status, answer
            assert answer.get("pointer") == ("msg" if status == 422 else None)
    assert [message["data"] for message in publisher.published] == [
        b'{"code":0,"data":"two"}'
    ]
