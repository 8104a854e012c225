"""The files in `schemas/` describe exactly what the bridge accepts and sends."""

from pathlib import Path
from typing import Any

import orjson
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from bridge.cli.schemas import differing_files, render_schemas, schemas
from bridge.core.contracts.messages import PublishRequest
from bridge.core.contracts.validation import parse_publish_request
from bridge.core.identity import identify, parse_connect_auth
from bridge.core.message import (
    Delivery,
    Message,
    MessageLimits,
    Rejection,
    parse_delivery,
)
from bridge.core.properties import (
    Properties,
    iter_table,
    render_properties,
    render_table,
)
from bridge.core.settlement import DeadLetter, dead_letter_properties
from bridge.enums import REASONS_OF_BRIDGE, RESERVED_EVENTS, DeadLetterReason, Header
from bridge.errors import RefusedError

SCHEMAS = Path(__file__).parents[3] / "schemas"
NAMES = sorted(path.name for path in SCHEMAS.glob("*.schema.json"))


def load(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = orjson.loads((SCHEMAS / name).read_bytes())
    return schema


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(load(f"{name}.schema.json"))


# --- the files ----------------------------------------------------------------------------


def test_the_committed_files_are_up_to_date() -> None:
    """If this fails, run `bridge schemas`."""
    files = render_schemas()

    assert differing_files(files, SCHEMAS) == []
    assert {path.name for path in SCHEMAS.iterdir()} == {
        *files,
        "README.md",
        "asyncapi.yaml",
    }


def test_rendering_twice_gives_the_same_text() -> None:
    """Otherwise every run would look like a change of the contract."""
    assert render_schemas() == render_schemas()


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_valid_and_described(name: str) -> None:
    """Tools need its `$id`, people its title, description and examples."""
    schema = load(name)

    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"urn:bridge:schema:{name.removesuffix('.schema.json')}"
    assert schema["title"]
    assert schema["description"]
    assert all("description" in part for part in schema["properties"].values())


@pytest.mark.parametrize("name", NAMES)
def test_every_example_fits_its_schema(name: str) -> None:
    """People copy examples."""
    schema = load(name)

    assert schema["examples"]
    for example in schema["examples"]:
        Draft202012Validator(schema).validate(example)


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_self_contained(name: str) -> None:
    """A reader needs one file and no resolver."""
    assert b"$ref" not in (SCHEMAS / name).read_bytes()


# --- the command --------------------------------------------------------------------------

app = typer.Typer()
app.command()(schemas)


def test_the_command_writes_what_its_check_accepts(tmp_path: Path) -> None:
    """The command fixes everything that its check reports."""
    place = str(tmp_path / "made")

    missing = CliRunner().invoke(app, ["--check", "--dir", place])
    written = CliRunner().invoke(app, ["--dir", place])
    same = CliRunner().invoke(app, ["--check", "--dir", place])

    assert missing.exit_code == 1
    assert "message.schema.json" in missing.stdout.splitlines()
    assert (written.exit_code, same.exit_code) == (0, 0)
    assert same.stdout == ""


def test_the_check_names_the_file_that_was_edited(tmp_path: Path) -> None:
    """The check lists the files that differ and writes nothing."""
    CliRunner().invoke(app, ["--dir", str(tmp_path)])
    (tmp_path / "problem.schema.json").write_text("{}\n")

    result = CliRunner().invoke(app, ["--check", "--dir", str(tmp_path)])

    assert (result.exit_code, result.stdout) == (1, "problem.schema.json\n")
    assert (tmp_path / "problem.schema.json").read_text() == "{}\n"


# --- the schemas and the bridge agree -------------------------------------------------------


def short_text(max_bytes: int = 255) -> st.SearchStrategy[str]:
    """Text that fits into an AMQP short string, including control characters."""
    return st.text(max_size=140).filter(lambda text: len(text.encode()) <= max_bytes)


events = st.one_of(
    short_text(),
    st.sampled_from(sorted(RESERVED_EVENTS)),
    st.sampled_from(["", "message", "bridge:", "bridge:x", "Bridge:x", "a\n", "\x7f"]),
    st.sampled_from(["e" * 128, "e" * 129]),
)
users = st.one_of(short_text(), st.sampled_from(["", "alice", "a.#.*", "a\n", "\x85"]))


@given(
    user=users,
    event=events,
    message_id=short_text(),
    expiration=st.none() | st.integers(0, 2**32 - 1).map(str),
    data=st.sampled_from([None, True, 0, "text", [], {"a": [1, None]}]),
)
def test_a_message_is_accepted_by_its_schema_when_the_bridge_accepts_it(
    user: str, event: str, message_id: str, expiration: str | None, data: object
) -> None:
    """A producer that validates its messages must never cause a dead letter."""
    properties = {"type": event, "message_id": message_id}
    if expiration is not None:
        properties["expiration"] = expiration
    delivery = Delivery(
        tag=1,
        redelivered=False,
        exchange=b"bridge.messages",
        routing_key=user.encode(),
        raw_properties=render_properties(
            Properties(**{name: text.encode() for name, text in properties.items()})
        ),
        body=orjson.dumps(data),
        queue="bridge.inbound.0",
    )

    result = parse_delivery(delivery, limits=MessageLimits(1 << 20), now_s=0.0)

    instance = {"routing_key": user, "properties": properties, "body": data}
    assert validator("message").is_valid(instance) == isinstance(result, Message)


@given(
    body=st.fixed_dictionaries(
        {"key": st.sampled_from(["k", "", "k" * 128, "k" * 129, "a\n", 5])},
        optional={
            "user": users | st.just(5),
            "event": events | st.none() | st.just(["message"]),
            "data": st.sampled_from([None, 1.5, "text", {"a": []}]),
            "id": short_text() | st.none() | st.just(5),
            "ttl_s": st.sampled_from([None, 0, 0.5, 2592000, 2592001, -1, "5", True]),
            "ttl": st.just(5),
            "throttle": st.sampled_from([None, "250ms", "1h", "soon", "-1s", 5]),
            "ephemeral": st.sampled_from([False, None, "true"]),
            "retain": st.sampled_from([True, False, None, "true"]),
            "clear": st.sampled_from([False, None, "true"]),
        },
    )
)
def test_a_request_is_accepted_by_its_schema_when_the_bridge_accepts_it(
    body: dict[str, object],
) -> None:
    """A schema cannot express lengths in bytes, so the strategies respect them."""
    result = parse_publish_request(orjson.dumps(body))

    is_accepted = isinstance(result, PublishRequest)
    assert validator("publish-request").is_valid(body) == is_accepted


@pytest.mark.parametrize(
    "properties",
    [
        Properties(),
        Properties(expiration=b"1000", user_id=b"worker"),
        Properties(headers=render_table({"x-mine": "1", Header.REASON: "forged"})),
        Properties(headers=render_table({"x": "y" * 131_000})),
    ],
    ids=["plain", "moved", "foreign headers", "too many headers"],
)
@pytest.mark.parametrize("reason", REASONS_OF_BRIDGE)
def test_the_headers_of_a_dead_letter_fit_their_schema(
    properties: Properties, reason: DeadLetterReason
) -> None:
    """Tools that read dead letters rely on these names and types."""
    delivery = Delivery(
        tag=1,
        redelivered=False,
        exchange=b"bridge.messages",
        routing_key=b"alice",
        raw_properties=render_properties(properties),
        body=b"{",
        queue="bridge.inbound.0",
    )

    written = dead_letter_properties(
        delivery,
        DeadLetter(Rejection(reason, "a text"), attempt=1),
        now_s=1767225600.5,
    )

    headers = table_values(written.headers or b"")
    validator("dead-letter-headers").validate(headers)
    known = load("dead-letter-headers.schema.json")["properties"]
    assert {name for name in headers if name.startswith("x-bridge-")} <= set(known)


def table_values(table: bytes) -> dict[str, object]:
    """Parse the two types of values that the bridge writes."""
    return {
        name.decode(): int.from_bytes(value[1:], "big", signed=True)
        if value[:1] == b"l"
        else value[5:].decode()
        for name, value, _ in iter_table(table)
    }


def test_the_schema_of_dead_letters_has_all_headers_except_those_of_retries() -> None:
    """Readers of dead letters need to know a new header."""
    known = set(load("dead-letter-headers.schema.json")["properties"])

    assert known == {header.value for header in Header} - {Header.DEADLINE.value}


CLAIMS: list[object] = [
    {"sub": "alice", "exp": 1767225600},
    {"sub": "alice", "exp": 1767225600.5, "role": "admin"},
    {"sub": "alice", "exp": 0},
    {"sub": "alice", "exp": -1},
    {"sub": "alice", "exp": 253402300799},
    {"sub": "alice", "exp": 253402300800},
    {"sub": "alice", "exp": "1767225600"},
    {"sub": "alice", "exp": True},
    {"sub": "alice"},
    {"exp": 1767225600},
    {"sub": 7, "exp": 1767225600},
    {"sub": "", "exp": 1767225600},
    {"sub": "a\n", "exp": 1767225600},
    {"sub": "a" * 256, "exp": 1767225600},
]


@pytest.mark.parametrize("claims", CLAIMS, ids=str)
def test_claims_fit_their_schema_when_the_bridge_accepts_them(
    claims: dict[str, object],
) -> None:
    """An issuer must be able to check its tokens without a bridge."""
    try:
        identify(claims)
    except RefusedError:
        is_accepted = False
    else:
        is_accepted = True

    assert validator("token-claims").is_valid(claims) == is_accepted


@pytest.mark.parametrize(
    ("auth", "is_accepted"),
    [
        ({}, True),
        ({"token": None}, True),
        ({"token": "a.b.c", "acks": "manual", "tenant": 7}, True),
        ({"token": "a.b.c", "pid": "k3x9-40.n0nce", "offset": "k3x9-41"}, True),
        ({"token": "a.b.c", "position": "what another store gave out"}, True),
        ({"token": 7}, False),
        ({"acks": "none"}, False),
        ({"acks": None}, False),
        ("a.b.c", False),
    ],
    ids=str,
)
def test_auth_fits_its_schema_when_the_bridge_accepts_it(
    auth: object,
    is_accepted: bool,
) -> None:
    """A page with an invalid `auth` is refused with bad_request."""
    try:
        parse_connect_auth(auth)
    except RefusedError:
        assert not is_accepted
    else:
        assert is_accepted
    assert validator("connect-auth").is_valid(auth) == is_accepted
