"""The outbox, with fakes: the pipeline settles around what cannot be published."""

import asyncio

from bridge.core.message import Delivery
from bridge.errors import PublishRefusedError
from tests.conftest import eventually
from tests.unit.pipeline_fakes import FakeConsumer, Harness, batch_of, delivery


def malformed(tag: int) -> Delivery:
    return delivery(tag, b"{%d" % tag)


async def test_others_are_stored_and_acked_while_a_dead_letter_waits(
    harness: Harness,
) -> None:
    """An alarm at the broker blocks publishers for hours, and acks still arrive."""
    harness.publisher.may_confirm.clear()
    harness.publisher.problem = "the broker blocks publishers (low on memory)"
    batch = batch_of([malformed(1), delivery(2, b"2")], harness.consumer)

    await harness.pipeline.settle(batch)
    await harness.pipeline.settle(batch_of([delivery(3, b"3")], harness.consumer))

    assert harness.effects == ["store 2", "ack 2", "store 3", "ack 3"]
    await eventually(lambda: harness.outbox.problem)
    assert harness.outbox.problem == (
        "1 dead letters or retries wait to be published: "
        "the broker blocks publishers (low on memory)"
    )
    assert not harness.pipeline.is_waiting
    assert harness.held("dead_letter") == 1
    harness.publisher.may_confirm.set()
    await eventually(lambda: harness.outbox.problem is None)
    assert harness.effects[4:] == ["dead 1", "ack held 1"]
    assert harness.held("dead_letter") == 0


async def test_what_is_held_is_bounded_and_then_the_pipeline_waits(
    harness: Harness,
) -> None:
    """Held deliveries use up the prefetch, and their bodies the memory."""
    harness.publisher.may_confirm.clear()
    harness.consumer.most = 2
    async with asyncio.TaskGroup() as tasks:
        letters = [malformed(n) for n in (1, 2, 3)]
        settling = harness.pipeline.settle(batch_of(letters, harness.consumer))
        tasks.create_task(settling)

        await eventually(lambda: harness.pipeline.is_waiting)
        await eventually(lambda: "2 dead letters" in str(harness.pipeline.problem))
        harness.publisher.may_confirm.set()

    await eventually(lambda: not harness.consumer.held)
    assert harness.settled("dead_letter", "malformed_body") == 3


async def test_a_refused_dead_letter_does_not_stop_the_next_one(
    harness: Harness,
) -> None:
    """A body over a limit that was lowered since is refused at each attempt."""
    harness.publisher.failures = [PublishRefusedError("bridge.dead", "too large")]

    await harness.settle([malformed(1), malformed(2)])

    assert harness.effects == ["ack 2", "dead 2", "ack held 2", "dead 1", "ack held 1"]


async def test_a_delivery_whose_session_ended_is_not_published(
    harness: Harness,
) -> None:
    """The broker redelivers it, and its next delivery is published."""
    harness.publisher.may_confirm.clear()
    letters = [malformed(tag) for tag in range(1, 100)]
    await harness.pipeline.settle(batch_of(letters, harness.consumer))
    await eventually(lambda: "dead 1" in harness.effects)
    harness.consumer.held.clear()

    harness.publisher.may_confirm.set()

    await eventually(lambda: not harness.held("dead_letter"))
    assert "dead 2" in harness.effects  # it was in flight
    assert "dead 99" not in harness.effects
    assert not [each for each in harness.effects if each.startswith("ack held")]


async def test_a_redelivery_takes_over_its_copy_that_is_in_flight(
    harness: Harness,
) -> None:
    """The broker may cut off the consumer during an alarm; two dead letters would follow."""
    harness.publisher.may_confirm.clear()
    await harness.pipeline.settle(batch_of([malformed(1)], harness.consumer))
    await eventually(lambda: "dead 1" in harness.effects)
    harness.consumer.held.clear()
    again = malformed(1)
    again.tag, again.redelivered = 7, True
    second = FakeConsumer(harness.effects)

    await harness.pipeline.settle(batch_of([again], second))
    harness.publisher.may_confirm.set()

    await eventually(lambda: not second.held)
    assert harness.effects == ["ack 1", "dead 1", "ack 7", "ack held 7"]


async def test_dead_letters_do_not_wait_for_each_other_s_confirms(
    harness: Harness,
) -> None:
    """A confirm takes milliseconds, in which other users would wait for a bad producer."""
    harness.publisher.may_confirm.clear()

    await harness.pipeline.settle(
        batch_of([malformed(1), malformed(2), malformed(3)], harness.consumer)
    )

    await eventually(lambda: "dead 3" in harness.effects)
    assert harness.effects == ["ack 3", "dead 1", "dead 2", "dead 3"]
    harness.publisher.may_confirm.set()
    await eventually(lambda: not harness.consumer.held)


async def test_a_published_copy_is_not_taken_for_that_of_an_equal_delivery(
    harness: Harness,
) -> None:
    """A producer may send the same bytes again while other copies are in flight."""
    harness.publisher.may_confirm.clear()
    harness.publisher.confirmed = frozenset({1})
    await harness.pipeline.settle(
        batch_of([malformed(1), malformed(2)], harness.consumer)
    )
    await eventually(lambda: "ack held 1" in harness.effects)
    equal = malformed(1)
    equal.tag = 3

    await harness.pipeline.settle(batch_of([equal], harness.consumer))
    harness.publisher.may_confirm.set()

    await eventually(lambda: not harness.consumer.held)
    assert harness.effects[-2:] == ["dead 3", "ack held 3"]


async def test_one_refused_dead_letter_does_not_slow_down_the_others(
    harness: Harness,
) -> None:
    """Pauses grow only while nothing at all can be published."""
    refused = PublishRefusedError("bridge.dead", "too large")
    for tag in range(1, 40, 2):
        harness.publisher.failures = [refused]
        await harness.settle([malformed(tag), malformed(tag + 1)])

    assert harness.effects.count("dead 40") == 1
    assert harness.outbox.problem is None
