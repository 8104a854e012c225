"""The description of a dead letter, its id, and what a redrive publishes."""

import pytest

from bridge.core.contracts.operator.dead_letters import (
    DeadLetterFilter,
    DeadLetterSelection,
)
from bridge.core.dead_letter import (
    DeadLetterReader,
    original_expiration,
    redriven_id,
    routing_key_of,
)
from bridge.core.message import (
    Delivery,
    Message,
    MessageLimits,
    Rejection,
    parse_delivery,
)
from bridge.core.properties import (
    Properties,
    header_bytes,
    header_int,
    parse_properties,
    render_properties,
    render_table,
)
from bridge.core.settlement import (
    DeadLetter,
    RetryAfter,
    dead_letter_properties,
    redrive_properties,
    retry_properties,
)
from bridge.enums import DeadLetterReason, Header


def delivery(
    properties: Properties, *, body: bytes = b"1", key: bytes = b"ann"
) -> Delivery:
    raw = render_properties(properties)
    return Delivery(
        1,
        redelivered=False,
        exchange=b"x.dead",
        routing_key=key,
        raw_properties=raw,
        body=body,
        queue="x.inbound.0",
    )


def bridge_dead_letter(
    original: Properties, *, letter_id: str | None = "a1"
) -> Delivery:
    """Return a message that the bridge has dead-lettered."""
    rejection = Rejection(DeadLetterReason.CRASHED, "died twice")
    written = dead_letter_properties(
        delivery(original), DeadLetter(rejection, 3),
        now_s=1700.5, letter_id=letter_id,
    )  # fmt: skip
    return delivery(written)


def broker_dead_letter(
    reason: bytes = b"expired", *, time: bytes = b"", queue: str = "x.inbound.0"
) -> Delivery:
    """Return a message that RabbitMQ has dead-lettered."""
    death = render_table(
        {
            "reason": reason,
            "queue": queue,
            "exchange": "x.messages",
            "original-expiration": "60000",
        }
    ) + (b"\x04time" + (time or b"T" + (1700).to_bytes(8, "big")))
    table = b"F" + len(death).to_bytes(4, "big") + death
    array = b"A" + len(table).to_bytes(4, "big") + table
    return delivery(Properties(headers=b"\x07x-death" + array, type=b"note"))


def test_a_dead_letter_of_the_bridge_is_described_by_its_headers() -> None:
    """The bridge writes reason, error, time, attempts and origin."""
    stored = DeadLetterReader().read(bridge_dead_letter(Properties(message_id=b"m-1")))

    assert (stored.reason, stored.error) == (
        DeadLetterReason.CRASHED,
        "died twice",
    )
    assert (stored.user, stored.event, stored.message_id) == (
        "ann",
        "message",
        "m-1",
    )
    assert (stored.origin_exchange, stored.origin_queue) == (
        "x.dead",
        "x.inbound.0",
    )
    assert (stored.dead_s, stored.attempts, stored.redrives) == (
        1700.0,
        3,
        0,
    )


def test_a_dead_letter_of_rabbitmq_has_the_reason_expired() -> None:
    """RabbitMQ writes x-death instead of the bridge's headers."""
    stored = DeadLetterReader().read(broker_dead_letter())

    assert stored.reason is DeadLetterReason.EXPIRED
    assert stored.error == "RabbitMQ: expired in queue x.inbound.0"
    assert (stored.event, stored.dead_s, stored.attempts) == (
        "note",
        1700.0,
        0,
    )
    assert (stored.origin_exchange, stored.origin_queue) == (
        "x.messages",
        "x.inbound.0",
    )


def test_a_message_without_a_queue_has_the_reason_unrouted() -> None:
    """It passed the queue of such messages, where it expired at once."""
    stored = DeadLetterReader().read(broker_dead_letter(queue="x.unrouted"))

    assert stored.reason is DeadLetterReason.UNROUTED
    assert stored.error == "published to x.messages while no queue was bound"


@pytest.mark.parametrize(
    "unknown",
    [
        delivery(Properties()),
        delivery(Properties(headers=render_table({Header.REASON: "rain"}))),
        delivery(
            Properties(headers=render_table({Header.TIME: -5, Header.ATTEMPT: -1}))
        ),
        delivery(Properties(headers=render_table({Header.TIME: 10**15}))),
        delivery(Properties(headers=render_table({Header.REDRIVES: -7}))),
        delivery(Properties(headers=b"\x07x-deathA\x00\x00\x00\x02t\x01")),
        delivery(Properties(headers=b"\x07x-deatht\x01")),
        broker_dead_letter(b"maxlen", time=b"t\x01"),
    ],
)
def test_any_other_message_has_the_reason_other(unknown: Delivery) -> None:
    """Any producer can publish to the exchange of dead letters."""
    stored = DeadLetterReader().read(unknown)

    assert stored.reason is DeadLetterReason.OTHER
    assert stored.reason.explanation
    assert (stored.dead_s, stored.attempts, stored.redrives) == (
        None,
        0,
        0,
    )


def test_delivery_counts_do_not_change_the_id() -> None:
    """RabbitMQ adds its counter and sorts the header table when it does."""
    headers = {"b": "1", "a": "2"}
    first = delivery(Properties(headers=render_table(headers)))
    again = delivery(
        Properties(headers=render_table({"a": "2", "b": "1", "x-delivery-count": 7}))
    )
    other = delivery(Properties(headers=render_table({"a": "2", "b": "2"})))

    ids = [DeadLetterReader().read(one).id for one in (first, again, other)]

    assert ids[0] == ids[1] != ids[2]


def test_identical_messages_keep_their_ids_when_one_is_removed() -> None:
    """An id that was handed out before must still select the same message."""
    reader = DeadLetterReader()
    ids = [reader.read(delivery(Properties())).id for _ in range(4)]

    left = DeadLetterReader({ids[0], ids[2]})

    assert ids[1:] == [f"{ids[0]}-{number}" for number in (2, 3, 4)]
    assert [left.read(delivery(Properties())).id for _ in range(2)] == [ids[1], ids[3]]
    assert left.count == 2


def test_a_filter_matches_only_if_all_its_fields_do() -> None:
    """A dead letter without a time is outside of every interval."""
    stored = DeadLetterReader().read(bridge_dead_letter(Properties()))
    timeless = DeadLetterReader().read(delivery(Properties()))

    for wanted in (
        DeadLetterFilter(),
        DeadLetterFilter(reason="crashed", user="ann", event="message"),
        DeadLetterFilter(since=1700, until=1701),
    ):
        assert wanted.matches(stored)
    for unwanted in (
        DeadLetterFilter(reason="expired"),
        DeadLetterFilter(user="tom"),
        DeadLetterFilter(event="note"),
        DeadLetterFilter(since=1701),
        DeadLetterFilter(until=1700),
    ):
        assert not unwanted.matches(stored)
    assert not DeadLetterFilter(since=0).matches(timeless)


def test_a_selection_names_ids_a_filter_or_all() -> None:
    """Operators select dead letters in one of three ways."""
    stored = DeadLetterReader().read(bridge_dead_letter(Properties()))

    assert DeadLetterSelection(ids=[stored.id]).matcher()(stored)
    assert not DeadLetterSelection(ids=["0" * 24]).matcher()(stored)
    assert DeadLetterSelection(filter=DeadLetterFilter(user="ann")).matcher()(stored)
    assert not DeadLetterSelection(filter=DeadLetterFilter(user="tom")).matcher()(
        stored
    )
    assert DeadLetterSelection(all=True).matcher()(stored)


def test_a_redrive_restores_the_properties_and_counts() -> None:
    """The message is published as the producer wrote it, plus the bridge's own counters."""
    original = Properties(
        message_id=b"m", expiration=b"60000", user_id=b"shop",
        headers=render_table({"x-mine": "kept"}),
    )  # fmt: skip
    dead_letter = bridge_dead_letter(original)
    repeat_id = redriven_id(dead_letter, "d1")
    assert repeat_id == "a1.1.d1"

    sent = redrive_properties(
        dead_letter,
        redriven_id=repeat_id,
        expiration=original_expiration(dead_letter.properties),
    )

    assert (sent.message_id, sent.expiration, sent.user_id) == (b"m", b"60000", None)
    assert routing_key_of(dead_letter) == b"ann"
    assert header_bytes(sent.headers, "x-mine") == b"kept"
    assert header_bytes(sent.headers, Header.USER_ID) == b"shop"
    assert header_bytes(sent.headers, Header.REDRIVEN_ID) == b"a1.1.d1"
    assert header_int(sent.headers, Header.REDRIVES) == 1
    assert header_bytes(sent.headers, Header.REASON) is None
    assert header_int(sent.headers, Header.DEADLINE) is None


def test_retries_and_dead_letters_keep_the_count_of_redrives() -> None:
    """Operators recognize a message that fails after every redrive."""
    dead_letter = bridge_dead_letter(Properties())
    sent = delivery(
        redrive_properties(dead_letter, redriven_id="a1.1", expiration=None)
    )
    retried = delivery(retry_properties(sent, RetryAfter(2, 1.0), deadline_s=None))

    again = bridge_dead_letter(parse_properties(retried.raw_properties), letter_id="b2")

    assert DeadLetterReader().read(again).redrives == 1
    assert redriven_id(again, "d1") == "b2.2.d1"


def test_a_message_without_an_id_gets_the_id_of_its_redrive() -> None:
    """The inbox recognizes a redrive that is repeated after a crash as a duplicate."""
    dead_letter = bridge_dead_letter(Properties(), letter_id="c3")
    limits = MessageLimits(100)
    ids = []
    for original in (None, b"m"):
        sent = redrive_properties(dead_letter, redriven_id="c3.1", expiration=None)
        if original:
            sent = Properties(headers=sent.headers, message_id=original)
        message = parse_delivery(delivery(sent), limits=limits, now_s=0)
        assert isinstance(message, Message)
        ids.append(message.id)

    assert ids == ["redriven:c3.1", "m"]


@pytest.mark.parametrize("letter_id", [None, "", "x" * 65, "a b"])
def test_a_dead_letter_without_an_id_of_its_own_has_no_redrive_id(
    letter_id: str | None,
) -> None:
    """Identical messages that RabbitMQ dead-lettered are separate messages."""
    dead_letter = bridge_dead_letter(Properties(), letter_id=letter_id)

    assert redriven_id(dead_letter, "d1") is None


def test_dead_letters_with_one_forged_id_have_different_redrive_ids() -> None:
    """The inbox would drop all but the first as duplicates."""
    forged = Properties(headers=render_table({Header.DEAD_LETTER_ID: "a1"}))
    dead_letters = [delivery(forged, body=body) for body in (b"1", b"2", b"2")]
    reader = DeadLetterReader()
    ids = [redriven_id(each, reader.read(each).id) for each in dead_letters]
    again = DeadLetterReader().read(dead_letters[1])

    assert ids[0] != ids[1]
    assert ids[1] == redriven_id(dead_letters[1], again.id)  # at a repetition
    assert ids[2] is None  # identical: nothing tells it from the one before


def test_the_original_expiration_is_read_from_x_death() -> None:
    """RabbitMQ removes the property and records it in x-death."""
    assert original_expiration(Properties()) is None
    invalid = Properties(headers=render_table({Header.EXPIRATION: "soon"}))
    assert original_expiration(invalid) is None
