"""Messages that workers publish over AMQP or HTTP, and dead letters."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from bridge.core.contracts.base import (
    EVENT_TEXT,
    ID_TEXT,
    TTL_MAX_S,
    USER_TEXT,
    Absent,
    AnyJson,
    Contract,
    Event,
    Key,
    MessageId,
    Throttle,
    UndeliveredAfter,
    User,
    examples,
    explained,
    listed,
)
from bridge.core.durations import parse_duration_s
from bridge.core.message import MESSAGE_ID_MAX_BYTES
from bridge.core.message_options import (
    OPTIONS_MARK,
    MessageOptions,
    Tracking,
    options_problem,
)
from bridge.enums import (
    HEADER_USER,
    HEADER_WINDOW,
    REASONS_OF_BRIDGE,
    DeadLetterReason,
    Header,
    OptionHeader,
)

EPHEMERAL_TEXT = (
    "The message is emitted to the windows that are open now, and never stored."
)
KEY_TEXT = (
    "The message replaces an older one of the same user, event and key that is still in the "
    "inbox."
)
THROTTLE_TEXT = (
    "A duration from 1ms to 1h: a window that is open receives at most one message of the key "
    "in this time, and always the last one."
)
RETAIN_TEXT = (
    "New windows receive the newest message of the key first, also one that the user has had, "
    "until the key is cleared or the message expires."
)
CLEAR_TEXT = (
    "The key is no longer retained; the message itself is delivered like any other."
)
RECEIPT_TEXT = (
    "The final outcome of the message is published to the exchange `bridge.events`."
)
UNDELIVERED_AFTER_TEXT = (
    "A duration such as `45s`, at most BRIDGE_INBOX_MAX_AGE. If the message is not delivered in "
    "that time, `message.undelivered` is published to the exchange `bridge.events`. Takes "
    "precedence over BRIDGE_UNDELIVERED_AFTER."
)
_Flag = bool | Literal["true", "false"]


class MessageHeaders(Contract):
    """
    The headers that say how a message is delivered; all others are kept for operators.

    With an invalid value the message becomes a dead letter (`bad_header`).
    """

    model_config = ConfigDict(
        extra="allow",
        validate_by_name=True,
        alias_generator=lambda name: OptionHeader[name.upper()].value,
    ) | examples(
        {"x-bridge-ephemeral": True},
        {"x-bridge-key": "job-17", "x-bridge-throttle": "250ms"},
        {"x-bridge-key": "job-17", "x-bridge-retain": True},
        {"x-bridge-receipt": True, "x-bridge-undelivered-after": "45s"},
    )

    ephemeral: _Flag | Absent = Field(None, description=EPHEMERAL_TEXT)
    key: Key | Absent = Field(None, description=KEY_TEXT)
    throttle: Throttle | Absent = Field(
        None, description=f"Needs a key. {THROTTLE_TEXT}"
    )
    retain: _Flag | Absent = Field(None, description=f"Needs a key. {RETAIN_TEXT}")
    clear: _Flag | Absent = Field(None, description=f"Needs a key. {CLEAR_TEXT}")
    receipt: _Flag | Absent = Field(None, description=RECEIPT_TEXT)
    undelivered_after: str | Absent = Field(None, description=UNDELIVERED_AFTER_TEXT)


class MessageProperties(Contract):
    """
    The AMQP properties that have a meaning for the bridge.

    All others are preserved. No content of a property can make the bridge fail.
    """

    type: Annotated[Event | Literal[""], Field(description=EVENT_TEXT)] = ""
    message_id: Annotated[str, Field(max_length=MESSAGE_ID_MAX_BYTES)] | Absent = Field(
        None, description=ID_TEXT
    )
    expiration: Annotated[str, Field(pattern=r"^[0-9]{1,15}$")] | Absent = Field(
        None,
        description="Milliseconds in decimal digits; after that time the message is no longer "
        "delivered.",
    )
    content_type: str | Absent = Field(
        None,
        description="`text/plain`: the body is text and becomes a JSON string. Anything else: "
        "the body is JSON.",
    )
    content_encoding: str | Absent = Field(
        None,
        description="Compressed bodies (`gzip`, `deflate`, `br`, `zstd` and others) become "
        "dead letters. Other values are kept for operators.",
    )
    timestamp: int | Absent = Field(
        None, description="Unix time in seconds. Kept for operators, never trusted."
    )
    reply_to: str | Absent = Field(
        None, description="Where the receipt goes, too, through the default exchange."
    )
    correlation_id: str | Absent = Field(
        None, description="Of what is published about the message."
    )
    app_id: str | Absent = Field(
        None, description="Kept for operators: what published it."
    )
    headers: MessageHeaders | Absent = Field(
        None,
        description="Some say how the message is delivered. The others are kept for operators. "
        "All other names that start with `x-bridge-` are the bridge's own and are dropped when "
        "it publishes the message again.",
    )


class PublishedMessage(Contract):
    """
    What a worker publishes to the exchange `bridge.messages`.

    A schema cannot express some limits: those of the routing key and the event in bytes, and
    those of the body, which is valid UTF-8 JSON (RFC 8259, no NaN) of at most
    BRIDGE_MAX_MESSAGE_BYTES, nested at most 1024 deep.
    """

    model_config = examples(
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
    )

    routing_key: User = Field(description=USER_TEXT)
    properties: MessageProperties = Field(default_factory=MessageProperties)
    body: AnyJson = Field(description="The data: any JSON value, including null.")


class PublishRequest(Contract):
    """The body of `POST /api/publish`, for those without an AMQP client."""

    model_config = ConfigDict(extra="forbid") | examples(
        {"user": "alice", "data": {"text": "Your export is ready"}},
        {
            "user": "bob@example.org",
            "event": "order.changed",
            "data": [17, "shipped"],
            "id": "0b7c2a1e-order-17-3",
            "ttl_s": 60,
        },
        {
            "user": "alice",
            "event": "progress",
            "data": 40,
            "key": "job-17",
            "throttle": "250ms",
            "retain": True,
        },
        {
            "user": "alice",
            "data": {"text": "Please confirm"},
            "receipt": True,
            "undelivered_after": "45s",
        },
        {"user": "alice", "data": None},
    )

    user: User = Field(description=USER_TEXT)
    event: Event | None = Field(None, description=EVENT_TEXT)
    data: AnyJson = Field(
        description="The data that clients receive: any JSON value, including null, nested at most "
        "254 deep.",
    )
    id: MessageId | None = Field(None, description=f"{ID_TEXT} Absent: a new one.")
    ttl_s: float | None = Field(
        None,
        ge=0,
        le=TTL_MAX_S,
        allow_inf_nan=False,
        description="Seconds after which the message is no longer delivered. Absent: the inbox "
        "keeps it for BRIDGE_INBOX_MAX_AGE.",
    )
    ephemeral: bool = Field(default=False, strict=True, description=EPHEMERAL_TEXT)
    key: Key | None = Field(None, description=KEY_TEXT)
    throttle: Throttle | None = Field(None, description=f"Needs a key. {THROTTLE_TEXT}")
    retain: bool = Field(
        default=False, strict=True, description=f"Needs a key. {RETAIN_TEXT}"
    )
    clear: bool = Field(
        default=False, strict=True, description=f"Needs a key. {CLEAR_TEXT}"
    )
    receipt: bool = Field(default=False, strict=True, description=RECEIPT_TEXT)
    undelivered_after: UndeliveredAfter | None = Field(
        None, description=UNDELIVERED_AFTER_TEXT
    )

    @property
    def options(self) -> MessageOptions:
        """How the message is delivered."""
        after = self.undelivered_after
        after_s = None if after is None else parse_duration_s(after)
        return MessageOptions(
            is_ephemeral=self.ephemeral,
            key=self.key,
            throttle_s=None
            if self.throttle is None
            else parse_duration_s(self.throttle),
            is_retained=self.retain,
            is_cleared=self.clear,
            tracking=Tracking(self.receipt, undelivered_after_s=after_s)
            if self.receipt or after_s is not None
            else None,
        )

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        problem = options_problem(self.options)
        if problem:
            # A header without its beginning is a field.
            fields = problem.replace(OPTIONS_MARK.decode(), "").replace("-", "_")
            raise ValueError(fields)
        return self


class PublishAccepted(Contract):
    """The answer 202 of `POST /api/publish`: the broker has confirmed the message."""

    model_config = examples({"id": "0b7c2a1e-order-17-3"})

    id: str = Field(description="The id of the message, from the request or new.")


class Problem(Contract):
    """Why an HTTP request was refused or failed: `application/problem+json` (RFC 9457)."""

    model_config = examples(
        {
            "type": "about:blank",
            "title": "Unprocessable Content",
            "status": 422,
            "detail": "user is missing",
            "pointer": "/user",
        }
    )

    type: str = Field(
        "about:blank",
        description="A URI reference that identifies the type of the problem.",
    )
    title: str = Field(description="The reason phrase of the status.")
    status: int = Field(ge=400, le=599, description="The HTTP status.")
    detail: str = Field(description="What is wrong with this request, as a sentence.")
    pointer: str | Absent = Field(
        None,
        description="The location of the fault: a JSON Pointer (RFC 6901) into the body, empty for "
        "the whole body, or the name of a parameter.",
    )


class PageRequestHeaders(Contract):
    """The headers of a request from a page."""

    model_config = ConfigDict(validate_by_name=True)

    user: User = Field(
        alias=HEADER_USER,
        description="The user, from the verified token of the page.",
    )
    window: str = Field(
        alias=HEADER_WINDOW, description="The Socket.IO id of the window."
    )
    traceparent: str | Absent = Field(
        None, description="The W3C trace context; only if the bridge traces."
    )


class PageRequestProperties(Contract):
    """The AMQP properties of a request from a page."""

    content_type: Literal["application/json"]
    message_id: str = Field(description="The id of the request.")
    correlation_id: str = Field(description="The same id; the reply must have it, too.")
    reply_to: str | Absent = Field(
        None,
        description="The routing key of the reply, on the default exchange. Absent: the page "
        "expects none.",
    )
    expiration: str = Field(
        description="BRIDGE_REQUEST_TIMEOUT in milliseconds: RabbitMQ drops the request after it."
    )
    headers: PageRequestHeaders


class PageRequest(Contract):
    """What a worker receives from the exchange `bridge.requests`: a request from a page."""

    model_config = examples(
        {
            "routing_key": "job.cancel",
            "properties": {
                "content_type": "application/json",
                "message_id": "6f1c0c6f2a3b4c5d6e7f8091",
                "correlation_id": "6f1c0c6f2a3b4c5d6e7f8091",
                "reply_to": "amq.rabbitmq.reply-to.g1hkABFy",
                "expiration": "10000",
                "headers": {HEADER_USER: "alice", HEADER_WINDOW: "Zm9vYmFy"},
            },
            "body": {"id": 17},
        }
    )

    routing_key: Event = Field(description="The event, one of BRIDGE_PAGE_EVENTS.")
    properties: PageRequestProperties
    body: AnyJson = Field(
        description="The data: one JSON value, null if there is none."
    )


class WorkerReplyProperties(Contract):
    """The AMQP properties of a reply that have a meaning for the bridge."""

    correlation_id: str = Field(description="That of the request.")
    type: Literal["error"] | Absent = Field(
        None, description="`error`: the body describes an error."
    )
    content_type: str | Absent = Field(
        None,
        description="`text/plain`: the body is text. Anything else: the body is JSON.",
    )


class WorkerReply(Contract):
    """
    A worker's reply to a request from a page, published to the default exchange.

    Its size limit is BRIDGE_MAX_MESSAGE_BYTES. An empty body is null.
    """

    model_config = examples(
        {
            "routing_key": "amq.rabbitmq.reply-to.g1hkABFy",
            "properties": {"correlation_id": "6f1c0c6f2a3b4c5d6e7f8091"},
            "body": {"canceled": 17},
        },
        {
            "routing_key": "amq.rabbitmq.reply-to.g1hkABFy",
            "properties": {
                "correlation_id": "6f1c0c6f2a3b4c5d6e7f8091",
                "type": "error",
            },
            "body": {"code": "gone", "message": "the job has ended"},
        },
    )

    routing_key: str = Field(description="The `reply_to` of the request.")
    properties: WorkerReplyProperties
    body: AnyJson = Field(
        description="The data for the page. Of an error, the member `message` is also the "
        "message of the answer."
    )


class DeadLetterHeaders(Contract):
    """
    The headers that the bridge adds to a message that becomes a dead letter.

    The producer's own headers and the body are preserved. If the `expiration` of a message
    passes in the queue, RabbitMQ sets it aside itself, with `x-death` instead of these.
    """

    model_config = ConfigDict(
        validate_by_name=True,
        alias_generator=lambda field_name: Header[field_name.upper()].value,
    ) | examples(
        {
            Header.REASON.value: DeadLetterReason.MALFORMED_BODY.value,
            Header.ERROR.value: "body of 4 bytes is not JSON: unexpected character at 0",
            Header.TIME.value: 1767225600,
            Header.ATTEMPT.value: 1,
            Header.ORIGIN_EXCHANGE.value: "bridge.messages",
            Header.ORIGIN_QUEUE.value: "bridge.inbound.0",
            Header.ROUTING_KEY.value: "alice",
        }
    )

    reason: Annotated[DeadLetterReason, listed(REASONS_OF_BRIDGE)] = Field(
        description=explained(REASONS_OF_BRIDGE, "Why the message is a dead letter:"),
    )
    error: str = Field(
        max_length=1000,
        description="The exact problem. It never quotes the body.",
    )
    time: int = Field(
        ge=0,
        description="Unix time in seconds at which the message became a dead letter.",
    )
    attempt: int = Field(ge=1, description="The number of the last attempt.")
    origin_exchange: str = Field(
        description="The exchange to which the message was last published.",
    )
    origin_queue: str = Field(
        description="The queue from which the bridge consumed it.",
    )
    routing_key: str = Field(
        description="Its routing key, byte for byte, which is the user if it is valid.",
    )
    expiration: str | Absent = Field(
        None,
        description="Its property `expiration`, moved here so that the dead letter does not expire.",
    )
    user_id: str | Absent = Field(
        None,
        description="Its property `user_id`, moved here because the broker would compare "
        "it with the bridge's own user name.",
    )
    dead_letter_id: str | Absent = Field(
        None,
        description="A unique id of this dead letter.",
    )
    redrives: Annotated[int, Field(ge=1)] | Absent = Field(
        None,
        description="How often the message was redriven before; absent for never.",
    )
    redriven_id: str | Absent = Field(
        None,
        description="The id of the last redrive, by which the inbox recognizes a repeat of it.",
    )
    headers_dropped: Annotated[int, Field(ge=0)] | Absent = Field(
        None,
        description="Bytes of the producer's headers that were dropped, because they left no room "
        "for these.",
    )
