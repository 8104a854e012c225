"""When the pipeline starts a batch: at once after a pause, and not too soon after another."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from bridge.amqp.consume.intake import Intake
from bridge.amqp.consume.session import Batch
from bridge.amqp.publish.publisher import Publisher
from bridge.core.batch_pace import BatchPace
from bridge.core.message import Delivery, Message, MessageLimits
from bridge.core.receipts import WorkerEvent
from bridge.metrics import Metrics
from bridge.outbox import Outbox
from bridge.pipeline import Pipeline
from tests.conftest import eventually
from tests.unit.pipeline_fakes import FakeIntake, batch_of, delivery

PACE = BatchPace(share=1e-9, longest_s=1.0)  # 0.125 s after the first batch


@dataclass
class CollectingIntake(FakeIntake):
    """Hands out everything that waits as one batch."""

    waiting: list[Delivery] = field(default_factory=list)

    async def collect(self, seconds: float) -> None:
        """Wait as long as the pipeline asks for."""
        self.effects.append("collect")
        await asyncio.sleep(seconds)

    async def next_batch(self) -> Batch:
        """Return all waiting deliveries."""
        await eventually(lambda: self.waiting)
        taken, self.waiting = self.waiting, []
        return batch_of(taken)


@dataclass
class SizeRecorder:
    """A store that records how many messages each append had."""

    sizes: list[int] = field(default_factory=list)

    async def add_event(self, event: WorkerEvent) -> None:
        """Ignore it."""

    async def append(self, messages: Sequence[Message]) -> Sequence[int | None]:
        """Record the number of messages."""
        self.sizes.append(len(messages))
        return [1] * len(messages)

    async def announce(self, messages: Sequence[Message]) -> None:
        """Ignore ephemeral messages: there are none."""

    async def note_trials(self, _: Sequence[bytes]) -> list[int]:
        """Fail: no message here is a suspect."""
        raise AssertionError

    def forget_trial(self, _: bytes) -> None:
        """Fail: no message here is a suspect."""
        raise AssertionError


async def test_the_first_delivery_is_stored_at_once_and_the_next_ones_together() -> (
    None
):
    """A single message must not wait; for many, one commit each would be expensive."""
    intake, store = CollectingIntake(), SizeRecorder()
    publisher = cast("Publisher", None)
    pipeline = Pipeline(
        intake=cast("Intake", intake),
        inbox=store,
        outbox=Outbox(cast("Intake", intake), publisher, metrics=Metrics()),
        publisher=cast("Publisher", None),
        limits=MessageLimits(100),
        retry_delays_s=(1.0,),
        metrics=Metrics(),
        pace=PACE,
    )
    running = asyncio.ensure_future(pipeline.run())
    try:
        intake.waiting.append(delivery(1))
        await eventually(lambda: store.sizes == [1])
        for tag in (2, 3, 4):
            intake.waiting.append(delivery(tag))
            await asyncio.sleep(0)

        await eventually(lambda: "ack 4" in intake.effects)
    finally:
        running.cancel()

    assert store.sizes == [1, 3]
    assert intake.effects[:3] == ["ack 1", "collect", "ack 4"]
