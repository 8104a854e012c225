"""What workers publish, by AMQP or HTTP, and what the bridge sets aside of it."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from bridge.core.contracts.base import (
    EVENT_TEXT,
    ID_TEXT,
    TTL_MAX_S,
    USER_TEXT,
    AnyJson,
    Contract,
    Event,
    MessageId,
    User,
    explained,
    listed,
)
from bridge.core.message import MESSAGE_ID_MAX_BYTES
from bridge.enums import DeadLetterReason, Header


class MessageProperties(Contract):
    """
    The AMQP properties that mean something to the bridge.

    All others are carried along untouched. Whatever bytes a property holds, it cannot
    break the bridge.
    """

    type: Annotated[Event | Literal[""], Field(description=EVENT_TEXT)] = ""
    message_id: (
        Annotated[str, Field(max_length=MESSAGE_ID_MAX_BYTES)] | SkipJsonSchema[None]
    ) = Field(None, description=ID_TEXT)
    expiration: (
        Annotated[str, Field(pattern=r"^[0-9]{1,15}$")] | SkipJsonSchema[None]
    ) = Field(
        None,
        description="Milliseconds, as AMQP wants it in digits; past it the message is not "
        "delivered any more.",
    )
    content_type: str | SkipJsonSchema[None] = Field(
        None,
        description="`text/plain`: the body is text and becomes a JSON string. Anything else: "
        "the body is JSON.",
    )
    timestamp: int | SkipJsonSchema[None] = Field(
        None, description="Unix time in seconds. Kept for operators, never trusted."
    )
    correlation_id: str | SkipJsonSchema[None] = Field(
        None, description="Kept for operators."
    )
    app_id: str | SkipJsonSchema[None] = Field(
        None, description="Kept for operators: what published it."
    )
    headers: Mapping[str, object] | SkipJsonSchema[None] = Field(
        None,
        description="Kept for operators. Names that start with `x-bridge-` are the bridge's "
        "own and are dropped when it publishes the message again.",
    )


class PublishedMessage(Contract):
    """
    What a worker publishes to the exchange `bridge.messages`.

    Limits that a schema cannot say: the routing key and the event count in bytes too,
    and the body has at most BRIDGE_MAX_MESSAGE_BYTES of valid UTF-8 JSON (RFC 8259, no
    NaN), nested no deeper than 1024.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "routing_key": "alice",
                    "properties": {},
                    "body": {"text": "Your export is ready", "url": "/exports/17"},
                },
                {
                    "routing_key": "bob@example.org",
                    "properties": {
                        "type": "order.changed",
                        "message_id": "0b7c2a1e-order-17-3",
                        "expiration": "60000",
                        "content_type": "application/json",
                        "app_id": "shop",
                    },
                    "body": [17, "shipped"],
                },
                {
                    "routing_key": "alice",
                    "properties": {"content_type": "text/plain"},
                    "body": "just text",
                },
            ]
        }
    )

    routing_key: User = Field(description=USER_TEXT)
    properties: MessageProperties = Field(default_factory=MessageProperties)
    body: AnyJson = Field(
        description="The data that the page receives: any JSON value, null included."
    )


class PublishRequest(Contract):
    """The body of `POST /api/publish`, for those without an AMQP client."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"user": "alice", "data": {"text": "Your export is ready"}},
                {
                    "user": "bob@example.org",
                    "event": "order.changed",
                    "data": [17, "shipped"],
                    "id": "0b7c2a1e-order-17-3",
                    "ttl_s": 60,
                },
                {"user": "alice", "data": None},
            ]
        },
    )

    user: User = Field(description=USER_TEXT)
    event: Event | None = Field(None, description=EVENT_TEXT)
    data: AnyJson = Field(
        description="What the page receives: any JSON value, null included, nested at most "
        "254 deep.",
    )
    id: MessageId | None = Field(
        None, description=f"{ID_TEXT} Absent: the bridge makes one."
    )
    ttl_s: float | None = Field(
        None,
        ge=0,
        le=TTL_MAX_S,
        allow_inf_nan=False,
        description="Seconds after which it is not delivered any more. Absent: the inbox "
        "keeps it for BRIDGE_INBOX_MAX_AGE.",
    )


class PublishAccepted(Contract):
    """The answer 202 of `POST /api/publish`: the broker has confirmed the message."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"id": "0b7c2a1e-order-17-3"}]}
    )

    id: str = Field(description="The message's id: the request's, or a new one.")


class Problem(Contract):
    """Why an HTTP request was not done: `application/problem+json` (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Unprocessable Entity",
                    "status": 422,
                    "detail": "user is missing",
                    "pointer": "/user",
                }
            ]
        }
    )

    type: str = Field("about:blank", description="A URI reference that names the kind.")
    title: str = Field(description="The status, in words.")
    status: int = Field(ge=400, le=599, description="The HTTP status.")
    detail: str = Field(description="What is wrong with this request.")
    pointer: str | SkipJsonSchema[None] = Field(
        None,
        description="What is at fault: a JSON Pointer (RFC 6901) into the body, empty for "
        "all of it, or the name of a parameter.",
    )


class DeadLetterHeaders(Contract):
    """
    What the bridge writes into the headers of a message that it sets aside.

    The producer's own headers stand beside them, the body is the original's. A message
    whose `expiration` passed in the queue is set aside by RabbitMQ itself, with `x-death`
    in place of these.
    """

    model_config = ConfigDict(
        validate_by_name=True,
        json_schema_extra={
            "examples": [
                {
                    Header.REASON.value: DeadLetterReason.MALFORMED_BODY.value,
                    Header.ERROR.value: "body of 4 bytes is not JSON: unexpected character at 0",
                    Header.TIME.value: 1767225600,
                    Header.ATTEMPT.value: 1,
                    Header.ORIGIN_EXCHANGE.value: "bridge.messages",
                    Header.ORIGIN_QUEUE.value: "bridge.inbound.0",
                    Header.ROUTING_KEY.value: "alice",
                }
            ]
        },
    )

    reason: Annotated[DeadLetterReason, listed(DeadLetterReason)] = Field(
        alias=Header.REASON.value,
        description=explained(DeadLetterReason, "Why it was set aside:"),
    )
    error: str = Field(
        alias=Header.ERROR.value,
        max_length=1000,
        description="What exactly was wrong. Never quotes the body.",
    )
    time: int = Field(
        alias=Header.TIME.value,
        ge=0,
        description="Unix time in seconds at which it was set aside.",
    )
    attempt: int = Field(
        alias=Header.ATTEMPT.value, ge=1, description="The attempt that was the last."
    )
    origin_exchange: str = Field(
        alias=Header.ORIGIN_EXCHANGE.value,
        description="The exchange that it was published to, or came back through.",
    )
    origin_queue: str = Field(
        alias=Header.ORIGIN_QUEUE.value, description="The queue that it was taken from."
    )
    routing_key: str = Field(
        alias=Header.ROUTING_KEY.value,
        description="Its routing key, byte for byte: the user, if it is any good.",
    )
    expiration: str | SkipJsonSchema[None] = Field(
        None,
        alias=Header.EXPIRATION.value,
        description="Its property `expiration`, moved here so that the dead letter stays.",
    )
    user_id: str | SkipJsonSchema[None] = Field(
        None,
        alias=Header.USER_ID.value,
        description="Its property `user_id`, moved here because the broker would compare "
        "it with the bridge's own login.",
    )
    letter: str | SkipJsonSchema[None] = Field(
        None,
        alias=Header.DEAD_LETTER_ID.value,
        description="Tells this dead letter from all others.",
    )
    redrives: Annotated[int, Field(ge=1)] | SkipJsonSchema[None] = Field(
        None,
        alias=Header.REDRIVES.value,
        description="How often it was redriven before; absent for never.",
    )
    redriven_id: str | SkipJsonSchema[None] = Field(
        None,
        alias=Header.REDRIVEN_ID.value,
        description="Of the last redrive: what the inbox knows a repeat of it by.",
    )
    headers_dropped: Annotated[int, Field(ge=0)] | SkipJsonSchema[None] = Field(
        None,
        alias=Header.HEADERS_DROPPED.value,
        description="Bytes of the producer's headers, which left no room for these and "
        "were dropped.",
    )
