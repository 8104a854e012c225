"""The pipeline, with fakes: what is stored, dead-lettered, retried, and when it is acked."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs
from tenacity import RetryCallState

import bridge.pipeline
from bridge.core.message import (
    Delivery,
    Message,
    MessageLimits,
    Rejection,
    parse_delivery,
)
from bridge.core.properties import Properties, render_table
from bridge.core.settlement import RetryAfter
from bridge.enums import DeadLetterReason, Header, OptionHeader, Stage
from bridge.errors import (
    BrokerUnavailableError,
    PublishRefusedError,
    StoreUnavailableError,
)
from bridge.pipeline import Pipeline
from tests.conftest import eventually
from tests.unit.pipeline_fakes import Harness, batch_of, delivery


async def test_a_batch_is_acked_once_and_only_after_all_of_it_is_stored(
    harness: Harness,
) -> None:
    """Append, then ack: a crash in between repeats work and loses nothing."""
    await harness.pipeline.settle(batch_of([delivery(1, b"1"), delivery(2, b"2")]))

    assert harness.effects == ["store 1", "store 2", "ack 2"]
    assert harness.settled("stored") == 2


async def test_a_dead_letter_is_published_before_its_delivery_is_acked(
    harness: Harness,
) -> None:
    """If it was acked first, a crash would lose it. The others do not wait for it."""
    await harness.settle([delivery(1, b"1"), delivery(2, b"{"), delivery(3, b"3")])

    assert harness.effects == ["store 1", "store 3", "ack 3", "dead 2", "ack held 2"]
    assert harness.publisher.dead[0].rejection.reason is DeadLetterReason.MALFORMED_BODY
    assert harness.settled("dead_letter", "malformed_body") == 1


async def test_an_end_marker_is_acked_with_its_batch_and_not_dead_lettered(
    harness: Harness,
) -> None:
    """It tells the session that nothing older is left in the queue."""
    marker = delivery(2, b"{}", properties=Properties(type=b"bridge:mark"))
    marker.exchange = b"marker"

    batch = batch_of([delivery(1), marker])

    await harness.pipeline.settle(batch)

    assert batch.ended_queues == ["q"]
    assert harness.effects == ["store 1", "ack 2"]


async def test_the_pipeline_waits_for_a_store_that_is_away_and_acks_nothing(
    harness: Harness,
) -> None:
    """A transient fault never loses a message and lets no other overtake it."""
    harness.inbox.failures = [StoreUnavailableError("memory:", "full")] * 2

    await harness.pipeline.settle(batch_of([delivery(1)]))

    assert harness.effects == ["store 1", "ack 1"]
    assert not harness.pipeline.is_waiting


async def test_while_it_waits_the_pipeline_reports_it(harness: Harness) -> None:
    """Readiness depends on it."""
    harness.inbox.failures = [StoreUnavailableError("memory:", "full")] * 1000
    async with asyncio.TaskGroup() as tasks:
        settling = tasks.create_task(harness.pipeline.settle(batch_of([delivery(1)])))
        await eventually(lambda: harness.pipeline.is_waiting)
        harness.inbox.failures.clear()
        await settling

    assert harness.effects == ["store 1", "ack 1"]


@pytest.mark.parametrize(
    "failure",
    [
        BrokerUnavailableError("publish to bridge.dead", "gone"),
        PublishRefusedError("bridge.dead", "returned by the broker (312 NO_ROUTE)"),
    ],
)
async def test_a_dead_letter_that_cannot_be_published_is_published_later(
    harness: Harness, failure: Exception
) -> None:
    """While the dead-letter queue is deleted, no dead letter is lost."""
    harness.publisher.failures = [failure]

    await harness.settle([delivery(1, b"{")])

    assert harness.effects == ["ack 1", "dead 1", "ack held 1"]


async def test_a_batch_whose_session_ends_while_waiting_is_dropped(
    harness: Harness,
) -> None:
    """The broker redelivers it; stored now, it would be stored twice."""
    harness.inbox.failures = [StoreUnavailableError("memory:", "full")] * 3
    harness.intake.is_alive = False

    await harness.pipeline.settle(batch_of([delivery(1)]))

    assert harness.effects == []
    assert harness.settled("stale") == 1


async def test_a_batch_that_the_store_refuses_is_split_down_to_the_message_at_fault(
    harness: Harness,
) -> None:
    """One bad message does not affect its neighbors, whose order is kept."""
    harness.inbox.poison = b"5"

    await harness.settle([delivery(n, str(n).encode()) for n in range(1, 10)])

    stored = [message.data for message in harness.inbox.stored]
    assert stored == [b"1", b"2", b"3", b"4", b"6", b"7", b"8", b"9"]
    assert harness.publisher.retried == [(RetryAfter(attempt=2, delay_s=1.0), None)]
    assert harness.effects[-3:] == ["ack 9", "retry 5", "ack held 5"]


async def test_a_failed_last_attempt_becomes_a_dead_letter_with_its_error(
    harness: Harness,
) -> None:
    """The dead letter tells an operator why the message failed."""
    harness.inbox.poison = b"1"
    attempted = Properties(headers=render_table({Header.ATTEMPT: 3}))

    await harness.settle([delivery(1, properties=attempted)])

    (letter,) = harness.publisher.dead
    assert letter.rejection.reason is DeadLetterReason.ATTEMPTS_EXHAUSTED
    assert letter.rejection.text == (
        "attempt 3: ZeroDivisionError: the store does not like it"
    )
    assert harness.effects == ["ack 1", "dead 1", "ack held 1"]


async def test_a_retry_carries_the_deadline_of_its_message(harness: Harness) -> None:
    """With `expiration` the broker would drop the copy in the retry queue."""
    harness.inbox.poison = b"1"

    await harness.settle([delivery(1, properties=Properties(expiration=b"60000"))])

    assert harness.publisher.retried == [(RetryAfter(attempt=2, delay_s=1.0), 1060.0)]


async def test_a_retry_past_its_deadline_is_counted_and_not_stored(
    harness: Harness,
) -> None:
    """An expired message is accounted for."""
    late = Properties(headers=render_table({Header.DEADLINE: 999_999}))

    await harness.pipeline.settle(batch_of([delivery(1, properties=late)]))

    assert harness.effects == ["ack 1"]
    assert harness.settled("expired") == 1


async def test_a_jump_of_the_clock_expires_no_retry(harness: Harness) -> None:
    """The deadline that a retry carries is of the time before the jump."""
    carried = render_table({Header.DEADLINE: 1_060_000})
    harness.wall_s += 8 * 86_400

    await harness.pipeline.settle(
        batch_of([delivery(1, properties=Properties(headers=carried))])
    )

    assert harness.settled("stored") == 1
    assert harness.settled("expired") == 0


async def test_the_journal_records_the_outcome_of_each_message(
    harness: Harness,
) -> None:
    """`bridge trace` finds them by id, including messages that reach no inbox."""

    def identified(message_id: bytes, **more: Any) -> Delivery:
        return delivery(1, properties=Properties(message_id=message_id, **more))

    late = render_table({Header.DEADLINE: 999_999})
    await harness.pipeline.settle(
        batch_of(
            [
                identified(b"good"),
                identified(b"late", headers=late),
                identified(b"\xff"),
            ]
        )
    )
    harness.inbox.poison = b"1"
    await harness.settle([identified(b"bad")])

    (user,) = harness.journal.users_of("good")
    found = {
        message_id: [each.stage for each in harness.journal.of(user, message_id)]
        for message_id in ("good", "late", "\\xff", "bad")
    }
    assert found == {
        "good": [Stage.STORED],
        "late": [Stage.EXPIRED],
        "\\xff": [Stage.STORED],
        "bad": [Stage.RETRIED],
    }


async def test_duplicates_are_acked_and_counted(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publishing a message again with the same id is harmless."""

    async def append(messages: Sequence[Message]) -> list[int | None]:
        return [None for _ in messages]

    monkeypatch.setattr(harness.inbox, "append", append)

    await harness.pipeline.settle(batch_of([delivery(1)]))

    assert harness.effects == ["ack 1"]
    assert harness.settled("duplicate") == 1


async def test_the_problem_it_waits_for_is_reported_and_logged_once(
    harness: Harness,
) -> None:
    """Readiness shows it to an operator, who can fix it: space, a permission, a limit."""
    full = StoreUnavailableError("sqlite:x", "the disk is full")
    away = StoreUnavailableError("sqlite:x", "it is locked")
    harness.inbox.failures = [full, full, away, full]
    problems = []

    def note(state: RetryCallState) -> None:
        Pipeline._note_waiting(harness.pipeline, state)
        problems.append(harness.pipeline.problem)

    harness.pipeline._note_waiting = note  # type: ignore[method-assign] # observes it
    with capture_logs() as lines:
        await harness.pipeline.settle(batch_of([delivery(1)]))

    assert problems == [str(full), str(full), str(away), str(full)]
    logged = [line["error"] for line in lines if line["event"] == "pipeline.waiting"]
    assert logged == [str(full), str(away), str(full)]
    assert harness.pipeline.problem is None


async def test_cancelling_while_a_store_is_away_acks_nothing(harness: Harness) -> None:
    """Unacked deliveries are redelivered."""
    harness.inbox.failures = [StoreUnavailableError("memory:", "full")] * 1000

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await harness.pipeline.settle(batch_of([delivery(1)]))

    assert harness.effects == []


async def test_a_bug_in_parsing_affects_one_message_alone(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is retried and finally dead-lettered; process and neighbors are not affected."""
    whole = parse_delivery

    def stumble(
        delivery: Delivery, *, limits: MessageLimits, now_s: float, schemas: None
    ) -> Message | Rejection:
        if delivery.body == b"2":
            problem = "a bug"
            raise ZeroDivisionError(problem)
        return whole(delivery, limits=limits, now_s=now_s, schemas=schemas)

    monkeypatch.setattr(bridge.pipeline, "parse_delivery", stumble)

    await harness.settle([delivery(1, b"1"), delivery(2, b"2"), delivery(3, b"3")])

    assert harness.effects == ["store 1", "store 3", "ack 3", "retry 2", "ack held 2"]


def with_header(value: str) -> Properties:
    """Return properties with the header for ephemeral messages."""
    return Properties(
        message_id=b"m", headers=render_table({OptionHeader.EPHEMERAL: value})
    )


async def test_ephemeral_messages_are_announced_and_not_stored(
    harness: Harness,
) -> None:
    """After the stored messages of their batch; they are acked like all others."""
    ephemeral = delivery(1, b"1", properties=with_header("true"))
    stored = delivery(2, b"2", properties=with_header("false"))

    await harness.settle([ephemeral, stored])

    assert harness.effects == ["store 2", "announce 1", "ack 2"]
    assert (harness.settled("ephemeral"), harness.settled("stored")) == (1, 1)
    stages = [entry.stage for entry in harness.journal.of("ann", "m")]
    assert Stage.EMITTED in stages


async def test_an_invalid_option_makes_a_dead_letter_that_names_the_header(
    harness: Harness,
) -> None:
    """A message that is stored although its producer asked for something else surprises."""
    await harness.settle([delivery(1, b"1", properties=with_header("yes"))])

    rejection = harness.publisher.dead[0].rejection
    assert rejection.reason is DeadLetterReason.BAD_HEADER
    assert rejection.text == "x-bridge-ephemeral is not true or false"


async def test_one_retained_key_too_many_makes_a_dead_letter(harness: Harness) -> None:
    """The others of its batch are stored; nothing records it as stored."""
    harness.inbox.refused = b"2"
    headers = render_table({OptionHeader.KEY: "k", OptionHeader.RETAIN: "true"})
    refused = delivery(2, b"2", properties=Properties(message_id=b"m", headers=headers))

    await harness.settle([delivery(1, b"1"), refused, delivery(3, b"3")])

    assert harness.effects == ["store 1", "store 3", "ack 3", "dead 2", "ack held 2"]
    rejection = harness.publisher.dead[0].rejection
    assert rejection.reason is DeadLetterReason.TOO_MANY_RETAINED
    assert harness.settled("stored") == 2
    assert harness.settled("dead_letter", "too_many_retained") == 1
    stages = [entry.stage for entry in harness.journal.of("ann", "m")]
    assert stages == [Stage.DEAD]
