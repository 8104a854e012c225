"""Messages in flight at crashes are tried, and dead-lettered before they crash again."""

import asyncio

import pytest

from bridge.core.message import Delivery
from bridge.core.properties import Properties, render_table
from bridge.core.settlement import DeadLetter, joint_trial_key, trial_key
from bridge.enums import DeadLetterReason
from bridge.errors import StoreUnavailableError
from tests.conftest import eventually
from tests.unit.pipeline_fakes import Harness, batch_of, delivery


def suspect(tag: int, body: bytes, count: int) -> Delivery:
    """Return a delivery that was in flight when `count` sessions ended."""
    counted = Properties(headers=render_table({"x-delivery-count": count}))
    again = delivery(tag, body, properties=counted)
    again.redelivered = True
    return again


async def test_messages_in_flight_at_two_crashes_are_settled_in_a_recorded_trial(
    harness: Harness,
) -> None:
    """Together: most of them were in flight when connections were lost."""
    await harness.pipeline.settle(
        batch_of([delivery(1, b"1"), suspect(2, b"2", 2), suspect(3, b"3", 2)])
    )

    assert harness.effects == [
        "store 1",
        "trial together [1, 1]",
        "store 2",
        "store 3",
        "ack 3",
    ]
    assert harness.inbox.trials == {}
    assert harness.suspects("together") == 2


async def test_after_a_crash_in_such_a_trial_each_is_settled_alone(
    harness: Harness,
) -> None:
    """Only a message that was settled alone can become a dead letter because of a crash."""
    killer = suspect(2, b"2", 3)
    harness.inbox.trials[joint_trial_key(killer)] = 1

    await harness.pipeline.settle(batch_of([suspect(1, b"1", 3), killer]))

    assert harness.effects == [
        "trial together [1, 2]",
        "trial alone [1]",
        "store 1",
        "trial alone [1]",
        "store 2",
        "ack 2",
    ]
    assert harness.inbox.trials == {}
    assert harness.suspects("alone") == 2


async def test_a_message_in_flight_once_is_no_suspect(harness: Harness) -> None:
    """A restart of the broker leaves the same trace as a crash of the bridge."""
    await harness.pipeline.settle(batch_of([suspect(1, b"1", 1), suspect(2, b"2", 1)]))

    assert harness.effects == ["store 1", "store 2", "ack 2"]


async def test_a_message_that_crashed_two_trials_is_dead_lettered_unparsed(
    harness: Harness,
) -> None:
    """The third time it becomes a dead letter, and its neighbors are stored."""
    killer = suspect(1, b"1", 4)
    harness.inbox.trials[joint_trial_key(killer)] = 3
    harness.inbox.trials[trial_key(killer)] = 2

    await harness.settle([killer, suspect(2, b"2", 4)])

    (letter,) = harness.publisher.dead
    assert letter.rejection.reason is DeadLetterReason.CRASHED
    assert (
        letter.rejection.text
        == "the process died 2 times while it settled this message"
    )
    assert harness.effects == [
        "trial together [4, 1]",
        "trial alone [3]",
        "dead 1",
        "ack held 1",
        "trial alone [1]",
        "store 2",
        "ack 2",
    ]
    assert harness.inbox.trials == {}


async def test_a_trial_that_ends_with_the_session_is_no_crash(harness: Harness) -> None:
    """The process survives and deletes the record of the trial."""
    harness.inbox.failures = [StoreUnavailableError("memory:", "full")] * 1000
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(harness.pipeline.settle(batch_of([suspect(1, b"1", 5)])))
        await eventually(lambda: harness.pipeline.is_waiting)
        harness.intake.is_alive = False

    assert harness.settled("stale") == 1
    assert harness.inbox.trials == {}


async def test_no_trial_is_recorded_while_the_store_is_away(
    harness: Harness,
) -> None:
    """An operator may kill a process that only waits for the store."""
    harness.inbox.failures = [StoreUnavailableError("sqlite:x", "full")] * 1000
    async with asyncio.TaskGroup() as tasks:
        settling = tasks.create_task(
            harness.pipeline.settle(batch_of([suspect(1, b"1", 5)]))
        )
        await eventually(lambda: harness.pipeline.is_waiting)
        assert harness.inbox.trials == {}
        harness.inbox.failures.clear()
        await settling

    # Each attempt is a trial of its own, so that a crash in it is recognized.
    assert set(harness.effects[:-2]) == {"trial together [1]"}
    assert harness.effects[-3:] == ["trial together [1]", "store 1", "ack 1"]
    assert harness.inbox.trials == {}


async def test_an_error_that_ends_the_process_keeps_the_record_of_the_trial(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a crash: if the record was deleted, each trial would be the first."""
    killer = suspect(1, b"{", 5)

    async def fail(
        _delivery: Delivery, _letter: DeadLetter, *, timeout_s: float
    ) -> None:
        del timeout_s
        problem = "out of memory, or a bug"
        raise MemoryError(problem)

    monkeypatch.setattr(harness.publisher, "dead_letter", fail)

    with pytest.raises(MemoryError):
        await harness.pipeline.settle(batch_of([killer]))

    assert harness.inbox.trials == {joint_trial_key(killer): 1}
