"""
The AsyncAPI 3.0 document: the messages of the bridge on RabbitMQ, HTTP and Socket.IO.

Operations are described from the side of the bridge: it receives from workers and clients, and
sends to clients and to the dead-letter queue. The schemas come from the models; this module adds
the parts that models cannot describe.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from bridge import __version__
from bridge.core.broker_names import BrokerNames
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

_BROKER: Final = BrokerNames()
_DESCRIPTION: Final = f"""\
Workers publish user-keyed messages to the exchange `{_BROKER.messages}`. bridge stores each
in its user's inbox, acks it to the broker, and emits it to every window of that user.
Names on the broker start with BRIDGE_NAMESPACE, which is `bridge` unless set otherwise.

Guarantees: a confirmed publish reaches the user's inbox at least once, and exactly once
within the dedupe window if it has a `message_id`. Every message of the inbox is written to
the user's windows in order, at least once. Undelivered messages are accounted for."""
_POSITION: Final = {
    "type": "string",
    "description": POSITION_TEXT,
    "examples": ["k3x9-41"],
}
# Messages on the Socket.IO namespace `/`, by direction.
_TO_PAGE: Final = (
    "connected",
    "refused",
    "event",
    "sync",
    "expiring",
    "closing",
    "reply",
)
_FROM_PAGE: Final = ("connect", "ack", "refresh", "join")


def asyncapi_document(bodies: Mapping[str, Mapping[str, Any]]) -> Tree:
    """
    Return the document.

    Args:
        bodies: The schemas, by the names of their files without `.schema.json`.

    """
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "bridge",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": _servers(),
        "channels": _channels(),
        "operations": _operations(),
        "components": {
            "messages": _messages(bodies["message"]),
            "schemas": {
                name: dict(body) for name, body in bodies.items() if name != "message"
            },
            "securitySchemes": _security_schemes(),
        },
    }


# --- servers ------------------------------------------------------------------------------


def _servers() -> Tree:
    return {
        "broker": {
            "host": "localhost:5672",
            "protocol": "amqp",
            "protocolVersion": "0.9.1",
            "description": "RabbitMQ, 3.10 or later (BRIDGE_AMQP_URL).",
            "security": [_reference("components", "securitySchemes", "brokerLogin")],
        },
        "public": {
            "host": "localhost:8080",
            "pathname": "/socket.io/",
            "protocol": "ws",
            "description": "Socket.IO protocol 5 over Engine.IO protocol 4, for the stock "
            "client: websocket, and long polling behind old proxies (BRIDGE_HOST, "
            "BRIDGE_PORT). The token is passed in `auth` and never in the query; see the "
            "message `connect`.",
        },
        "operator": {
            "host": "localhost:8081",
            "protocol": "http",
            "description": "The operator port (BRIDGE_OPERATOR_HOST, BRIDGE_OPERATOR_PORT).",
            "security": [
                _reference("components", "securitySchemes", "operatorToken"),
                _reference("components", "securitySchemes", "apiKey"),
            ],
        },
    }


def _security_schemes() -> Tree:
    return {
        "brokerLogin": {
            "type": "userPassword",
            "description": "A RabbitMQ user. A worker needs the permission to write to "
            f"`{_BROKER.messages}` and nothing else.",
        },
        "operatorToken": {
            "type": "http",
            "scheme": "bearer",
            "description": "BRIDGE_OPERATOR_TOKEN or BRIDGE_API_KEY.",
        },
        "apiKey": {
            "type": "httpApiKey",
            "name": "X-API-Key",
            "in": "header",
            "description": "BRIDGE_API_KEY.",
        },
    }


# --- channels and operations -------------------------------------------------------------


def _channels() -> Tree:
    exchange = {
        "is": "routingKey",
        "exchange": {
            "name": _BROKER.messages,
            "type": "topic",
            "durable": True,
            "autoDelete": False,
        },
        "bindingVersion": "0.3.0",
    }
    queue = {
        "is": "queue",
        "queue": {
            "name": _BROKER.dead,
            "durable": True,
            "exclusive": False,
            "autoDelete": False,
        },
        "bindingVersion": "0.3.0",
    }
    return {
        "messages": _channel(
            "{user}",
            f"The exchange {_BROKER.messages}",
            "broker",
            ["published"],
            parameters={"user": {"description": f"The routing key. {USER_TEXT}"}},
            bindings={"amqp": exchange},
        ),
        "deadLetters": _channel(
            _BROKER.dead,
            f"The queue {_BROKER.dead}",
            "broker",
            ["deadLetter"],
            bindings={"amqp": queue},
        ),
        "publish": _channel(
            "/api/publish",
            "For workers without an AMQP client",
            "operator",
            ["publishRequest", "publishAccepted", "problem"],
        ),
        "toPage": _channel(
            "/", "From bridge to page, in the namespace /", "public", _TO_PAGE
        ),
        "fromPage": _channel(
            "/",
            "From page to bridge, in the namespace /",
            "public",
            _FROM_PAGE,
            description="Other events are ignored and counted.",
        ),
    }


def _operations() -> Tree:
    amqp = {"amqp": {"deliveryMode": 2, "bindingVersion": "0.3.0"}}
    http = {"http": {"method": "POST", "bindingVersion": "0.3.0"}}
    answered = _reply("toPage", "reply")
    return {
        "takeMessage": _operation(
            "receive",
            "messages",
            "published",
            "A worker publishes a message for one user. With publisher confirms, the confirm "
            "means: it will arrive or be accounted for.",
            bindings=amqp,
        ),
        "setAside": _operation(
            "send",
            "deadLetters",
            "deadLetter",
            "A message that can never be delivered, with unchanged body and properties and "
            "the reason in its headers. It is confirmed before the original is acked.",
            bindings=amqp,
        ),
        "takePublishRequest": _operation(
            "receive",
            "publish",
            "publishRequest",
            "202 after the broker's confirm. Otherwise a problem: 400 not JSON, unknown "
            "field or wrong type; 401 no key; 413 too large; 422 a value that cannot be "
            "used; 503 no confirm, with Retry-After.",
            bindings=http,
            reply=_reply("publish", "publishAccepted", "problem"),
        ),
        "takeConnect": _operation(
            "receive",
            "fromPage",
            "connect",
            "A page connects and authenticates.",
            reply=_reply("toPage", "connected", "refused"),
        ),
        "emitMessage": _operation(
            "send",
            "toPage",
            "event",
            "Each message of the user, in order, to each window of the user.",
        ),
        "emitSync": _operation(
            "send",
            "toPage",
            "sync",
            "Once after each connect, after the replay; again if a slow window missed "
            "messages.",
        ),
        "emitExpiring": _operation(
            "send", "toPage", "expiring", "The token is about to expire."
        ),
        "emitClosing": _operation(
            "send", "toPage", "closing", "Just before the bridge closes the window."
        ),
        "takeAck": _operation(
            "receive",
            "fromPage",
            "ack",
            "With manual acks: everything up to this position counts as delivered.",
            reply=answered,
        ),
        "takeRefresh": _operation(
            "receive",
            "fromPage",
            "refresh",
            "A new token of the same user extends the life of the window.",
            reply=answered,
        ),
        "takeJoin": _operation(
            "receive",
            "fromPage",
            "join",
            "A page names its user without a token; only with BRIDGE_AUTH=open.",
            reply=answered,
        ),
    }


def _channel(
    address: str,
    title: str,
    server: str,
    messages: Iterable[str],
    **more: str | Tree,
) -> Tree:
    return {
        "address": address,
        "title": title,
        "servers": [_reference("servers", server)],
        "messages": {
            name: _reference("components", "messages", name) for name in messages
        },
        **more,
    }


def _operation(
    action: str, channel: str, message: str, summary: str, **more: Tree
) -> Tree:
    return {
        "action": action,
        "channel": _reference("channels", channel),
        "summary": summary,
        "messages": [_reference("channels", channel, "messages", message)],
        **more,
    }


def _reply(channel: str, *messages: str) -> Tree:
    return {
        "channel": _reference("channels", channel),
        "messages": [
            _reference("channels", channel, "messages", name) for name in messages
        ],
    }


# --- messages -----------------------------------------------------------------------------


def _messages(published: Mapping[str, Any]) -> Tree:
    """Return all messages by name; `published` is the schema of a published message."""
    parts = published["properties"]
    accepted = {"statusCode": 202, "bindingVersion": "0.3.0"}
    return {
        "published": {
            "title": "Published message",
            "summary": published["description"],
            # AsyncAPI has no field for AMQP properties. They are its headers here, and one
            # of them is the AMQP property `headers`.
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
            "description": "The bridge writes the headers. If the `expiration` of a message "
            "passes in the queue, RabbitMQ sets it aside, with `x-death` instead of them.",
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
    """
    Return a Socket.IO event whose payload is the list of its listener's arguments.

    AsyncAPI's own schema dialect is based on draft 07 of JSON Schema, in which the schema of
    a fixed list is an `items` array.
    """
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
    return _reference("components", "schemas", name)


def _reference(*path: str) -> Tree:
    """Return a reference to another part of the document."""
    return {"$ref": "#/" + "/".join(path)}
