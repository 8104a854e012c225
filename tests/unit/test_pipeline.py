"""The heart, with fakes: what is stored, set aside, tried again, and when it is acked."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

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
from bridge.enums import DeadLetterReason, Header, Stage
from bridge.errors import (
    BrokerUnavailableError,
    PublishRefusedError,
    StoreUnavailableError,
)
from bridge.pipeline import Pump
from tests.conftest import eventually
from tests.unit.pipeline_fakes import FakeBatch, House, delivery


async def test_a_batch_is_acked_once_and_only_after_all_of_it_is_stored(
    house: House,
) -> None:
    """Append, then ack: a crash in between repeats and never loses."""
    await house.pump.settle(FakeBatch([delivery(1, b"1"), delivery(2, b"2")]))

    assert house.journal == ["store 1", "store 2", "ack 2"]
    assert house.settled("stored") == 2


async def test_a_dead_letter_is_confirmed_before_its_batch_is_acked(
    house: House,
) -> None:
    """Acked first, a crash would lose it; and its neighbours must not wait for ever."""
    await house.pump.settle(
        FakeBatch([delivery(1, b"1"), delivery(2, b"{"), delivery(3, b"3")])
    )

    assert house.journal == ["dead 2", "store 1", "store 3", "ack 3"]
    assert house.publisher.dead[0].rejection.reason is DeadLetterReason.MALFORMED_BODY
    assert house.settled("dead_letter", "malformed_body") == 1


async def test_a_mark_between_bridges_is_acked_and_becomes_no_dead_letter(
    house: House,
) -> None:
    """It tells that a queue is empty; no user is meant, and nobody made a mistake."""
    mark = delivery(2, b"{}", properties=Properties(type=b"bridge:mark"))
    mark.exchange = b"mark"

    await house.pump.settle(FakeBatch([delivery(1), mark]))

    assert house.journal == ["store 1", "ack 2"]


async def test_a_store_that_is_away_is_waited_for_and_nothing_is_acked(
    house: House,
) -> None:
    """Transient faults never cost a message and never let another overtake."""
    house.inbox.failures = [StoreUnavailableError("memory:", "full")] * 2

    await house.pump.settle(FakeBatch([delivery(1)]))

    assert house.journal == ["store 1", "ack 1"]
    assert not house.pump.is_waiting


async def test_while_it_waits_the_pump_says_so(house: House) -> None:
    """Readiness depends on it."""
    house.inbox.failures = [StoreUnavailableError("memory:", "full")] * 1000
    async with asyncio.TaskGroup() as tasks:
        settling = tasks.create_task(house.pump.settle(FakeBatch([delivery(1)])))
        await eventually(lambda: house.pump.is_waiting)
        house.inbox.failures.clear()
        await settling

    assert house.journal == ["store 1", "ack 1"]


@pytest.mark.parametrize(
    "failure",
    [
        BrokerUnavailableError("publish to bridge.dead", "gone"),
        PublishRefusedError("bridge.dead", "returned by the broker (312 NO_ROUTE)"),
    ],
)
async def test_a_dead_letter_that_cannot_be_published_now_is_published_later(
    house: House, failure: Exception
) -> None:
    """A deleted dead letter queue must not turn into lost dead letters."""
    house.publisher.failures = [failure]

    await house.pump.settle(FakeBatch([delivery(1, b"{")]))

    assert house.journal == ["dead 1", "ack 1"]


async def test_when_the_session_ends_while_waiting_the_batch_is_left_to_the_broker(
    house: House,
) -> None:
    """It comes again; storing it now would store it twice."""
    house.inbox.failures = [StoreUnavailableError("memory:", "full")] * 3
    house.intake.lives = False

    await house.pump.settle(FakeBatch([delivery(1)]))

    assert house.journal == []
    assert house.settled("stale") == 1


async def test_a_batch_that_the_store_refuses_is_split_down_to_the_culprit(
    house: House,
) -> None:
    """One bad message never drags its neighbours along, and their order stays."""
    house.inbox.poison = b"5"

    await house.pump.settle(
        FakeBatch([delivery(tag, str(tag).encode()) for tag in range(1, 10)])
    )

    stored = [message.data for message in house.inbox.stored]
    assert stored == [b"1", b"2", b"3", b"4", b"6", b"7", b"8", b"9"]
    assert house.publisher.retried == [(RetryAfter(attempt=2, delay_s=1.0), None)]
    assert house.journal[-1] == "ack 9"


async def test_the_last_attempt_ends_as_a_dead_letter_with_the_last_error(
    house: House,
) -> None:
    """What goes on failing is set aside with what an operator needs to know."""
    house.inbox.poison = b"1"
    attempted = Properties(headers=render_table({Header.ATTEMPT: 3}))

    await house.pump.settle(FakeBatch([delivery(1, properties=attempted)]))

    (letter,) = house.publisher.dead
    assert letter.rejection.reason is DeadLetterReason.ATTEMPTS_EXHAUSTED
    assert letter.rejection.text == (
        "attempt 3: ZeroDivisionError: the store does not like it"
    )
    assert house.journal == ["dead 1", "ack 1"]


async def test_a_retry_takes_the_deadline_of_its_message_along(house: House) -> None:
    """`expiration` cannot: the broker would drop the copy in the waiting queue."""
    house.inbox.poison = b"1"

    await house.pump.settle(
        FakeBatch([delivery(1, properties=Properties(expiration=b"60000"))])
    )

    assert house.publisher.retried == [(RetryAfter(attempt=2, delay_s=1.0), 1060.0)]


async def test_what_comes_back_after_its_deadline_is_counted_and_not_stored(
    house: House,
) -> None:
    """Expired is accounted for, never silent."""
    late = Properties(headers=render_table({Header.DEADLINE: 999_999}))

    await house.pump.settle(FakeBatch([delivery(1, properties=late)]))

    assert house.journal == ["ack 1"]
    assert house.settled("expired") == 1


async def test_the_journal_hears_what_became_of_each_message(house: House) -> None:
    """For `bridge trace`, by id, also of what never gets to an inbox."""

    def told(message_id: bytes, **more: Any) -> Delivery:
        return delivery(1, properties=Properties(message_id=message_id, **more))

    late = render_table({Header.DEADLINE: 999_999})
    await house.pump.settle(
        FakeBatch([told(b"good"), told(b"late", headers=late), told(b"\xff")])
    )
    house.inbox.poison = b"1"
    await house.pump.settle(FakeBatch([told(b"bad")]))

    (user,) = house.story.users_of("good")
    found = {
        message_id: [each.stage for each in house.story.of(user, message_id)]
        for message_id in ("good", "late", "\\xff", "bad")
    }
    assert found == {
        "good": [Stage.STORED],
        "late": [Stage.EXPIRED],
        "\\xff": [Stage.STORED],
        "bad": [Stage.RETRIED],
    }


async def test_duplicates_are_acked_and_counted(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publishing again with the same message id is harmless."""

    async def append(messages: Sequence[Message]) -> list[int | None]:
        return [None for _ in messages]

    monkeypatch.setattr(house.inbox, "append", append)

    await house.pump.settle(FakeBatch([delivery(1)]))

    assert house.journal == ["ack 1"]
    assert house.settled("duplicate") == 1


async def test_what_it_waits_for_is_said_and_logged_once(house: House) -> None:
    """Readiness shows it to an operator, who can mend it: room, permission, a limit."""
    full = PublishRefusedError("bridge.dead", "the broker could not take it (nack)")
    away = BrokerUnavailableError("publish to bridge.dead", "gone")
    house.publisher.failures = [full, full, away, full]
    problems = []

    def note(state: object) -> None:
        Pump._tell_waiting(house.pump, state)  # type: ignore[arg-type] # passed on
        problems.append(house.pump.problem)

    house.pump._tell_waiting = note  # type: ignore[method-assign] # looks on
    with capture_logs() as lines:
        await house.pump.settle(FakeBatch([delivery(1, b"{")]))

    assert problems == [str(full), str(full), str(away), str(full)]
    told = [line["error"] for line in lines if line["event"] == "pump.waiting"]
    assert told == [str(full), str(away), str(full)]
    assert house.pump.problem is None


async def test_cancelling_while_a_store_is_away_acks_nothing(house: House) -> None:
    """What was not acked comes again."""
    house.inbox.failures = [StoreUnavailableError("memory:", "full")] * 1000

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await house.pump.settle(FakeBatch([delivery(1)]))

    assert house.journal == []


async def test_a_bug_in_reading_one_message_costs_that_message_alone(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again and set aside; the process goes on, and so do its neighbours."""
    whole = parse_delivery

    def stumble(
        delivery: Delivery, *, limits: MessageLimits, now_s: float, schemas: None
    ) -> Message | Rejection:
        if delivery.body == b"2":
            problem = "a bug"
            raise ZeroDivisionError(problem)
        return whole(delivery, limits=limits, now_s=now_s, schemas=schemas)

    monkeypatch.setattr(bridge.pipeline, "parse_delivery", stumble)

    await house.pump.settle(
        FakeBatch([delivery(1, b"1"), delivery(2, b"2"), delivery(3, b"3")])
    )

    assert house.journal == ["retry 2", "store 1", "store 3", "ack 3"]
