"""What a dead letter says of itself, and which one it is."""

import pytest

from bridge.core.contracts.operator.dead_letters import DeadLetterFilter
from bridge.core.dead_letter import (
    Letters,
    note_gone,
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
from bridge.enums import DeadLetterCause, DeadLetterReason, Header


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


def bridges_letter(original: Properties, *, letter_id: str | None = "a1") -> Delivery:
    """A message as the bridge sets it aside."""
    rejection = Rejection(DeadLetterReason.CRASHED, "died twice")
    written = dead_letter_properties(
        delivery(original), DeadLetter(rejection, 3),
        now_s=1700.5, letter_id=letter_id,
    )  # fmt: skip
    return delivery(written)


def brokers_letter(reason: bytes = b"expired", *, time: bytes = b"") -> Delivery:
    """A message as RabbitMQ sets it aside."""
    death = render_table(
        {
            "reason": reason,
            "queue": "x.inbound.0",
            "exchange": "x.messages",
            "original-expiration": "60000",
        }
    ) + (b"\x04time" + (time or b"T" + (1700).to_bytes(8, "big")))
    table = b"F" + len(death).to_bytes(4, "big") + death
    array = b"A" + len(table).to_bytes(4, "big") + table
    return delivery(Properties(headers=b"\x07x-death" + array, type=b"note"))


def test_a_letter_of_the_bridge_tells_why_and_whence() -> None:
    """Its own headers say all."""
    letter = Letters().read(bridges_letter(Properties(message_id=b"m-1")))

    assert (letter.reason, letter.error) == (DeadLetterCause.CRASHED, "died twice")
    assert (letter.user, letter.event, letter.message_id) == ("ann", "message", "m-1")
    assert (letter.origin_exchange, letter.origin_queue) == ("x.dead", "x.inbound.0")
    assert (letter.dead_s, letter.attempts, letter.redrives) == (1700.0, 3, 0)


def test_a_letter_of_the_broker_is_explained_as_expired() -> None:
    """It has x-death in place of ours."""
    letter = Letters().read(brokers_letter())

    assert letter.reason is DeadLetterCause.EXPIRED
    assert letter.error == "RabbitMQ: expired in queue x.inbound.0"
    assert (letter.event, letter.dead_s, letter.attempts) == ("note", 1700.0, 0)
    assert (letter.origin_exchange, letter.origin_queue) == (
        "x.messages",
        "x.inbound.0",
    )


@pytest.mark.parametrize(
    "strange",
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
        brokers_letter(b"maxlen", time=b"t\x01"),
    ],
)
def test_whatever_else_lies_there_is_other(strange: Delivery) -> None:
    """Anybody can publish to the exchange of dead letters."""
    letter = Letters().read(strange)

    assert letter.reason is DeadLetterCause.OTHER
    assert letter.reason.explanation
    assert (letter.dead_s, letter.attempts, letter.redrives) == (None, 0, 0)


def test_the_id_is_the_same_however_often_the_broker_counted() -> None:
    """RabbitMQ adds its count, and sorts the table when it does."""
    headers = {"b": "1", "a": "2"}
    first = delivery(Properties(headers=render_table(headers)))
    again = delivery(
        Properties(headers=render_table({"a": "2", "b": "1", "x-delivery-count": 7}))
    )
    other = delivery(Properties(headers=render_table({"a": "2", "b": "2"})))

    ids = [Letters().read(one).id for one in (first, again, other)]

    assert ids[0] == ids[1] != ids[2]


def test_twins_have_numbers_and_keep_them_when_one_is_gone() -> None:
    """Ids were given out before; what is left must still be what was meant."""
    letters = Letters()
    ids = [letters.read(delivery(Properties())).id for _ in range(4)]
    gone: dict[str, set[int]] = {}
    note_gone(gone, ids[0])
    note_gone(gone, ids[2])

    left = Letters(gone)

    assert ids[1:] == [f"{ids[0]}-{number}" for number in (2, 3, 4)]
    assert [left.read(delivery(Properties())).id for _ in range(2)] == [ids[1], ids[3]]
    assert left.count == 2


def test_a_filter_wants_all_that_it_names() -> None:
    """A letter without a time is in no time at all."""
    letter = Letters().read(bridges_letter(Properties()))
    timeless = Letters().read(delivery(Properties()))

    for wanted in (
        DeadLetterFilter(),
        DeadLetterFilter(reason=DeadLetterCause.CRASHED, user="ann", event="message"),
        DeadLetterFilter(since=1700, until=1701),
    ):
        assert wanted.matches(letter)
    for unwanted in (
        DeadLetterFilter(reason=DeadLetterCause.EXPIRED),
        DeadLetterFilter(user="tom"),
        DeadLetterFilter(event="note"),
        DeadLetterFilter(since=1701),
        DeadLetterFilter(until=1700),
    ):
        assert not unwanted.matches(letter)
    assert not DeadLetterFilter(since=0).matches(timeless)


def test_a_redrive_takes_off_what_was_written_and_counts() -> None:
    """The message goes back as it was published, and carries what it went through."""
    original = Properties(
        message_id=b"m", expiration=b"60000", user_id=b"shop",
        headers=render_table({"x-mine": "kept"}),
    )  # fmt: skip
    letter = bridges_letter(original)
    mark = redriven_id(letter)
    assert mark is not None

    sent = redrive_properties(
        letter, redriven_id=mark, expiration=original_expiration(letter.properties)
    )

    assert (sent.message_id, sent.expiration, sent.user_id) == (b"m", b"60000", None)
    assert routing_key_of(letter) == b"ann"
    assert header_bytes(sent.headers, "x-mine") == b"kept"
    assert header_bytes(sent.headers, Header.USER_ID) == b"shop"
    assert header_bytes(sent.headers, Header.REDRIVEN_ID) == b"a1.1"
    assert header_int(sent.headers, Header.REDRIVES) == 1
    assert header_bytes(sent.headers, Header.REASON) is None
    assert header_int(sent.headers, Header.DEADLINE) is None


def test_the_count_of_redrives_goes_along_through_retries_and_dead_letters() -> None:
    """Or nobody would see that a message goes round in circles."""
    letter = bridges_letter(Properties())
    sent = delivery(redrive_properties(letter, redriven_id="a1.1", expiration=None))
    retried = delivery(retry_properties(sent, RetryAfter(2, 1.0), deadline_s=None))

    again = bridges_letter(parse_properties(retried.raw_properties), letter_id="b2")

    assert Letters().read(again).redrives == 1
    assert redriven_id(again) == "b2.2"


def test_a_message_without_an_id_is_known_by_its_redrive() -> None:
    """A redrive that is repeated after a crash is a duplicate for the inbox."""
    letter = bridges_letter(Properties(), letter_id="c3")
    limits = MessageLimits(100)
    ids = []
    for original in (None, b"m"):
        sent = redrive_properties(letter, redriven_id="c3.1", expiration=None)
        if original:
            sent = Properties(headers=sent.headers, message_id=original)
        message = parse_delivery(delivery(sent), limits=limits, now_s=0)
        assert isinstance(message, Message)
        ids.append(message.id)

    assert ids == ["redriven:c3.1", "m"]


@pytest.mark.parametrize("letter_id", [None, "", "x" * 65, "a b"])
def test_a_letter_without_a_name_of_its_own_is_no_repeat_of_another(
    letter_id: str | None,
) -> None:
    """Twins of the broker: the second one is a message of its own."""
    assert redriven_id(bridges_letter(Properties(), letter_id=letter_id)) is None


def test_the_time_to_live_of_a_letter_of_the_broker_is_known_too() -> None:
    """It has taken the property off, and wrote down what it was."""
    assert original_expiration(brokers_letter().properties) == b"60000"
    assert original_expiration(Properties()) is None
    strange = Properties(headers=render_table({Header.EXPIRATION: "soon"}))
    assert original_expiration(strange) is None
