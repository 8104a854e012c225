"""A delivery becomes a valid message, or a rejection with its reason."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.clock_reading import ClockReading
from bridge.core.message import (
    Delivery,
    Message,
    MessageLimits,
    Rejection,
    event_problem,
    parse_delivery,
    parse_event,
    user_problem,
)
from bridge.core.message_options import MessageOptions, Tracking, render_options
from bridge.core.properties import (
    NO_PROPERTIES,
    Properties,
    render_properties,
    render_table,
)
from bridge.enums import RESERVED_EVENTS, DeadLetterReason

LIMITS = MessageLimits(body_bytes=100_000)
NOW_S = 1_700_000_000.0


def delivery(
    body: bytes = b'{"a": 1}',
    *,
    user: bytes = b"alice",
    properties: Properties = NO_PROPERTIES,
    exchange: bytes = b"bridge.messages",
) -> Delivery:
    return Delivery(
        tag=1,
        redelivered=False,
        exchange=exchange,
        routing_key=user,
        raw_properties=render_properties(properties),
        body=body,
        queue="q",
    )


def parse(found: Delivery) -> Message:
    message = parse_delivery(found, limits=LIMITS, now_s=NOW_S)
    assert isinstance(message, Message)
    return message


def reject(found: Delivery) -> Rejection:
    rejection = parse_delivery(found, limits=LIMITS, now_s=NOW_S)
    assert isinstance(rejection, Rejection)
    return rejection


# --- what is good -----------------------------------------------------------------------


def test_the_smallest_publish_is_a_message() -> None:
    """A user and a body suffice."""
    assert parse(delivery()) == Message(
        user="alice", event="message", data=b'{"a": 1}', taken_s=NOW_S
    )


def test_each_meaningful_property_is_parsed() -> None:
    """All other properties are ignored."""
    properties = Properties(
        content_type=b"application/json",
        type=b"order.shipped",
        message_id=b"m-1",
        expiration=b"1500",
        timestamp=b"\xff" * 8,
        headers=b"\xff" * 20,
    )

    assert parse(delivery(properties=properties)) == Message(
        user="alice",
        event="order.shipped",
        data=b'{"a": 1}',
        taken_s=NOW_S,
        id="m-1",
        deadline_s=NOW_S + 1.5,
    )


@pytest.mark.parametrize(
    "user",
    [
        "a",
        "a.b.c",
        "#",
        "*",
        "user:1",
        " ",
        "zoë",
        "日本",
        "a\u00a0b",
        "a" * 255,
        "é" * 127,
    ],
    ids=ascii,
)
def test_a_user_is_any_text_that_a_routing_key_can_hold(user: str) -> None:
    """Dots, # and * are plain characters: a key is a name, not a pattern."""
    assert parse(delivery(user=user.encode())).user == user


@pytest.mark.parametrize(
    "body",
    [b"null", b"0", b'"text"', b"[]", b' {"a": [1, 2.5e3, true]} ', '"é€𝄞"'.encode()],
)
def test_the_body_is_any_json_value_and_stays_unchanged(body: bytes) -> None:
    """The page receives the producer's bytes, not a re-encoded copy."""
    assert parse(delivery(body)).data == body


@pytest.mark.parametrize(
    "content_type", [b"text/plain", b"TEXT/PLAIN", b"text/plain; charset=utf-8"]
)
def test_plain_text_becomes_a_json_string(content_type: bytes) -> None:
    """A shell script can publish text."""
    text = 'he said "no"\n\x00'
    properties = Properties(content_type=content_type)

    message = parse(delivery(text.encode(), properties=properties))

    assert json.loads(message.data) == text


def test_ids_without_utf8_stay_distinct() -> None:
    """An id need not be UTF-8, only the same when it is published again."""
    ids = [
        parse(delivery(properties=Properties(message_id=raw))).id
        for raw in (b"\xff", b"\xfe", b"\xff", b"")
    ]

    assert ids[0] == ids[2] != ids[1]
    assert ids[3] is None


@pytest.mark.parametrize(
    "expiration", [b"", b"-1", b"1e3", b"soon", b"\xb2", b"9" * 16]
)
def test_an_invalid_expiration_is_ignored(expiration: bytes) -> None:
    """The broker refuses these; should one arrive, it is harmless."""
    properties = Properties(expiration=expiration)

    assert parse(delivery(properties=properties)).deadline_s is None


def test_after_a_retry_the_deadline_comes_from_the_header() -> None:
    """`expiration` would start again at each retry."""
    properties = Properties(
        headers=render_table({"x-bridge-deadline": 1_700_000_001_500}),
        expiration=b"99999",
    )

    assert parse(delivery(properties=properties)).deadline_s == 1_700_000_001.5


@pytest.mark.parametrize("deadline_ms", [-1, 10**15, 2**63 - 1])
def test_a_deadline_out_of_range_is_ignored(deadline_ms: int) -> None:
    """Any producer can set the header; too large a number would not fit into a retry."""
    properties = Properties(
        headers=render_table({"x-bridge-deadline": deadline_ms}), expiration=b"1000"
    )

    assert parse(delivery(properties=properties)).deadline_s == NOW_S + 1


def test_a_message_expires_at_its_deadline() -> None:
    """Not earlier, and never without a deadline."""
    mortal = Message("a", "e", b"1", NOW_S, deadline_s=NOW_S + 1)
    immortal = Message("a", "e", b"1", NOW_S)

    assert not mortal.is_expired(ClockReading(NOW_S + 0.9))
    assert mortal.is_expired(ClockReading(NOW_S + 1))
    assert not immortal.is_expired(ClockReading(NOW_S * 100))


# --- what is not ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\xff",
        b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b"nul",
        b"{",
        b"{}{}",
        b"{'a': 1}",
        b"[1,]",
        b"NaN",
        b"[NaN]",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b'"a\nb"',
        b"[" * 10_000,
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    ],
    ids=lambda body: ascii(body[:12]),
)
def test_a_body_without_json_is_malformed(body: bytes) -> None:
    """JSON.parse would throw on it in every window of the user."""
    rejection = reject(delivery(body))

    assert rejection.reason is DeadLetterReason.MALFORMED_BODY
    assert rejection.text.startswith(f"body of {len(body)} bytes is not JSON: ")


@pytest.mark.parametrize(
    "body", [rb'{"t":"cut \ud83d"}', rb'"\udc00\ud800"', rb'{"\uDFFF":"\ud83d\ude00"}']
)
def test_a_lone_surrogate_is_delivered_as_sent(body: bytes) -> None:
    """JavaScript writes half an emoji as an escape, and `JSON.parse` reads it."""
    assert parse(delivery(body)).data == body


@pytest.mark.parametrize("content_type", [b"text/plain", b"application/json", None])
@pytest.mark.parametrize("encoding", [b"gzip", b"GZIP", b"deflate", b"br", b"zstd"])
def test_a_compressed_body_is_refused_by_name(
    content_type: bytes | None, encoding: bytes
) -> None:
    """Pages could not read it. The reason says what to change."""
    properties = Properties(content_type=content_type, content_encoding=encoding)

    for body in (b"\x1f\x8b\x08\x00", b'"text"'):
        assert reject(delivery(body, properties=properties)) == Rejection(
            DeadLetterReason.MALFORMED_BODY,
            f"content encoding {encoding.decode().lower()}: publish it uncompressed",
        )


@pytest.mark.parametrize("encoding", [b"", b"utf-8", b"UTF-8", b"identity", b"\xff"])
def test_other_content_encodings_are_ignored(encoding: bytes) -> None:
    """Kombu, for example, sets the name of the character set."""
    properties = Properties(content_encoding=encoding)

    assert parse(delivery(b"1", properties=properties)).data == b"1"


def test_plain_text_without_utf8_is_malformed() -> None:
    """The intended encoding is unknown."""
    properties = Properties(content_type=b"text/plain")

    assert reject(delivery(b"caf\xe9", properties=properties)) == Rejection(
        DeadLetterReason.MALFORMED_BODY, "text/plain body is not UTF-8 at byte 3"
    )


def test_no_reason_quotes_the_body() -> None:
    """Reasons go to headers and logs, which must not contain private data."""
    for body in (b'{"card": 4111 1111}', b'"secret', b'["secret" "secret"]'):
        text = reject(delivery(body)).text
        assert "secret" not in text
        assert "4111" not in text


def test_a_body_over_the_limit_is_rejected_before_it_is_parsed() -> None:
    """The limit protects from parsing it."""
    limit = LIMITS.body_bytes
    largest = b'"' + b"x" * (limit - 2) + b'"'

    assert parse(delivery(largest)).data == largest
    assert reject(delivery(b"x" * (limit + 1), user=b"")) == Rejection(
        DeadLetterReason.TOO_LARGE, "body has 100001 bytes, allowed are 100000"
    )


@pytest.mark.parametrize(
    ("user", "problem"),
    [
        (b"", "is empty"),
        (b"a\x00", "contains a control character"),
        (b"a\nb", "contains a control character"),
        (b"\x7f", "contains a control character"),
        ("a\u0085".encode(), "contains a control character"),
        (b"a" * 256, "has 256 bytes, allowed are 255"),
        ("é".encode() * 128, "has 256 bytes, allowed are 255"),
        (b"ok\xff", "is not UTF-8 at byte 2"),
    ],
)
def test_a_routing_key_that_is_not_a_user_is_rejected(
    user: bytes, problem: str
) -> None:
    """The key names a room and appears in logs, so it has no control characters."""
    assert reject(delivery(user=user)) == Rejection(
        DeadLetterReason.BAD_USER, f"routing key {problem}"
    )


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        (b"x" * 129, "has 129 characters, allowed are 128"),
        (b"bridge:sync", "is the reserved name 'bridge:sync'"),
        (b"bridge:", "is the reserved name 'bridge:'"),
        (b"a\tb", "contains a control character"),
        (b"ok\xff", "is not UTF-8 at byte 2"),
        *(
            (name.encode(), f"is the reserved name {name!r}")
            for name in sorted(RESERVED_EVENTS)
        ),
    ],
    ids=ascii,
)
def test_a_type_that_is_not_an_event_is_rejected(event: bytes, problem: str) -> None:
    """A reserved name would fake a connect or an ack in the page."""
    assert reject(delivery(properties=Properties(type=event))) == Rejection(
        DeadLetterReason.BAD_EVENT, f"type {problem}"
    )


@pytest.mark.parametrize(
    "event",
    ["x" * 128, "€" * 128, "Connect", "bridge", "a b", "a\u00a0b", "日本", "*"],
    ids=ascii,
)
def test_all_other_names_are_events(event: str) -> None:
    """The limit counts characters, not bytes."""
    assert event_problem(event) is None
    if len(event.encode()) <= 255:
        named = Properties(type=event.encode())
        assert parse(delivery(properties=named)).event == event


def test_an_empty_type_is_the_default_event_in_amqp_and_an_error_elsewhere() -> None:
    """Some AMQP clients always send the property; over HTTP an empty name is a mistake."""
    assert parse(delivery(properties=Properties(type=b""))).event == "message"
    assert event_problem("") == "is empty, expected an event name"
    assert parse_event(b"") == Rejection(
        DeadLetterReason.BAD_EVENT, "type is empty, expected an event name"
    )


def test_a_lone_surrogate_is_neither_user_nor_event() -> None:
    """It can come from a command line, and encoding it for the wire would raise."""
    assert user_problem("\udcff") == "is not valid Unicode"
    assert event_problem("\udcff") == "is not valid Unicode"


def test_a_delivery_provides_its_parsed_properties() -> None:
    """Retries and dead letters are built from them."""
    properties = Properties(type=b"t", message_id=b"\xff")

    assert delivery(properties=properties).properties == properties


# --- laws -------------------------------------------------------------------------------


@given(
    body=st.binary(max_size=50),
    user=st.binary(max_size=255),
    raw_properties=st.binary(max_size=100),
)
def test_any_bytes_become_a_message_or_a_rejection(
    body: bytes, user: bytes, raw_properties: bytes
) -> None:
    """An invalid delivery must never block the others."""
    found = Delivery(1, False, b"x", user, raw_properties, body, "q")  # noqa: FBT003 - a field of the wire format

    outcome = parse_delivery(found, limits=LIMITS, now_s=NOW_S)

    if isinstance(outcome, Message):
        assert outcome.user.encode() == user
        json.loads(outcome.data)


@given(raw_properties=st.binary(max_size=100))
def test_no_property_bytes_invalidate_a_message_except_a_bad_event(
    raw_properties: bytes,
) -> None:
    """Everything else in the properties is harmless."""
    found = Delivery(1, False, b"x", b"alice", raw_properties, b"[1]", "q")  # noqa: FBT003 - a field of the wire format

    outcome = parse_delivery(found, limits=LIMITS, now_s=NOW_S)

    if isinstance(outcome, Rejection):
        assert outcome.reason is DeadLetterReason.BAD_EVENT
    else:
        assert outcome.user == "alice"
        assert json.loads(outcome.data) in ([1], "[1]")


def test_text_that_exceeds_the_limit_as_json_is_too_large() -> None:
    """A control character takes six bytes in JSON; the limit applies to what a window receives."""
    text = Properties(content_type=b"text/plain")

    rejection = reject(delivery(b"\x01" * 20_000, properties=text))

    assert rejection.reason is DeadLetterReason.TOO_LARGE
    assert "120002 bytes as JSON" in rejection.text


# --- routes -----------------------------------------------------------------------------


def cc(*keys: bytes, name: bytes = b"CC") -> Properties:
    """Return properties with the header by which RabbitMQ routes to more keys."""
    items = b"".join(b"S" + len(key).to_bytes(4, "big") + key for key in keys)
    value = b"A" + len(items).to_bytes(4, "big") + items
    return Properties(headers=bytes((len(name),)) + name + value)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            delivery(exchange=b"", user=b"q"),
            "published straight into the queue q, so it names no user",
        ),
        (
            delivery(exchange=b"", user=b"jobs"),
            "published straight into the queue q, so it names no user",
        ),
        (
            delivery(exchange=b"bridge.inbound", user=b"q"),
            "the routing key is the name of the queue, not a user",
        ),
        (
            delivery(properties=cc(b"bob", b"alice", b"eve")),
            "the header CC adds 2 routing keys; publish it once for each user",
        ),
        (
            delivery(properties=cc(b"bob")),
            "the header CC adds 1 routing key; publish it once for each user",
        ),
    ],
)
def test_a_message_that_does_not_name_one_user_has_a_bad_route(
    found: Delivery, text: str
) -> None:
    """It would go to a user with the name of a queue, or to one of several users."""
    assert reject(found) == Rejection(DeadLetterReason.BAD_ROUTE, text)


@pytest.mark.parametrize(
    "properties",
    [
        cc(),
        cc(b"alice"),
        cc(b"bob", name=b"xCC"),
        Properties(headers=render_table({"CC": "bob"})),
        Properties(headers=render_table({"note": "\x02CCA"})),
    ],
)
def test_other_headers_do_not_change_the_route(properties: Properties) -> None:
    """RabbitMQ reads arrays in CC; the routing key itself adds no user."""
    assert parse(delivery(properties=properties)).user == "alice"


def test_any_exchange_may_lead_to_the_inbound_queue() -> None:
    """Operators bind their own exchanges; a retry arrives through bridge.inbound."""
    assert parse(delivery(exchange=b"events")).user == "alice"
    assert parse(delivery(exchange=b"bridge.inbound")).user == "alice"


# --- the time of an event -----------------------------------------------------------------

RULES = MessageLimits(body_bytes=100_000, undelivered_after_s={"invoice": 45.0})


def tracking_of(event: bytes, headers: bytes | None = None) -> Tracking | None:
    """Return what is wanted for a message of an event, with the rules of settings."""
    properties = Properties(type=event, headers=headers, correlation_id=b"c")
    found = parse_delivery(delivery(properties=properties), limits=RULES, now_s=NOW_S)
    assert isinstance(found, Message)
    return None if found.options is None else found.options.tracking


def test_a_message_counts_as_undelivered_after_the_time_of_its_event() -> None:
    """Whether it has headers or not; the receipt that it asks for is not affected."""
    plain = tracking_of(b"invoice")
    assert plain is not None
    assert (plain.wants_receipt, plain.undelivered_after_s) == (False, 45)
    assert plain.correlation_id == "c"

    headers = render_options(MessageOptions(tracking=Tracking(wants_receipt=True)))
    with_receipt = tracking_of(b"invoice", headers)
    assert with_receipt is not None
    assert (with_receipt.wants_receipt, with_receipt.undelivered_after_s) == (True, 45)

    keyed = tracking_of(b"invoice", render_options(MessageOptions(key="k")))
    assert keyed is not None
    assert tracking_of(b"order") is None
    assert tracking_of(b"") is None


def test_messages_with_the_same_headers_share_their_options() -> None:
    """So a message that waits for its time costs little memory; an address is its own."""
    tracking = Tracking(wants_receipt=True, undelivered_after_s=7)
    late = render_options(MessageOptions(tracking=tracking))

    def options(event: bytes, headers: bytes | None, **own: bytes) -> object:
        properties = Properties(type=event, headers=headers, **own)
        found = parse_delivery(
            delivery(properties=properties), limits=RULES, now_s=NOW_S
        )
        assert isinstance(found, Message)
        return found.options

    assert options(b"order", late) is options(b"order", late)
    assert options(b"invoice", None) is options(b"invoice", None)
    assert options(b"order", late, reply_to=b"a") != options(b"order", late)
    assert options(b"order", late) == MessageOptions(tracking=tracking)


def test_the_time_of_a_message_wins_over_that_of_its_event() -> None:
    """An ephemeral message is stored nowhere, so it has no time."""
    own = Tracking(wants_receipt=False, undelivered_after_s=7)
    found = tracking_of(b"invoice", render_options(MessageOptions(tracking=own)))
    assert found is not None
    assert found.undelivered_after_s == 7

    ephemeral = render_options(MessageOptions(is_ephemeral=True))
    assert tracking_of(b"invoice", ephemeral) is None
