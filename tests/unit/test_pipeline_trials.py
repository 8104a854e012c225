"""What was in flight when the process died: handled alone, and set aside before it kills again."""

import asyncio

import pytest

from bridge.core.message import Delivery
from bridge.core.properties import Properties, render_table
from bridge.core.settlement import DeadLetter, trial_key
from bridge.enums import DeadLetterReason
from bridge.errors import StoreUnavailableError
from tests.conftest import eventually
from tests.unit.pipeline_fakes import FakeBatch, House, delivery


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
