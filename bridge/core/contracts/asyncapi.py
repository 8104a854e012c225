"""
The AsyncAPI 3.0 document: both sides of the bridge, seen from the bridge.

`receive` is what it takes (from workers and pages), `send` what it gives (to pages and
to the dead letters). Only what the models do not know is written here.
"""

from collections.abc import Mapping
from typing import Any, Final

from bridge import __version__
from bridge.core.broker_names import BrokerNames
from bridge.core.contracts.asyncapi_messages import Tree, asyncapi_messages, reference
from bridge.core.contracts.base import USER_TEXT

_BROKER: Final = BrokerNames()
_DESCRIPTION: Final = f"""\
Workers publish user-keyed messages to the exchange `{_BROKER.messages}`. bridge stores each
in its user's inbox, acks it to the broker, and emits it to every window of that user.
Names on the broker start with BRIDGE_NAMESPACE, which is `bridge` unless set otherwise.

What is promised: a confirmed publish reaches the user's inbox at least once, and once only
within the dedupe window if it has a `message_id`. From the inbox every message is written to
the user's windows in order, at least once. What is not delivered is accounted for."""


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
        "channels": _broker_channels() | _http_channels() | _window_channels(),
        "operations": _broker_operations() | _http_operations() | _window_operations(),
        "components": {
            "messages": asyncapi_messages(bodies["message"]),
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
            "security": [reference("components", "securitySchemes", "brokerLogin")],
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
                reference("components", "securitySchemes", "operatorToken"),
                reference("components", "securitySchemes", "apiKey"),
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


# --- RabbitMQ -----------------------------------------------------------------------------


def _broker_channels() -> Tree:
    return {
        "messages": {
            "address": "{user}",
            "title": f"The exchange {_BROKER.messages}",
            "servers": [reference("servers", "broker")],
            "parameters": {"user": {"description": f"The routing key. {USER_TEXT}"}},
            "messages": {"published": reference("components", "messages", "published")},
            "bindings": {
                "amqp": {
                    "is": "routingKey",
                    "exchange": {
                        "name": _BROKER.messages,
                        "type": "topic",
                        "durable": True,
                        "autoDelete": False,
                    },
                    "bindingVersion": "0.3.0",
                }
            },
        },
        "deadLetters": {
            "address": _BROKER.dead,
            "title": f"The queue {_BROKER.dead}",
            "servers": [reference("servers", "broker")],
            "messages": {
                "deadLetter": reference("components", "messages", "deadLetter")
            },
            "bindings": {
                "amqp": {
                    "is": "queue",
                    "queue": {
                        "name": _BROKER.dead,
                        "durable": True,
                        "exclusive": False,
                        "autoDelete": False,
                    },
                    "bindingVersion": "0.3.0",
                }
            },
        },
    }


def _broker_operations() -> Tree:
    amqp = {"amqp": {"deliveryMode": 2, "bindingVersion": "0.3.0"}}
    return {
        "takeMessage": _operation(
            "receive",
            "messages",
            ["published"],
            "A worker publishes a message for one user. With publisher confirms, the confirm "
            "means: it will arrive or be accounted for.",
            bindings=amqp,
        ),
        "setAside": _operation(
            "send",
            "deadLetters",
            ["deadLetter"],
            "A message that can never be delivered, body and properties untouched, with the "
            "reason in its headers. It is confirmed before the original is acked.",
            bindings=amqp,
        ),
    }


# --- HTTP ---------------------------------------------------------------------------------


def _http_channels() -> Tree:
    names = ("publishRequest", "publishAccepted", "problem")
    return {
        "publish": {
            "address": "/api/publish",
            "title": "For those without an AMQP client",
            "servers": [reference("servers", "operator")],
            "messages": {
                name: reference("components", "messages", name) for name in names
            },
        }
    }


def _http_operations() -> Tree:
    return {
        "takePublishRequest": _operation(
            "receive",
            "publish",
            ["publishRequest"],
            "202 after the broker's confirm. Otherwise a problem: 400 not JSON, unknown "
            "field or wrong type; 401 no key; 413 too large; 422 a value that cannot be "
            "used; 503 no confirm, with Retry-After.",
            bindings={"http": {"method": "POST", "bindingVersion": "0.3.0"}},
            reply=_reply("publish", "publishAccepted", "problem"),
        )
    }


# --- windows ------------------------------------------------------------------------------

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


def _window_channels() -> Tree:
    return {
        "toPage": {
            "address": "/",
            "title": "What a window gets: the namespace /, from bridge to page",
            "servers": [reference("servers", "public")],
            "messages": {
                name: reference("components", "messages", name) for name in _TO_PAGE
            },
        },
        "fromPage": {
            "address": "/",
            "title": "What a window may emit: the namespace /, from page to bridge",
            "description": "Anything else is ignored and counted.",
            "servers": [reference("servers", "public")],
            "messages": {
                name: reference("components", "messages", name) for name in _FROM_PAGE
            },
        },
    }


def _window_operations() -> Tree:
    answered = _reply("toPage", "reply")
    return {
        "takeConnect": _operation(
            "receive",
            "fromPage",
            ["connect"],
            "A page connects and says who it is.",
            reply=_reply("toPage", "connected", "refused"),
        ),
        "emitMessage": _operation(
            "send",
            "toPage",
            ["event"],
            "Each message of the user, in order, to each window of the user.",
        ),
        "emitSync": _operation(
            "send",
            "toPage",
            ["sync"],
            "Once after each connect, after the replay; again if a slow window missed something.",
        ),
        "emitExpiring": _operation(
            "send", "toPage", ["expiring"], "The token's life is about to end."
        ),
        "emitClosing": _operation(
            "send", "toPage", ["closing"], "Just before the bridge closes the window."
        ),
        "takeAck": _operation(
            "receive",
            "fromPage",
            ["ack"],
            "With manual acks: everything up to this position counts as delivered now.",
            reply=answered,
        ),
        "takeRefresh": _operation(
            "receive",
            "fromPage",
            ["refresh"],
            "The same user's new token prolongs the window's life.",
            reply=answered,
        ),
        "takeJoin": _operation(
            "receive",
            "fromPage",
            ["join"],
            "The article's way to say who one is; only with BRIDGE_AUTH=open.",
            reply=answered,
        ),
    }


# --- references ---------------------------------------------------------------------------


def _operation(
    action: str, channel: str, messages: list[str], summary: str, **more: Tree
) -> Tree:
    return {
        "action": action,
        "channel": reference("channels", channel),
        "summary": summary,
        "messages": [
            reference("channels", channel, "messages", name) for name in messages
        ],
        **more,
    }


def _reply(channel: str, *messages: str) -> Tree:
    return {
        "channel": reference("channels", channel),
        "messages": [
            reference("channels", channel, "messages", name) for name in messages
        ],
    }
