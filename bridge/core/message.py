"""
Deliveries, messages, and the parser between them.

A delivery is one hand-over by RabbitMQ, byte for byte. A message is parsed and validated,
and bridge promises to deliver it to a user. `parse_delivery` is the only place that decides
whether a delivery is valid.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf
from typing import Final

import orjson

from bridge.core.clock_reading import ClockReading
from bridge.core.event_schemas import EventSchema, EventSchemas
from bridge.core.json_text import parse_json
from bridge.core.message_options import (
    OPTIONS_MARK,
    MessageOptions,
    Tracking,
    parse_options,
)
from bridge.core.properties import (
    Properties,
    header_bytes,
    header_int,
    iter_array,
    iter_table,
    parse_properties,
)
from bridge.core.provenance import published_s, trace_parent
from bridge.enums import (
    EVENT_DEFAULT,
    RESERVED_EVENTS,
    RESERVED_PREFIX,
    DeadLetterReason,
    Header,
)

EVENT_NAME_MAX_CHARACTERS: Final = 128
# The routing key is an AMQP short string, which holds at most 255 bytes.
USER_MAX_BYTES: Final = 255
# A longer `message_id` cannot arrive by AMQP, where it is a short string, only by HTTP.
MESSAGE_ID_MAX_BYTES: Final = 255
# About 30,000 years: later times do not fit into a 64-bit header.
_DEADLINE_MAX_MS: Final = 10**15


@dataclass(slots=True)
class Delivery:
    """
    One hand-over by RabbitMQ. Not frozen, because thousands are created per second.

    Attributes:
        tag: The delivery tag; counts from 1 on each channel.
        redelivered: The broker's flag: an earlier consumer did not ack it.
        exchange: The exchange it was published to, or returned through.
        routing_key: As on the wire; names the user if it is valid.
        raw_properties: The content header from its flags on.
        body: The whole body.
        queue: The queue it was consumed from.

    """

    tag: int
    redelivered: bool
    exchange: bytes
    routing_key: bytes
    raw_properties: bytes
    body: bytes
    queue: str

    @property
    def properties(self) -> Properties:
        """The properties, parsed at each call."""
        return parse_properties(self.raw_properties)


@dataclass(slots=True)
class Message:
    """
    A valid message for one user.

    Attributes:
        user: The user whose inbox stores it.
        event: The Socket.IO event that windows receive.
        data: One JSON value in UTF-8, exactly the bytes that the page parses.
        taken_s: Unix time at which the bridge received it from the broker.
        id: The producer's message id; publishing it again is harmless.
        deadline_s: Unix time after which it is not delivered; ``None`` for no deadline.
        published_s: Unix time at which its producer published it, by the producer's own
            clock; ``None`` if that is not known, as after a read from the store.
        trace_parent: The producer's W3C trace context; ``None`` as for `published_s`.
        options: How it is delivered; ``None`` as usual.

    """

    user: str
    event: str
    data: bytes
    taken_s: float
    id: str | None = None
    deadline_s: float | None = None
    published_s: float | None = None
    trace_parent: str | None = None
    options: MessageOptions | None = None

    @property
    def key(self) -> str | None:
        """The producer's key; ``None`` also after a read from a store without options."""
        return None if self.options is None else self.options.key

    def is_expired(self, at: ClockReading) -> bool:
        """Return whether its deadline has passed."""
        deadline_s = self.deadline_s
        return deadline_s is not None and at.has_passed(
            deadline_s, since_s=self.taken_s
        )


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a delivery is not a valid message, and never will be."""

    reason: DeadLetterReason
    text: str


@dataclass(frozen=True, slots=True)
class MessageLimits:
    """
    The operator's bounds.

    Attributes:
        body_bytes: Of the body alone.
        max_age_s: How long an inbox keeps a message.
        undelivered_after_s: After this time a message of the event counts as undelivered, if
            it does not have a time of its own.

    """

    body_bytes: int
    max_age_s: float = inf
    undelivered_after_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Stored:
    """A message in its user's inbox, at `offset`; each user's are counted from 1."""

    message: Message
    offset: int


def parse_delivery(
    delivery: Delivery,
    *,
    limits: MessageLimits,
    now_s: float,
    schemas: EventSchemas | None = None,
) -> Message | Rejection:
    """
    Parse and validate `delivery`.

    Args:
        delivery: The delivery, unchanged.
        limits: The operator's bounds.
        now_s: Unix time, from which `expiration` counts. A delivery has no trustworthy
            time of its own, so the wait in the queue is not counted here; the broker
            itself expires messages there.
        schemas: What the data of events must be; ``None`` allows any JSON.

    Returns:
        The message, or a rejection with the first fault found.

    """
    body = delivery.body
    if len(body) > limits.body_bytes:
        return Rejection(
            DeadLetterReason.TOO_LARGE,
            f"body has {len(body)} bytes, allowed are {limits.body_bytes}",
        )
    known = _USERS.get(delivery.routing_key) if delivery.exchange else None
    user = known or _parse_new_user(delivery)
    properties = parse_properties(delivery.raw_properties)
    if properties.headers is not None and _CC in properties.headers:
        user = _only_user(user, delivery.routing_key, properties.headers)
    if isinstance(user, Rejection):
        return user
    event = parse_event(properties.type) if properties.type else EVENT_DEFAULT
    if isinstance(event, Rejection):
        return event
    schema = None if schemas is None else schemas.find(event)
    data = parse_body(
        body,
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        schema=schema,
    )
    if isinstance(data, Rejection):
        return data
    if len(data) > limits.body_bytes:  # text whose characters JSON has to escape
        return Rejection(
            DeadLetterReason.TOO_LARGE,
            f"text has {len(data)} bytes as JSON, allowed are {limits.body_bytes}",
        )
    message = Message(user, event, data, now_s)
    headers = b""
    if properties.has_per_message_values:
        message.id = _message_id(properties)
        message.deadline_s = _deadline_s(properties, now_s)
        message.published_s = published_s(properties, now_s)
        message.trace_parent = trace_parent(properties)
        if properties.headers is not None and OPTIONS_MARK in properties.headers:
            headers = properties.headers
    rules = limits.undelivered_after_s
    after_s = rules.get(event) if rules else None
    parsed: Message | Rejection = message
    if headers or after_s is not None:
        parsed = _with_options(
            *(message, properties, headers),
            max_age_s=limits.max_age_s,
            undelivered_after_s=after_s,
        )
    return parsed


# Producers send the same headers again and again. Bounded to about 1 MB.
_SHORT_HEADERS_BYTES: Final = 256
_parse_options = lru_cache(maxsize=1024)(parse_options)


def _with_options(
    message: Message,
    properties: Properties,
    headers: bytes,
    *,
    max_age_s: float,
    undelivered_after_s: float | None,
) -> Message | Rejection:
    parse = _parse_options if len(headers) <= _SHORT_HEADERS_BYTES else parse_options
    options = parse(
        headers, max_age_s=max_age_s, undelivered_after_s=undelivered_after_s
    )
    if isinstance(options, str):
        return Rejection(DeadLetterReason.BAD_HEADER, options)
    if options is not None and options.tracking is not None:
        tracking = tracking_for(properties, options.tracking)
        if tracking is not options.tracking:
            options = MessageOptions(
                *(options.is_ephemeral, options.key, options.throttle_s),
                *(options.is_retained, options.is_cleared, tracking),
            )
    message.options = options
    return message


def tracking_for(properties: Properties, asked: Tracking) -> Tracking:
    """Return what is asked for, with the addresses of one message; `asked` if it has none."""
    if not (properties.reply_to or properties.correlation_id):
        return asked  # so messages share one object
    return Tracking(
        asked.wants_receipt,
        _text(properties.reply_to),  # left out if it is not UTF-8
        _text(properties.correlation_id),
        asked.undelivered_after_s,
    )


def _text(value: bytes | None) -> str | None:
    try:
        return value.decode() if value else None
    except UnicodeDecodeError:
        return None


# Values of `content_encoding` for bodies that no page can read. Other values, such as
# character sets, have no meaning for the bridge.
_COMPRESSIONS: Final = frozenset(
    (b"gzip", b"x-gzip", b"deflate", b"br", b"zstd", b"compress", b"bzip2", b"lz4")
)
# Users by routing key, because the same ones occur again and again and their messages then
# share one string. Bounded to about 15 MB, because producers choose the keys.
_USERS: dict[bytes, str] = {}
_USERS_MAX: Final = 1 << 16


# RabbitMQ also routes a message by the keys in this array. A queue receives it once, however
# many keys lead there, and a hash exchange picks the queue by all keys together. So the order
# of each user's messages cannot be kept. RabbitMQ removes the array BCC before delivery.
_CC: Final = b"\x02CCA"


def _only_user(
    user: str | Rejection, routing_key: bytes, headers: bytes
) -> str | Rejection:
    """Return `user` unless the header CC adds other routing keys."""
    keys = {
        key[5:]
        for name, value, _ in iter_table(headers)
        if name == b"CC" and value[:1] == b"A"
        for key in iter_array(value[5:])
    }
    added = len(keys - {routing_key})
    if not added:
        return user
    counted = "1 routing key" if added == 1 else f"{added} routing keys"
    text = f"the header CC adds {counted}; publish it once for each user"
    return Rejection(DeadLetterReason.BAD_ROUTE, text)


def _parse_new_user(delivery: Delivery) -> str | Rejection:
    routing_key = delivery.routing_key
    # Only the default exchange has an empty name. It routes to the queue that the key names.
    if not delivery.exchange:
        text = (
            f"published straight into the queue {delivery.queue}, so it names no user"
        )
        return Rejection(DeadLetterReason.BAD_ROUTE, text)
    if routing_key == delivery.queue.encode():
        text = "the routing key is the name of the queue, not a user"
        return Rejection(DeadLetterReason.BAD_ROUTE, text)
    user = parse_user(routing_key)
    if not isinstance(user, Rejection):
        if len(_USERS) >= _USERS_MAX:
            _USERS.clear()
        _USERS[routing_key] = user
    return user


def parse_user(routing_key: bytes) -> str | Rejection:
    """Return the user in `routing_key`: any text without control characters."""
    try:
        user = routing_key.decode()
    except UnicodeDecodeError as exc:
        return Rejection(
            DeadLetterReason.BAD_USER,
            f"routing key is not UTF-8 at byte {exc.start}",
        )
    problem = user_problem(user)
    return (
        Rejection(DeadLetterReason.BAD_USER, f"routing key {problem}")
        if problem
        else user
    )


def user_problem(user: str) -> str | None:
    """Return why `user` is invalid, as the end of a sentence; ``None`` if it is valid."""
    if not user:
        return "is empty"
    # isprintable() is one call in C and true for almost every user. It also refuses
    # harmless characters such as a no-break space, so a refusal is checked again.
    if not user.isprintable() and any(_is_control(character) for character in user):
        return "contains a control character"
    try:
        length = len(user.encode())
    except UnicodeEncodeError:  # a lone surrogate, which JSON can contain
        return "is not valid Unicode"
    if length > USER_MAX_BYTES:
        return f"has {length} bytes, allowed are {USER_MAX_BYTES}"
    return None


def parse_event(name: bytes) -> str | Rejection:
    """Return the event name in the property `type`."""
    try:
        event = name.decode()
    except UnicodeDecodeError as exc:
        return Rejection(
            DeadLetterReason.BAD_EVENT, f"type is not UTF-8 at byte {exc.start}"
        )
    problem = event_problem(event)
    return (
        Rejection(DeadLetterReason.BAD_EVENT, f"type {problem}") if problem else event
    )


def event_problem(event: str) -> str | None:
    """Return why `event` is invalid, as the end of a sentence; ``None`` if it is valid."""
    if not event:
        return "is empty, expected an event name"
    if len(event) > EVENT_NAME_MAX_CHARACTERS:
        return f"has {len(event)} characters, allowed are {EVENT_NAME_MAX_CHARACTERS}"
    if event in RESERVED_EVENTS or event.startswith(RESERVED_PREFIX):
        return f"is the reserved name {event!r}"
    if not event.isprintable() and any(_is_control(character) for character in event):
        return "contains a control character"
    try:
        event.encode()
    except (
        UnicodeEncodeError
    ):  # as for users; from a command line, never from the broker
        return "is not valid Unicode"
    return None


def parse_body(
    body: bytes,
    *,
    content_type: bytes | None,
    content_encoding: bytes | None = None,
    schema: EventSchema | None = None,
) -> bytes | Rejection:
    """
    Return the JSON for the page: `body` itself, or plain text as a JSON string.

    Args:
        body: The body as published.
        content_type: ``text/plain`` for text; anything else means JSON.
        content_encoding: A compression is refused; anything else is ignored.
        schema: What the data must be; ``None`` allows any JSON.

    """
    if content_encoding and content_encoding.lower() in _COMPRESSIONS:
        encoding = content_encoding.decode().lower()
        text = f"content encoding {encoding}: publish it uncompressed"
        return Rejection(DeadLetterReason.MALFORMED_BODY, text)
    if content_type and content_type[:10].lower() == b"text/plain":
        try:
            value: object = body.decode()
        except UnicodeDecodeError as exc:
            return Rejection(
                DeadLetterReason.MALFORMED_BODY,
                f"text/plain body is not UTF-8 at byte {exc.start}",
            )
        body = orjson.dumps(value)
    else:
        try:
            # Strict: RFC 8259 in UTF-8, no NaN, no byte order mark, bounded depth.
            value = parse_json(body)
        except orjson.JSONDecodeError as exc:
            # The library's text has the position and never quotes the body.
            return Rejection(
                DeadLetterReason.MALFORMED_BODY,
                f"body of {len(body)} bytes is not JSON: {exc.msg} at {exc.pos}",
            )
    if schema is not None:
        violation = schema.violation(value, size_bytes=len(body))
        if violation is not None:
            return Rejection(DeadLetterReason.SCHEMA, violation.text)
    return body


def _is_control(character: str) -> bool:
    return character < " " or "\x7f" <= character <= "\x9f"


def message_id_of(delivery: Delivery) -> str | None:
    """Return the producer's id of a delivery, valid or not."""
    return _message_id(delivery.properties)


def _message_id(properties: Properties) -> str | None:
    """Return the id; one that is not UTF-8 still identifies the message."""
    if properties.message_id:
        return properties.message_id.decode(errors="backslashreplace")
    # An interrupted redrive is repeated. Without an id, this recognizes the repeat.
    redriven = header_bytes(properties.headers, Header.REDRIVEN_ID)
    if redriven and len(redriven) <= MESSAGE_ID_MAX_BYTES:
        return f"redriven:{redriven.decode(errors='backslashreplace')}"
    return None


def carried_deadline_ms(properties: Properties) -> int | None:
    """
    Return the deadline that a retry carries, in Unix milliseconds.

    A retry has no `expiration`: the broker would expire it in the retry queue.
    """
    deadline_ms = header_int(properties.headers, Header.DEADLINE)
    # Any producer can set the header: a value out of range is not from a bridge.
    if deadline_ms is not None and 0 <= deadline_ms < _DEADLINE_MAX_MS:
        return deadline_ms
    return None


def _deadline_s(properties: Properties, now_s: float) -> float | None:
    if properties.headers is not None:  # most messages have none
        carried_ms = carried_deadline_ms(properties)
        if carried_ms is not None:
            return carried_ms / 1000
    raw = properties.expiration
    # RabbitMQ refuses a publish whose expiration is not a number. Should another value
    # get here, it counts as not set.
    if raw and raw.isdigit() and len(raw) <= 15:
        return now_s + int(raw) / 1000
    return None
