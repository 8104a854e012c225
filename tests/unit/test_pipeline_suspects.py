"""Deliveries that several lost connections returned do not stop a bridge."""

from collections.abc import Sequence

from bridge.core.message import Delivery, Message
from bridge.core.properties import Properties, render_table
from tests.unit.pipeline_fakes import Harness, batch_of, delivery

WINDOW = 1334  # the default prefetch of three shards


def suspects(count: int) -> list[Delivery]:
    """Return a window that was in flight when two connections were lost."""
    counted = Properties(headers=render_table({"x-delivery-count": 2}))
    made = [delivery(n, b"%d" % n, properties=counted) for n in range(1, count + 1)]
    for each in made:
        each.redelivered = True
    return made


async def test_a_window_that_was_returned_twice_needs_few_writes(
    harness: Harness,
) -> None:
    """Each write waits for a disk: with two per message, a window took 70 seconds."""
    await harness.pipeline.settle(batch_of(suspects(WINDOW)))

    assert len(harness.inbox.stored) == WINDOW
    assert harness.inbox.writes <= WINDOW / 20


async def test_a_batch_whose_session_has_ended_is_dropped_at_once(
    harness: Harness,
) -> None:
    """The broker redelivers all of it; deliveries of the next session wait behind it."""
    append = harness.inbox.append

    async def append_and_lose(messages: Sequence[Message]) -> list[int | None]:
        harness.intake.is_alive = False  # the broker closed the connection
        return await append(messages)

    harness.inbox.append = append_and_lose  # type: ignore[method-assign]

    await harness.pipeline.settle(batch_of(suspects(WINDOW)))

    # At most the append that was under way. The rest would be stored twice.
    assert len(harness.inbox.stored) <= WINDOW / 10
    assert harness.inbox.trials == {}
    assert harness.settled("stale") == WINDOW


async def test_identical_messages_without_an_id_are_not_taken_for_a_crash(
    harness: Harness,
) -> None:
    """They have the same key, which a trial counts once."""
    same = suspects(2)
    same[1].body = same[0].body

    await harness.pipeline.settle(batch_of(same))

    assert harness.effects == ["trial together [1]", "store 1", "store 1", "ack 2"]
