"""The operator port: publish with one key, metrics with another, health without a key."""

import json
from collections.abc import Callable

import pytest

from bridge.core.contracts.operator.users import (
    GET_INBOX,
    GET_POSITION,
    GET_PRESENCE,
    PresenceFacts,
    UserPosition,
)
from bridge.core.event_schemas import EventSchemas
from bridge.core.message import MessageLimits
from bridge.core.message_options import MessageOptions, Tracking
from bridge.core.schema_compiler import compile_schemas
from bridge.errors import BrokerUnavailableError
from bridge.http.api.endpoint import Api
from bridge.http.authentication import Keys
from bridge.http.console.sign_in import SignIn
from bridge.http.operator import operator_app
from bridge.http.publish import CurrentSchemas, PublishEndpoint
from bridge.metrics import Metrics
from tests.unit.http.conftest import Client, FakePublisher, Open

KEY = {"X-API-Key": "publish"}


async def open_operator(
    open_app: Open,
    publisher: FakePublisher,
    schemas: EventSchemas | None = None,
    add_api: Callable[[Api], None] | None = None,
) -> Client:
    """Serve the operator port; data may have 1,000 bytes."""
    endpoint = PublishEndpoint(
        publisher,
        Metrics(),
        limits=MessageLimits(1000, max_age_s=3600),
        current=CurrentSchemas(schemas),
    )
    return await open_app(
        operator_app(
            unready_reasons=list,
            warnings=list,
            publish=endpoint.publish,
            metrics=Metrics(),
            sign_in=SignIn(Keys(["operate"], setting="BRIDGE_OPERATOR_TOKEN")),
            publish_keys=Keys(["publish"], setting="BRIDGE_API_KEY"),
            add_api=add_api,
        )
    )


async def test_a_message_is_accepted_once_the_broker_has_it(
    open_app: Open, publisher: FakePublisher
) -> None:
    """202 with the id; the bridge makes one if there is none."""
    client = await open_operator(open_app, publisher)

    body = {"user": "tom", "data": {"a": [1]}, "event": "order", "id": "m", "ttl_s": 5}
    async with client.post("/api/publish", json=body, headers=KEY) as response:
        assert (response.status, await response.json()) == (202, {"id": "m"})
    async with client.post(
        "/api/publish", json={"user": "tom", "data": None}, headers=KEY
    ) as response:
        generated = (await response.json())["id"]

    first, second = publisher.published
    assert (first["user"], first["event"], first["message_id"], first["ttl_s"]) == (
        "tom",
        "order",
        "m",
        5,
    )
    assert json.loads(first["data"]) == {"a": [1]}
    assert second["data"] == b"null"
    assert second["message_id"] == generated


async def test_a_message_may_count_as_undelivered_after_a_time(
    open_app: Open, publisher: FakePublisher
) -> None:
    """One that the inbox would not keep so long is refused: it would be a dead letter."""
    client = await open_operator(open_app, publisher)

    answers = []
    for after in ("45s", "1h", "61m", "0s", "soon"):
        body = {"user": "tom", "data": 1, "undelivered_after": after}
        async with client.post("/api/publish", json=body, headers=KEY) as response:
            answer = await response.json()
            answers.append((response.status, answer.get("detail")))
            assert response.status == 202 or answer["pointer"] == "/undelivered_after"

    too_long = "is longer than an inbox keeps a message, 1h (BRIDGE_INBOX_MAX_AGE)"
    not_a_duration = (422, "undelivered_after is not a duration such as 45s")
    assert answers == [
        (202, None),
        (202, None),
        (422, f"undelivered_after {too_long}"),
        not_a_duration,
        not_a_duration,
    ]
    tracking = Tracking(wants_receipt=False, undelivered_after_s=45)
    assert publisher.published[0]["options"] == MessageOptions(tracking=tracking)


@pytest.mark.parametrize("files", [{}, {"message.json": b'{"maxProperties": 2}'}])
async def test_a_lone_surrogate_is_published_as_sent(
    open_app: Open, publisher: FakePublisher, files: dict[str, bytes]
) -> None:
    """JSON allows the escape; half an emoji must not cost the message."""
    schemas = compile_schemas(files, refuses_unknown=False)
    assert isinstance(schemas, EventSchemas)
    client = await open_operator(open_app, publisher, schemas)

    body = rb'{"user":"tom","data":{"t":"cut \ud83d","\ude00":"\u00e9"}}'
    async with client.post("/api/publish", data=body, headers=KEY) as response:
        assert response.status == 202

    (published,) = publisher.published
    assert published["data"].isascii()
    assert json.loads(published["data"]) == {"t": "cut \ud83d", "\ude00": "é"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b'{"user":"tom","data":1,"colour":"red"}', 400),
        (b'{"data":1}', 422),
        (b'{"user":"","data":1}', 422),
        (b'{"user":"tom"}', 422),
        (b'{"user":"tom","data":"' + b"x" * 10_000 + b'"}', 413),
        (b'{"user":"tom","data":"' + b"x" * 1000 + b'"}', 413),
    ],
    ids=lambda value: ascii(value)[:30],
)
async def test_a_bad_body_is_a_problem_and_nothing_is_published(
    open_app: Open, publisher: FakePublisher, body: bytes, status: int
) -> None:
    """400 for a wrong form, 422 for a wrong value, 413 for too much data."""
    client = await open_operator(open_app, publisher)

    async with client.post("/api/publish", data=body, headers=KEY) as response:
        assert response.status == status
        assert response.content_type == "application/problem+json"
        assert (await response.json())["detail"]
    assert not publisher.published


async def test_an_unavailable_broker_is_a_503(
    open_app: Open, publisher: FakePublisher
) -> None:
    """With Retry-After: publish again with the same id."""
    publisher.failure = BrokerUnavailableError("publish", "no confirm within 10 s")
    client = await open_operator(open_app, publisher)

    body = {"user": "tom", "data": 1}
    async with client.post("/api/publish", json=body, headers=KEY) as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "2"


@pytest.mark.parametrize(
    ("method", "path", "key"),
    [("POST", "/api/publish", "publish"), ("GET", "/metrics", "operate")],
)
async def test_publishing_and_metrics_have_different_keys(
    open_app: Open, publisher: FakePublisher, method: str, path: str, key: str
) -> None:
    """A worker that may publish may not read the metrics."""
    client = await open_operator(open_app, publisher)
    body = b'{"user":"tom","data":1}' if method == "POST" else None

    for given in ("publish", "operate"):
        async with client.request(
            method, path, data=body, headers={"Authorization": f"Bearer {given}"}
        ) as response:
            assert (response.status < 300) is (given == key)
    async with client.request(method, path, data=body) as response:
        assert response.status == 401


async def test_metrics_are_prometheus_text(
    open_app: Open, publisher: FakePublisher
) -> None:
    """With the version that scrapers look for."""
    client = await open_operator(open_app, publisher)

    async with client.get("/metrics", headers={"X-API-Key": "operate"}) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "bridge_windows " in await response.text()


async def test_health_needs_no_key(open_app: Open, publisher: FakePublisher) -> None:
    """A probe has none."""
    client = await open_operator(open_app, publisher)

    for path in ("/health/live", "/health/ready"):
        async with client.get(path) as response:
            assert response.status == 200


async def test_data_that_its_schema_forbids_is_refused_with_a_pointer(
    open_app: Open, publisher: FakePublisher
) -> None:
    """If it were accepted, it would silently become a dead letter."""
    files = {"note.json": b'{"items": {"type": "integer"}}', "message.json": b"false"}
    schemas = compile_schemas(files, refuses_unknown=True)
    assert isinstance(schemas, EventSchemas)
    client = await open_operator(open_app, publisher, schemas=schemas)

    for event, data, pointer in (
        ("note", [1, "2"], "/data/1"),
        (None, 1, "/data"),
        ("other", 1, "/data"),
        ("note", [1, 2], None),
    ):
        body = {"user": "tom", "event": event, "data": data}
        if event is None:
            del body["event"]
        async with client.post("/api/publish", json=body, headers=KEY) as response:
            answer = await response.json()
            assert response.status == (422 if pointer else 202), answer
            assert answer.get("pointer") == pointer

    assert [message["data"] for message in publisher.published] == [b"[1,2]"]


@pytest.mark.parametrize("depth", [20, 100])
async def test_nested_data_cannot_occupy_the_bridge(
    open_app: Open, publisher: FakePublisher, depth: int
) -> None:
    """A union that recurs took exponential time, and the depth of 20 ended the process."""
    branch = {"required": ["of"], "properties": {"of": {"$ref": "#"}}}
    files = {"note.json": json.dumps({"oneOf": [branch] * 2}).encode()}
    schemas = compile_schemas(files, refuses_unknown=True)
    assert isinstance(schemas, EventSchemas)
    client = await open_operator(open_app, publisher, schemas=schemas)
    data = '{"of":' * depth + "1" + "}" * depth
    body = f'{{"user": "tom", "event": "note", "data": {data}}}'

    async with client.post("/api/publish", data=body, headers=KEY) as response:
        assert response.status == 422

    assert publisher.published == []


async def test_a_producer_may_ask_for_positions_and_presence_and_nothing_else(
    open_app: Open, publisher: FakePublisher
) -> None:
    """The web tier has the key for publishing; the inboxes are for operators."""

    async def answer(request: object) -> UserPosition:
        assert request
        return UserPosition(position="e-1")

    async def presence(request: object) -> PresenceFacts:
        assert request
        return PresenceFacts(items=[], bridges=1, silent=0)

    def add_api(api: Api) -> None:
        api.add(GET_POSITION, answer)
        api.add(GET_INBOX, answer)
        api.add(GET_PRESENCE, presence)

    client = await open_operator(open_app, publisher, add_api=add_api)

    async with client.get("/api/users/ann/position", headers=KEY) as response:
        assert (response.status, await response.json()) == (200, {"position": "e-1"})
    async with client.get("/api/users/ann/position") as response:
        assert response.status == 401
    async with client.get("/api/presence?user=ann", headers=KEY) as response:
        assert response.status == 200
    async with client.get("/api/presence?user=ann") as response:
        assert response.status == 401
    async with client.get("/api/users/ann/inbox", headers=KEY) as response:
        assert response.status == 401
