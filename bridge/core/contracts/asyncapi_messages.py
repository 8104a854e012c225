"""
The messages of the AsyncAPI document.

AsyncAPI's own schema dialect stems from draft 07 of JSON Schema, so the list of a
listener's arguments is an `items` array here.
"""

from collections.abc import Mapping
from typing import Any, Final

from bridge.core.contracts.base import EVENT_TEXT, POSITION_TEXT, USER_TEXT
from bridge.enums import (
    EVENT_ACK,
    EVENT_CLOSING,
    EVENT_DEFAULT,
    EVENT_EXPIRING,
    EVENT_JOIN,
    EVENT_REFRESH,
    EVENT_SYNC,
)

Tree = dict[str, Any]

_POSITION: Final = {
    "type": "string",
    "description": POSITION_TEXT,
    "examples": ["k3x9-41"],
}


def asyncapi_messages(published: Mapping[str, Any]) -> Tree:
    """
    Return all messages by name.

    Args:
        published: The schema of a published message, with its examples.

    """
    parts = published["properties"]
    accepted = {"statusCode": 202, "bindingVersion": "0.3.0"}
    return {
        "published": {
            "title": "Published message",
            "summary": published["description"],
            # AsyncAPI has no word for AMQP properties; here they stand as headers, and
            # what AMQP calls headers is one of them.
            "headers": parts["properties"],
            "payload": parts["body"],
            "examples": [
                {"headers": example["properties"], "payload": example["body"]}
                for example in published["examples"]
            ],
        },
        "deadLetter": {
            "title": "Dead letter",
            "headers": _schema("dead-letter-headers"),
            "payload": {"description": "The original's body, byte for byte."},
            "description": "The headers are the bridge's. A message whose `expiration` "
            "passed in the queue is set aside by RabbitMQ, with `x-death` in their place.",
        },
        "publishRequest": _json_message("Publish request", "publish-request"),
        "publishAccepted": _json_message("Accepted", "publish-accepted")
        | {"bindings": {"http": accepted}},
        "problem": _json_message("Problem", "problem")
        | {"contentType": "application/problem+json"},
        "connect": _json_message("CONNECT, with `auth`", "connect-auth"),
        "connected": _arguments(
            "connect", {"type": "object", "description": "sid and pid of the window."}
        ),
        "refused": _arguments("connect_error", _schema("connect-error")),
        "event": _arguments(
            EVENT_DEFAULT,
            {"description": "The data: the JSON value that was published."},
            _POSITION,
            note=f"The event's name is the message's. {EVENT_TEXT}",
            examples=[
                [{"text": "Your export is ready"}, "k3x9-41"],
                ["text", "k3x9-42"],
            ],
        ),
        "sync": _arguments(EVENT_SYNC, _schema("sync")),
        "expiring": _arguments(EVENT_EXPIRING, _schema("expiring")),
        "closing": _arguments(EVENT_CLOSING, _schema("closing")),
        "reply": _arguments("(the callback)", _schema("event-reply")),
        "ack": _arguments(EVENT_ACK, _POSITION),
        "refresh": _arguments(
            EVENT_REFRESH, {"type": "string", "description": "The new token."}
        ),
        "join": _arguments(
            EVENT_JOIN,
            {
                "type": "object",
                "required": ["username"],
                "properties": {
                    "username": {"type": "string", "description": USER_TEXT}
                },
                "examples": [{"username": "alice"}],
            },
        ),
    }


def _json_message(title: str, schema: str) -> Tree:
    return {"title": title, "payload": _schema(schema)}


def _arguments(
    name: str, *arguments: Tree, note: str = "", examples: list[Any] | None = None
) -> Tree:
    """Return a socket.io event whose payload is the list of the listener's arguments."""
    payload = {
        "type": "array",
        "items": list(arguments),
        "minItems": len(arguments),
        "maxItems": len(arguments),
    }
    message: Tree = {"name": name, "title": name, "payload": payload}
    if note:
        message["description"] = note
    if examples:
        message["examples"] = [{"payload": example} for example in examples]
    return message


def _schema(name: str) -> Tree:
    return reference("components", "schemas", name)


def reference(*path: str) -> Tree:
    """Return a reference to the part of the document at `path`."""
    return {"$ref": "#/" + "/".join(path)}
