"""The heart, with fakes: what is stored, set aside, tried again, and when it is acked."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

import bridge.pump
from bridge.core.journal import Journal
from bridge.core.message import (
    Delivery,
    Message,
    MessageLimits,
    Rejection,
    parse_delivery,
)
from bridge.core.properties import Properties, render_properties, render_table
from bridge.core.settlement import DeadLetter, RetryAfter, trial_key
from bridge.errors import (
    BrokerUnavailableError,
    PublishRefusedError,
    StoreUnavailableError,
)
from bridge.metrics import Metrics
from bridge.names import DeadLetterReason, Header, Stage
from bridge.pump import Pump
from tests.conftest import eventually


@dataclass
class FakeBatch:
    """Deliveries that came together."""

    deliveries: Sequence[Delivery]


@dataclass
class FakeIntake:
    """Remembers what was acked; `lives` is whether its session does."""

    journal: list[str] = field(default_factory=list)
    lives: bool = True

    async def next_batch(self) -> FakeBatch:
        """Have nothing, for ever."""
        await asyncio.Event().wait()
        raise AssertionError

    def is_mark(self, delivery: Delivery) -> bool:
        """Know marks by their exchange."""
        return delivery.exchange == b"mark"

    def is_current(self, batch: FakeBatch) -> bool:
        """Tell whether the session lives."""
        return self.lives and bool(batch.deliveries)

    async def ack(self, batch: FakeBatch) -> bool:
        """Write down that the batch was acked."""
        if self.lives:
            self.journal.append(f"ack {batch.deliveries[-1].tag}")
        return self.lives


@dataclass
class FakeInbox:
    """Stores in a list; raises what `failures` holds first, and always for `poison`."""

    journal: list[str]
    failures: list[Exception] = field(default_factory=list)
    poison: bytes | None = None
    stored: list[Message] = field(default_factory=list)
    trials: dict[bytes, int] = field(default_factory=dict)

    async def note_trial(self, key: bytes) -> int:
        """Count a trial."""
        self.trials[key] = self.trials.get(key, 0) + 1
        self.journal.append(f"trial {self.trials[key]}")
        return self.trials[key]

    def forget_trial(self, key: bytes) -> None:
        """Forget its trials."""
        self.trials.pop(key, None)

    async def append(self, messages: Sequence[Message]) -> list[int | None]:
        """Store all or none."""
        if self.failures:
            raise self.failures.pop(0)
        if any(message.data == self.poison for message in messages):
            problem = "the store does not like it"
            raise ZeroDivisionError(problem)
        self.stored += messages
        self.journal += [f"store {message.data.decode()}" for message in messages]
        return [1 for _ in messages]


@dataclass
class FakePublisher:
    """Remembers what was set aside; raises what `failures` holds first."""

    journal: list[str]
    failures: list[Exception] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    retried: list[tuple[RetryAfter, float | None]] = field(default_factory=list)

    async def dead_letter(self, delivery: Delivery, letter: DeadLetter) -> None:
        """Set aside."""
        if self.failures:
            raise self.failures.pop(0)
        self.journal.append(f"dead {delivery.tag}")
        self.dead.append(letter)

    async def retry(
        self, delivery: Delivery, retry: RetryAfter, *, deadline_s: float | None
    ) -> None:
        """Let it come back."""
        if self.failures:
            raise self.failures.pop(0)
        self.journal.append(f"retry {delivery.tag}")
        self.retried.append((retry, deadline_s))


class House:
    """A pump and the fakes around it, which share one journal of effects."""

    def __init__(self) -> None:
        self.journal: list[str] = []
        self.intake = FakeIntake(self.journal)
        self.inbox = FakeInbox(self.journal)
        self.publisher = FakePublisher(self.journal)
        self.metrics = Metrics()
        self.story = Journal()
        self.pump = Pump(
            intake=self.intake,
            inbox=self.inbox,
            publisher=self.publisher,
            limits=MessageLimits(body_bytes=100),
            retry_delays_s=(1.0, 10.0),
            metrics=self.metrics,
            journal=self.story,
            now=lambda: 1000.0,
        )

    def settled(self, outcome: str, reason: str = "") -> float:
        """How many deliveries ended that way."""
        labels = {"outcome": outcome, "reason": reason}
        name = "bridge_deliveries_settled_total"
        return self.metrics.registry.get_sample_value(name, labels) or 0


@pytest.fixture
def house() -> House:
    return House()


def delivery(
    tag: int, body: bytes = b"1", *, properties: Properties | None = None
) -> Delivery:
    raw = render_properties(properties or Properties())
    return Delivery(tag, False, b"bridge.messages", b"ann", raw, body)  # noqa: FBT003 - a field


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


def suspect(tag: int, body: bytes, count: int) -> Delivery:
    """Make a delivery that was in flight when `count` sessions ended."""
    counted = Properties(headers=render_table({"x-delivery-count": count}))
    again = delivery(tag, body, properties=counted)
    again.redelivered = True
    return again


async def test_what_was_in_flight_at_two_deaths_is_handled_alone_with_a_note(
    house: House,
) -> None:
    """Only what was alone in hand when the process died can be blamed for it."""
    await house.pump.settle(
        FakeBatch([delivery(1, b"1"), suspect(2, b"2", 2), suspect(3, b"3", 2)])
    )

    assert house.journal == [
        "store 1",
        "trial 1",
        "store 2",
        "trial 1",
        "store 3",
        "ack 3",
    ]
    assert house.inbox.trials == {}


async def test_what_was_in_flight_once_is_no_suspect(house: House) -> None:
    """A broker that was restarted leaves the same trace as a crash of ours."""
    await house.pump.settle(FakeBatch([suspect(1, b"1", 1), suspect(2, b"2", 1)]))

    assert house.journal == ["store 1", "store 2", "ack 2"]


async def test_what_the_process_died_with_twice_alone_is_set_aside_unopened(
    house: House,
) -> None:
    """The third time it is not touched: it becomes a dead letter, its neighbours go on."""
    killer = suspect(1, b"1", 4)
    house.inbox.trials[trial_key(killer)] = 2

    await house.pump.settle(FakeBatch([killer, suspect(2, b"2", 4)]))

    (letter,) = house.publisher.dead
    assert letter.rejection.reason is DeadLetterReason.CRASHED
    assert letter.rejection.text == "the process died 2 times with this message in hand"
    assert house.journal == ["trial 3", "dead 1", "trial 1", "store 2", "ack 2"]
    assert house.inbox.trials == {}


async def test_a_trial_that_ends_with_the_session_is_no_death(house: House) -> None:
    """The process lives to say so: the note goes."""
    house.inbox.failures = [StoreUnavailableError("memory:", "full")] * 3
    house.intake.lives = False

    await house.pump.settle(FakeBatch([suspect(1, b"1", 5)]))

    assert house.inbox.trials == {}


async def test_a_message_in_trial_is_not_blamed_for_a_store_that_is_away(
    house: House,
) -> None:
    """An operator who ends a process that only waits must not make it a culprit."""
    house.inbox.failures = [StoreUnavailableError("sqlite:x", "full")] * 1000
    async with asyncio.TaskGroup() as tasks:
        settling = tasks.create_task(
            house.pump.settle(FakeBatch([suspect(1, b"1", 5)]))
        )
        await eventually(lambda: house.pump.is_waiting)
        assert house.inbox.trials == {}
        house.inbox.failures.clear()
        await settling

    # Each try is a trial of its own: what kills the process then is known by it.
    assert set(house.journal[:-2]) == {"trial 1"}
    assert house.journal[-3:] == ["trial 1", "store 1", "ack 1"]
    assert house.inbox.trials == {}


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

    monkeypatch.setattr(bridge.pump, "parse_delivery", stumble)

    await house.pump.settle(
        FakeBatch([delivery(1, b"1"), delivery(2, b"2"), delivery(3, b"3")])
    )

    assert house.journal == ["retry 2", "store 1", "store 3", "ack 3"]


async def test_an_error_that_ends_the_process_leaves_the_note_of_the_trial(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A death by exception is a death: forgotten, each trial would be the first."""
    killer = suspect(1, b"{", 5)

    async def fail(_delivery: Delivery, _letter: DeadLetter) -> None:
        problem = "out of memory, or a bug"
        raise MemoryError(problem)

    monkeypatch.setattr(house.publisher, "dead_letter", fail)

    with pytest.raises(MemoryError):
        await house.pump.settle(FakeBatch([killer]))

    assert house.inbox.trials == {trial_key(killer): 1}
