"""The pipeline and tracked messages that never reach an inbox: a worker is told of them too."""

import asyncio

import orjson
import pytest

from bridge.core.message import Delivery
from bridge.core.properties import Properties, render_table
from bridge.enums import DeadLetterReason
from bridge.errors import BrokerUnavailableError, StoreUnavailableError
from tests.conftest import eventually
from tests.unit.pipeline_fakes import Harness, batch_of, delivery

RECEIPT = {"x-bridge-receipt": "true"}


def tracked(
    tag: int, body: bytes = b"1", *, expiration: bytes | None = None, **headers: str
) -> Delivery:
    """Return a delivery that asks for a receipt."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    properties = Properties(
        headers=render_table(RECEIPT | names),
        correlation_id=b"c1",
        expiration=expiration,
        reply_to=b"answers",
        message_id=b"m1",
        type=b"job.done",
    )
    return delivery(tag, body, properties=properties)


async def test_a_dead_letter_is_told_after_its_confirm_and_before_its_ack(
    harness: Harness,
) -> None:
    """A crash between two of these steps repeats them, under the same id."""
    await harness.settle([tracked(1, b"{")])
    await harness.settle([tracked(2, b"{")])

    assert harness.effects == [
        *("ack 1", "dead 1", "event message.dead", "ack held 1"),
        *("ack 2", "dead 2", "event message.dead", "ack held 2"),
    ]
    event, repeated = harness.inbox.events
    assert event == repeated
    assert (event.reply_to, event.correlation_id) == ("answers", "c1")
    assert orjson.loads(event.body) == {
        "message_id": "m1",
        "user": "ann",
        "event": "job.done",
        "outcome": "dead",
        "at": "1970-01-01T00:16:40+00:00",
        "delay_ms": 0,
        "reason": "malformed_body",
    }


async def test_a_dead_letter_that_is_not_confirmed_is_not_told(
    harness: Harness,
) -> None:
    """It is told once it is a dead letter."""
    harness.publisher.failures = [BrokerUnavailableError("publish", "gone")]

    await harness.settle([tracked(1, b"{")])

    assert harness.effects == ["ack 1", "dead 1", "event message.dead", "ack held 1"]


async def test_a_store_that_is_away_delays_the_ack(harness: Harness) -> None:
    """The dead letter is not published again meanwhile."""
    harness.inbox.failures = [StoreUnavailableError("memory:", "full")]

    await harness.settle([tracked(1, b"{")])

    assert harness.effects == ["ack 1", "dead 1", "event message.dead", "ack held 1"]


async def test_other_dead_letters_are_not_told(harness: Harness) -> None:
    """Their producers did not ask."""
    await harness.settle([delivery(1, b"{")])

    assert harness.inbox.events == []


async def test_a_message_that_expired_before_it_could_be_stored(
    harness: Harness,
) -> None:
    """Its outcome is final, and it will not be delivered in time either."""
    message = tracked(1, b"17", expiration=b"0", **{"x-bridge-undelivered-after": "1m"})

    await harness.settle([message])

    assert harness.effects == [
        *("event message.undelivered", "event message.expired", "ack 1"),
    ]
    late, expired = harness.inbox.events
    assert orjson.loads(late.body)["data"] == 17
    assert (late.reply_to, expired.reply_to) == (None, "answers")


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({"x-bridge-receipt": "yes"}, "x-bridge-receipt is not true or false"),
        (
            {"x-bridge-undelivered-after": "soon"},
            "x-bridge-undelivered-after is not a duration such as 45s",
        ),
        (
            {"x-bridge-undelivered-after": "-1s"},
            "x-bridge-undelivered-after is not a duration such as 45s",
        ),
    ],
)
async def test_a_bad_value_is_a_dead_letter_that_names_the_header(
    harness: Harness, headers: dict[str, str], problem: str
) -> None:
    """A producer that asks for something must not get something else."""
    properties = Properties(headers=render_table(headers))

    await harness.settle([delivery(1, properties=properties)])

    (letter,) = harness.publisher.dead
    assert letter.rejection.reason is DeadLetterReason.BAD_HEADER
    assert letter.rejection.text == problem


async def test_tracked_messages_wait_for_room_for_their_events(
    harness: Harness,
) -> None:
    """Others do not; the broker keeps what waits."""
    harness.events_problem = "100,000 events wait"
    await harness.pipeline.settle(batch_of([delivery(1, b"1")]))
    assert harness.effects == ["store 1", "ack 1"]
    async with asyncio.TaskGroup() as tasks:
        settling = tasks.create_task(harness.pipeline.settle(batch_of([tracked(2)])))
        await eventually(lambda: harness.pipeline.is_waiting)
        assert "100,000 events wait" in str(harness.pipeline.problem)
        harness.events_problem = None
        await settling

    assert harness.effects == ["store 1", "ack 1", "store 1", "ack 2"]


@pytest.mark.parametrize("waiting", [b"{", b"17"])
async def test_what_is_never_stored_waits_for_room_for_its_event_too(
    harness: Harness, waiting: bytes
) -> None:
    """A producer of invalid or expired messages must not fill the store with events."""
    message = tracked(1, waiting, expiration=b"0")
    harness.events_problem = "100,000 events wait"
    async with asyncio.TaskGroup() as tasks:
        settling = tasks.create_task(harness.settle([message]))
        await eventually(lambda: harness.pipeline.is_waiting)
        assert "100,000 events wait" in str(harness.pipeline.problem)
        assert harness.inbox.events == []
        harness.events_problem = None
        await settling

    assert len(harness.inbox.events) == 1


async def test_events_of_expired_messages_are_added_together(harness: Harness) -> None:
    """Each may wait for the disk, and a batch may hold hundreds."""
    batch = [tracked(tag, b"17", expiration=b"0") for tag in range(1, 4)]

    await harness.settle(batch)

    assert harness.inbox.added_together == 3
    assert len(harness.inbox.events) == 3
