"""The AsyncAPI document is valid, complete, and readable by any YAML reader."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from bridge import __version__
from bridge.core.broker_names import BrokerNames
from bridge.enums import (
    EVENT_ACK,
    EVENT_CLOSING,
    EVENT_EXPIRING,
    EVENT_JOIN,
    EVENT_REFRESH,
    EVENT_SYNC,
)

ROOT = Path(__file__).parents[3]
# From the npm package @asyncapi/specs, a dependency in tests/package.json.
OFFICIAL = ROOT / "tests/node_modules/@asyncapi/specs/schemas/3.0.0.json"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    text = (ROOT / "schemas/asyncapi.yaml").read_text(encoding="utf-8")
    tree: dict[str, Any] = yaml.safe_load(text)
    return tree


def walk(node: object) -> Iterator[dict[str, Any]]:
    """Yield every mapping of a tree."""
    if isinstance(node, dict):
        yield node
        for item in node.values():
            yield from walk(item)
    elif isinstance(node, list):
        for item in node:
            yield from walk(item)


def resolve(document: dict[str, Any], reference: str) -> Any:
    """Return the target of `reference`, which may be in a file beside the document."""
    file, _, pointer = reference.partition("#")
    node: Any = document
    if file:
        text = (ROOT / "schemas" / file).read_text(encoding="utf-8")
        node = json.loads(text)
    for name in filter(None, pointer.split("/")):
        node = node[name]
    return resolve(document, node["$ref"]) if "$ref" in node else node


def inline(document: dict[str, Any], node: Any) -> Any:
    """Return `node` with all references replaced by their targets."""
    if isinstance(node, list):
        return [inline(document, item) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return inline(document, resolve(document, node["$ref"]))
    return {key: inline(document, item) for key, item in node.items() if key[0] != "$"}


def test_the_official_schema_accepts_the_document(document: dict[str, Any]) -> None:
    """It is the schema that AsyncAPI publishes."""
    official = json.loads(OFFICIAL.read_text(encoding="utf-8"))

    errors = Draft7Validator(official).iter_errors(document)

    assert [f"{error.json_path}: {error.message[:200]}" for error in errors] == []


def test_every_reference_has_a_target(document: dict[str, Any]) -> None:
    """The official schema does not check that."""
    references = [node["$ref"] for node in walk(document) if "$ref" in node]

    assert references
    for reference in references:
        resolve(document, reference)


def test_an_operation_uses_messages_of_its_own_channel(
    document: dict[str, Any],
) -> None:
    """AsyncAPI requires it, and a schema cannot express it."""
    for operation in document["operations"].values():
        for part in filter(None, [operation, operation.get("reply")]):
            channel = part["channel"]["$ref"]
            for message in part["messages"]:
                assert message["$ref"].startswith(f"{channel}/messages/")


def test_every_message_belongs_to_an_operation(document: dict[str, Any]) -> None:
    """A message without an operation would be a leftover."""
    used = {
        message["$ref"].rpartition("/")[2]
        for operation in document["operations"].values()
        for part in filter(None, [operation, operation.get("reply")])
        for message in part["messages"]
    }

    assert used == set(document["components"]["messages"])


def test_the_document_has_the_names_that_the_bridge_uses(
    document: dict[str, Any],
) -> None:
    """Producers and clients rely on the exchange, the queue and the events."""
    channels = document["channels"]
    names = {
        message.get("name") for message in document["components"]["messages"].values()
    }

    broker = BrokerNames()
    assert channels["messages"]["bindings"]["amqp"]["exchange"]["name"] == (
        broker.messages
    )
    assert channels["control"]["bindings"]["amqp"]["exchange"]["name"] == broker.control
    assert channels["deadLetters"]["bindings"]["amqp"]["queue"]["name"] == broker.dead
    assert names >= {EVENT_SYNC, EVENT_EXPIRING, EVENT_CLOSING}
    assert names >= {EVENT_ACK, EVENT_REFRESH, EVENT_JOIN}
    assert document["info"]["version"] == __version__


def test_every_example_of_a_message_fits_its_payload(document: dict[str, Any]) -> None:
    """People copy examples."""
    seen = 0
    for message in document["components"]["messages"].values():
        for example in message.get("examples", []):
            for part in ("headers", "payload"):
                if part in example:
                    schema = inline(document, message[part])
                    Draft7Validator(schema).validate(example[part])
                    seen += 1
    assert seen >= 8


@pytest.mark.parametrize("name", ["sync", "closing", "event", "ack", "join", "reply"])
def test_a_payload_is_a_schema_of_its_dialect(
    document: dict[str, Any], name: str
) -> None:
    """AsyncAPI's dialect is draft 07, that of the other files is 2020-12."""
    payload = inline(document, document["components"]["messages"][name]["payload"])

    Draft7Validator.check_schema(payload)
    assert payload["type"] == "array"
    assert len(payload["items"]) == payload["minItems"] == payload["maxItems"]


def test_the_document_refers_to_every_generated_schema(
    document: dict[str, Any],
) -> None:
    """A new model that crosses a boundary is added to the document by hand."""
    files = {
        node["$ref"].partition("#")[0].removeprefix("./")
        for node in walk(document)
        if node.get("$ref", "").startswith("./")
    }

    generated = {path.name for path in (ROOT / "schemas").glob("*.schema.json")}
    # The claims of a token are in no message of their own.
    assert files == generated - {"token-claims.schema.json"}
