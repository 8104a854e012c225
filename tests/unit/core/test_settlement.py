"""How deliveries are settled, and the properties of their copies."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.message import (
    Delivery,
    Message,
    MessageLimits,
    Rejection,
    parse_delivery,
)
from bridge.core.properties import (
    NO_PROPERTIES,
    Properties,
    header_bytes,
    header_int,
    iter_table,
    parse_properties,
    render_properties,
    render_table,
)
from bridge.core.settlement import (
    PROPERTIES_MAX_BYTES,
    DeadLetter,
    RetryAfter,
    attempt_of,
    dead_letter_properties,
    is_suspect,
    retry_properties,
    settle_trial,
    settle_unexpected,
    trial_key,
)
from bridge.enums import DeadLetterReason, Header

DELAYS_S = (1.0, 10.0, 60.0)
NOW_S = 1_700_000_000.5
LETTER = DeadLetter(Rejection(DeadLetterReason.BAD_USER, "routing key is empty"), 1)
FULL = Properties(
    content_type=b"application/json",
    content_encoding=b"utf-8",
    headers=render_table({"trace": b"\xff\x00", "count": 7}),
    delivery_mode=b"\x01",
    priority=b"\x05",
    correlation_id=b"c",
    reply_to=b"r",
    expiration=b"1000",
    message_id=b"\xff",
    timestamp=b"\xff" * 8,
    type=b"t",
    user_id=b"guest",
    app_id=b"app",
    cluster_id=b"cl",
)


def delivery(properties: Properties = NO_PROPERTIES) -> Delivery:
    return Delivery(
        tag=1,
        redelivered=False,
        exchange=b"bridge.messages",
        routing_key=b"\xffalice",
        raw_properties=render_properties(properties),
        body=b"{}",
        queue="bridge.inbound.0",
    )


def dead(
    properties: Properties,
    letter: DeadLetter = LETTER,
    *,
    max_bytes: int = PROPERTIES_MAX_BYTES,
) -> Properties:
    return dead_letter_properties(
        delivery(properties),
        letter,
        now_s=NOW_S,
        max_bytes=max_bytes,
    )


def names_of(properties: Properties) -> list[str]:
    return [name.decode() for name, _, _ in iter_table(properties.headers or b"")]


# --- the decision -----------------------------------------------------------------------


@given(st.integers(1, 20), st.lists(st.floats(0.001, 86400), min_size=1, max_size=10))
def test_there_are_as_many_retries_as_delays_and_then_a_dead_letter(
    attempt: int, delays_s: list[float]
) -> None:
    """No delay is skipped or added, and retrying always ends."""
    settlement = settle_unexpected(attempt, "boom", delays_s=delays_s)

    if attempt <= len(delays_s):
        assert settlement == RetryAfter(attempt + 1, delays_s[attempt - 1])
    else:
        text = f"attempt {attempt}: boom"
        rejection = Rejection(DeadLetterReason.ATTEMPTS_EXHAUSTED, text)
        assert settlement == DeadLetter(rejection, attempt)


def test_a_message_goes_through_all_its_attempts_and_no_more() -> None:
    """Each attempt writes the header that the next one reads."""
    current = delivery(FULL)
    waits_s: list[float] = []
    for _ in range(10):
        settlement = settle_unexpected(attempt_of(current), "boom", delays_s=DELAYS_S)
        if isinstance(settlement, DeadLetter):
            break
        waits_s.append(settlement.delay_s)
        current = delivery(retry_properties(current, settlement, deadline_s=None))

    assert waits_s == list(DELAYS_S)
    assert isinstance(settlement, DeadLetter)
    assert settlement.attempt == 4


@pytest.mark.parametrize("written", [-1, 0, 1001, 2**63 - 1, "2", b"\xff"])
def test_an_attempt_out_of_range_counts_as_the_first(
    written: str | int | bytes,
) -> None:
    """Any producer can set the header; it must not skip retries or repeat them forever."""
    forged = Properties(headers=render_table({Header.ATTEMPT: written}))

    assert attempt_of(delivery(forged)) == 1


# --- the copies -------------------------------------------------------------------------


def test_a_dead_letter_records_reason_time_and_origin() -> None:
    """Weeks later, an operator has nothing else."""
    table = dead(FULL).headers

    assert header_bytes(table, Header.REASON) == b"bad_user"
    assert header_bytes(table, Header.ERROR) == b"routing key is empty"
    assert header_int(table, Header.TIME) == 1_700_000_000
    assert header_int(table, Header.ATTEMPT) == 1
    assert header_bytes(table, Header.ORIGIN_EXCHANGE) == b"bridge.messages"
    assert header_bytes(table, Header.ORIGIN_QUEUE) == b"bridge.inbound.0"
    assert header_bytes(table, Header.ROUTING_KEY) == b"\xffalice"
    assert header_bytes(table, Header.EXPIRATION) == b"1000"
    assert header_bytes(table, Header.USER_ID) == b"guest"
    assert header_bytes(table, "trace") == b"\xff\x00"
    assert header_int(table, "count") == 7


def test_a_dead_letter_never_expires() -> None:
    """It waits for an operator without a limit of time."""
    assert dead(FULL).expiration is None
    assert Header.EXPIRATION not in names_of(dead(NO_PROPERTIES))


@pytest.mark.parametrize("is_retry", [True, False])
def test_a_copy_keeps_all_properties_but_the_three_that_the_broker_acts_on(
    is_retry: bool,
) -> None:
    """A redrive must publish body and properties as the producer did."""
    if is_retry:
        copy = retry_properties(delivery(FULL), RetryAfter(2, 1.0), deadline_s=None)
    else:
        copy = dead(FULL)

    assert copy.expiration is None
    assert copy.user_id is None
    assert copy.delivery_mode == b"\x02"
    changed = {"expiration", "user_id", "delivery_mode", "headers"}
    for field in fields(Properties):
        if field.name not in changed:
            assert getattr(copy, field.name) == getattr(FULL, field.name), field.name


def test_the_brokers_own_death_records_are_removed() -> None:
    """With them, the broker may take the copy for a cycle and drop it."""
    records: dict[str, str | int | bytes] = {
        "x-death": b"d",
        "x-delivery-count": 3,
        "x-acquired-count": 3,
        "x-first-death-queue": "q",
        "x-first-death-reason": "r",
        "x-first-death-exchange": "e",
        "x-last-death-queue": "q",
        "x-last-death-reason": "r",
        "x-last-death-exchange": "e",
    }
    died = Properties(headers=render_table(records | {"x-mine": 1, "x-deathly": 2}))

    copy = retry_properties(delivery(died), RetryAfter(2, 1.0), deadline_s=None)

    assert names_of(copy) == ["x-mine", "x-deathly", Header.ATTEMPT]


def test_a_retry_carries_the_deadline() -> None:
    """A message that expires during a retry must not be delivered."""
    original = delivery(replace(FULL, type=None))
    original.routing_key = b"alice"
    limits = MessageLimits(body_bytes=100)
    first = parse_delivery(original, limits=limits, now_s=NOW_S)
    assert isinstance(first, Message)

    copied = retry_properties(original, RetryAfter(2, 1.0), deadline_s=first.deadline_s)
    back = replace_properties(original, copied)
    second = parse_delivery(back, limits=limits, now_s=NOW_S + 60)

    assert isinstance(second, Message)
    assert second.deadline_s == first.deadline_s == NOW_S + 1


def replace_properties(original: Delivery, properties: Properties) -> Delivery:
    return replace(original, raw_properties=render_properties(properties))


def test_forged_bridge_headers_are_removed() -> None:
    """A forged reason would mislead an operator."""
    forged = Properties(
        headers=render_table({Header.REASON: "too_large", "x-bridge-new": 1})
    )

    copy = dead(forged)

    assert header_bytes(copy.headers, Header.REASON) == b"bad_user"
    assert len(set(names_of(copy))) == len(names_of(copy))
    assert "x-bridge-new" not in names_of(copy)


def test_headers_that_leave_no_room_are_dropped_and_counted() -> None:
    """The properties must fit into one frame, or the broker closes the connection."""
    table = render_table({"large": b"x" * 130_980})
    fits = Properties(headers=render_table({"large": b"x" * 1000}))
    oversized = Properties(headers=table, message_id=b"m")

    copy = dead(oversized)

    assert Header.HEADERS_DROPPED not in names_of(dead(fits))
    assert header_int(copy.headers, Header.HEADERS_DROPPED) == len(table)
    assert "large" not in names_of(copy)
    assert header_bytes(copy.headers, Header.REASON) == b"bad_user"
    assert copy.message_id == b"m"


def test_a_dead_letter_fits_into_the_smallest_frame_that_a_broker_may_ask_for() -> None:
    """If it could not be written, it would block all newer deliveries."""
    longest = b"x" * 255
    original = Properties(
        **dict.fromkeys(
            (
                "content_type", "content_encoding", "correlation_id", "reply_to",
                "expiration", "message_id", "type", "user_id", "app_id", "cluster_id",
            ),
            longest,
        ),
        headers=render_table({"theirs": b"x" * 5000}),
    )  # fmt: skip
    wordy = DeadLetter(Rejection(DeadLetterReason.BAD_USER, "€" * 5000), 1)
    delivered = replace(
        delivery(original), routing_key=longest, exchange=longest, queue="q" * 255
    )

    copy = dead_letter_properties(delivered, wordy, now_s=NOW_S, max_bytes=4096 - 20)

    assert len(render_properties(copy)) <= 4096 - 20
    assert (copy.message_id, copy.type) == (longest, longest)
    assert header_bytes(copy.headers, Header.REASON) == b"bad_user"
    assert header_bytes(copy.headers, Header.ERROR) == "€".encode() * 200


def test_a_long_error_text_is_cut() -> None:
    """Some libraries quote their whole input."""
    long = DeadLetter(Rejection(DeadLetterReason.BAD_USER, "é" * 100_000), 1)

    assert header_bytes(dead(FULL, long).headers, Header.ERROR) == "é".encode() * 1000


@given(
    st.binary(max_size=400),
    st.text(max_size=50),
    st.floats(0, 10**12) | st.none(),
    st.integers(2, 1001),
)
def test_a_copy_of_any_bytes_can_be_written_and_read(
    raw: bytes, text: str, deadline_s: float | None, attempt: int
) -> None:
    """Dead-lettering must never fail: every other failure ends in it."""
    found = replace(delivery(), raw_properties=raw)
    letter = DeadLetter(Rejection(DeadLetterReason.BAD_EVENT, text), attempt)

    copies = [
        dead_letter_properties(found, letter, now_s=NOW_S),
        retry_properties(found, RetryAfter(attempt, 1.0), deadline_s=deadline_s),
    ]

    for copy in copies:
        rendered = render_properties(copy)
        assert len(rendered) <= PROPERTIES_MAX_BYTES
        assert parse_properties(rendered) == copy
        assert header_int(copy.headers, Header.ATTEMPT) == attempt


def redelivered(
    count: int | None, *, flag: bool = True, body: bytes = b"1"
) -> Delivery:
    table = {} if count is None else {"x-delivery-count": count}
    again = delivery(Properties(headers=render_table(table)))
    again.redelivered = flag
    again.body = body
    return again


@pytest.mark.parametrize(
    ("count", "flag", "suspicious"),
    [
        (None, True, False),
        (1, True, False),
        (2, True, True),
        (9, True, True),
        (9, False, False),
    ],
)
def test_only_a_message_returned_twice_is_a_suspect(
    count: int | None, flag: bool, suspicious: bool
) -> None:
    """Any producer can set the header; only the broker sets the flag."""
    assert is_suspect(redelivered(count, flag=flag)) is suspicious


def test_all_deliveries_of_a_message_have_the_same_trial_key() -> None:
    """The broker changes the count in the headers, not the message."""
    assert trial_key(redelivered(2)) == trial_key(redelivered(3))
    assert trial_key(redelivered(2)) != trial_key(redelivered(2, body=b"2"))


def test_a_suspect_has_two_trials_and_is_then_dead_lettered() -> None:
    """The first crash may be a kill by an operator; without a limit it would be a loop."""
    assert [settle_trial(trial) for trial in (1, 2, 3, 9)] == [
        None,
        None,
        DeadLetterReason.CRASHED,
        DeadLetterReason.CRASHED,
    ]


def test_a_forged_deadline_does_not_prevent_a_dead_letter() -> None:
    """An unsigned 64-bit integer does not fit into the signed header of the bridge."""
    forged = b"\x11x-bridge-deadlineL" + b"\xff" * 8
    letter = DeadLetter(Rejection(DeadLetterReason.BAD_EVENT, "x"), 1)

    copy = dead_letter_properties(
        delivery(Properties(headers=forged)), letter, now_s=NOW_S
    )

    assert header_int(copy.headers, Header.DEADLINE) is None
