"""A pump, and fakes around it that write down in which order things happen."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from bridge.core.journal import Journal
from bridge.core.message import (
    Delivery,
    Message,
    MessageLimits,
)
from bridge.core.properties import Properties, render_properties
from bridge.core.settlement import DeadLetter, RetryAfter
from bridge.metrics import Metrics
from bridge.pipeline import Pump


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


def delivery(
    tag: int, body: bytes = b"1", *, properties: Properties | None = None
) -> Delivery:
    raw = render_properties(properties or Properties())
    return Delivery(tag, False, b"bridge.messages", b"ann", raw, body, "q")  # noqa: FBT003 - a field
