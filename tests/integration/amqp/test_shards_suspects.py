"""Shards whose deliveries lost connections have returned: no shard waits for the others."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import cast

from bridge.amqp.consume.intake import Intake
from bridge.amqp.consume.session import Batch
from bridge.amqp.publish.publisher import Publisher
from bridge.core.message import Message, MessageLimits
from bridge.core.receipts import WorkerEvent
from bridge.metrics import Metrics
from bridge.outbox import Outbox
from bridge.pipeline import Pipeline
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import Taker, running
from tests.integration.amqp.test_shards import USERS, ShardedSetup, sharded
from tests.unit.pipeline_fakes import FakePublisher

__all__ = ["sharded"]

WRITE_S = 0.01  # of a disk with other load
STILL_AT_MOST_S = 3.0 * SLOW_FACTOR
ROUNDS = 40


@dataclass
class SlowInbox:
    """A store that all bridges share, with slow writes."""

    stored_s: dict[str, list[float]] = field(default_factory=dict)
    count: int = 0

    async def announce(self, messages: Sequence[Message]) -> None:
        """Ignore ephemeral messages: there are none."""

    async def note_trials(self, keys: Sequence[bytes]) -> list[int]:
        """Take the time of a write."""
        await asyncio.sleep(WRITE_S)
        return [1] * len(keys)

    def forget_trial(self, key: bytes) -> None:
        """Do nothing: nothing was recorded."""

    async def add_event(self, event: WorkerEvent) -> None:
        """Do nothing: no message is tracked."""

    async def append(self, messages: Sequence[Message]) -> list[int | None]:
        """Record when the messages of each user were stored."""
        await asyncio.sleep(WRITE_S)
        for message in messages:
            self.stored_s.setdefault(message.user, []).append(monotonic())
        self.count += len(messages)
        return [1] * len(messages)


def intake_on(sharded: ShardedSetup) -> Intake:
    """Return the intake of one bridge."""
    return Intake(
        sharded.address, sharded.plan(3), prefetch_count=4000, metrics=Metrics()
    )


@asynccontextmanager
async def storing(sharded: ShardedSetup, inbox: SlowInbox) -> AsyncIterator[None]:
    """Run a bridge that stores in `inbox`."""
    intake = intake_on(sharded)
    publisher = cast("Publisher", FakePublisher([]))
    pipeline = Pipeline(
        intake=intake,
        inbox=inbox,
        publisher=publisher,
        outbox=Outbox(intake, publisher, metrics=Metrics()),
        limits=MessageLimits(body_bytes=1000),
        retry_delays_s=(1.0,),
        metrics=Metrics(),
    )
    async with running(intake, pipeline):
        await eventually(lambda: intake.is_consuming, within_s=30)
        yield


async def publish_and_lose(sharded: ShardedSetup, rounds: int) -> int:
    """Publish, and let two connections take everything and be lost; return the number."""
    async with sharded.bridge(3):
        pass  # it declares
    await sharded.publish(rounds)
    total = rounds * len(USERS)
    for _ in range(2):
        lost = intake_on(sharded)
        async with running(lost):
            await eventually(lambda: lost.in_flight == total, within_s=30)  # noqa: B023
    return total


async def test_no_shard_stands_still_when_returned_deliveries_are_released(
    sharded: ShardedSetup,
) -> None:
    """All bridges were ready and every queue was consumed, but most users got nothing."""
    total = await publish_and_lose(sharded, ROUNDS)
    inbox = SlowInbox()

    began_s = monotonic()
    async with (
        storing(sharded, inbox),
        storing(sharded, inbox),
        storing(sharded, inbox),
    ):
        await eventually(lambda: inbox.count >= total, within_s=60)

    longest_s = {
        user: max(b - a for a, b in zip([began_s, *at], at, strict=False))
        for user, at in inbox.stored_s.items()
    }
    assert max(longest_s.values()) <= STILL_AT_MOST_S


async def test_returned_deliveries_of_each_shard_are_acked_by_themselves(
    sharded: ShardedSetup,
) -> None:
    """They are settled slowly: the acks of one queue must not wait for another queue."""
    total = await publish_and_lose(sharded, 10)
    intake = intake_on(sharded)
    async with running(intake):
        await eventually(lambda: intake.in_flight == total, within_s=30)
        taker = Taker(intake)
        batches: list[Batch] = []
        while sum([len(batch.deliveries) for batch in batches]) < total:
            batches.append(await taker.next())
            assert await intake.ack(batches[-1])

    queues = [batch.consumers[0].queue for batch in batches]
    assert [len(batch.consumers) for batch in batches] == [1] * len(batches)
    assert max(len(batch.deliveries) for batch in batches) <= 64
    assert len(set(queues[:3])) == 3  # each in turn
