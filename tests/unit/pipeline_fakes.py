"""A pipeline, and fakes around it that record the order of effects."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from bridge.amqp.consume.consumer import Consumer
from bridge.amqp.consume.intake import Intake
from bridge.amqp.consume.session import Batch, IntakeSession
from bridge.amqp.publish.publisher import Publisher
from bridge.clock import SteadyClock
from bridge.core.journal import Journal
from bridge.core.message import (
    Delivery,
    Message,
    MessageLimits,
)
from bridge.core.properties import Properties, render_properties
from bridge.core.receipts import WorkerEvent
from bridge.core.settlement import DeadLetter, RetryAfter
from bridge.inbox.contract import REFUSED
from bridge.metrics import Metrics
from bridge.outbox import Outbox
from bridge.pipeline import Pipeline
from tests.conftest import eventually

TRIAL_KEY_BYTES = 16


@dataclass(eq=False)
class FakeConsumer:
    """Records which held deliveries are acked."""

    effects: list[str] = field(default_factory=list)
    held: dict[int, Delivery] = field(default_factory=dict)
    most: int = 100
    queue: str = "q"

    def hold(self, delivery: Delivery) -> bool:
        """Hold it if there is room."""
        if len(self.held) >= self.most:
            return False
        self.held[delivery.tag] = delivery
        return True

    def holds(self, delivery: Delivery) -> bool:
        """Return whether it is held."""
        return delivery.tag in self.held

    def was_published(self, _: Delivery) -> bool:
        """Return False: no batch is put back."""
        return False

    def ack_held(self, delivery: Delivery) -> None:
        """Record the ack."""
        if self.held.pop(delivery.tag, None) is not None:
            self.effects.append(f"ack held {delivery.tag}")


def batch_of(
    deliveries: Sequence[Delivery], consumer: FakeConsumer | None = None
) -> Batch:
    """Return a batch of a session that no fake looks at."""
    received = cast("Consumer", consumer or FakeConsumer())
    last_tags = ((received, deliveries[-1].tag),)
    return Batch(deliveries, cast("IntakeSession", None), last_tags)


@dataclass
class FakeIntake:
    """Records acks, and hands out no batches of its own."""

    effects: list[str] = field(default_factory=list)
    is_alive: bool = True  # whether the session of all batches is

    async def next_batch(self) -> Batch:
        """Wait forever."""
        await asyncio.Event().wait()
        raise AssertionError

    def is_end_marker(self, delivery: Delivery) -> bool:
        """Recognize markers by their exchange."""
        return delivery.exchange == b"marker"

    def is_current(self, _: Batch) -> bool:
        """Return whether the session is alive."""
        return self.is_alive

    def put_back(self, _: Batch) -> int:
        """Put nothing back: the session has ended."""
        return 0

    async def ack(self, batch: Batch) -> bool:
        """Record the ack."""
        if self.is_alive:
            self.effects.append(f"ack {batch.deliveries[-1].tag}")
        return self.is_alive


@dataclass
class FakeInbox:
    """
    Stores in a list; raises `failures` one by one, and always fails for `poison`.

    It refuses messages whose data is `refused`, as it refuses one retained key too many.
    """

    effects: list[str]
    failures: list[Exception] = field(default_factory=list)
    poison: bytes | None = None
    refused: bytes | None = None
    stored: list[Message] = field(default_factory=list)
    events: list[WorkerEvent] = field(default_factory=list)
    adding: int = 0
    added_together: int = 0
    trials: dict[bytes, int] = field(default_factory=dict)
    writes: int = 0  # durable ones that the pipeline waited for

    async def note_trials(self, keys: Sequence[bytes]) -> list[int]:
        """Count a trial of each message."""
        self.writes += 1
        for key in keys:
            self.trials[key] = self.trials.get(key, 0) + 1
        counts = [self.trials[key] for key in keys]
        kind = "together" if len(keys[0]) > TRIAL_KEY_BYTES else "alone"
        self.effects.append(f"trial {kind} {counts}")
        return counts

    def forget_trial(self, key: bytes) -> None:
        """Forget the trials of the message."""
        self.trials.pop(key, None)

    async def announce(self, messages: Sequence[Message]) -> None:
        """Record ephemeral messages."""
        self.effects += [f"announce {message.data.decode()}" for message in messages]

    async def add_event(self, event: WorkerEvent) -> None:
        """Record an event; as on a disk, others may be added meanwhile."""
        if self.failures:
            raise self.failures.pop(0)
        self.adding += 1
        self.added_together = max(self.added_together, self.adding)
        await asyncio.sleep(0)
        self.adding -= 1
        self.events.append(event)
        self.effects.append(f"event {event.routing_key}")

    async def append(self, messages: Sequence[Message]) -> list[int | None]:
        """Store all or none."""
        self.writes += 1
        if self.failures:
            raise self.failures.pop(0)
        if any(message.data == self.poison for message in messages):
            problem = "the store does not like it"
            raise ZeroDivisionError(problem)
        kept = [message for message in messages if message.data != self.refused]
        self.stored += kept
        self.effects += [f"store {message.data.decode()}" for message in kept]
        return [REFUSED if one.data == self.refused else 1 for one in messages]


@dataclass
class FakePublisher:
    """Records retries and dead letters; raises `failures` one by one."""

    effects: list[str]
    failures: list[Exception] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    retried: list[tuple[RetryAfter, float | None]] = field(default_factory=list)
    problem: str | None = None
    is_blocked: bool = False
    may_confirm: asyncio.Event = field(default_factory=asyncio.Event)
    confirmed: frozenset[int] = frozenset()  # tags that wait for no such event

    def __post_init__(self) -> None:
        """Confirm at once until a test clears the event."""
        self.may_confirm.set()

    async def ready(self) -> None:
        """Return at once."""

    async def dead_letter(
        self, delivery: Delivery, letter: DeadLetter, *, timeout_s: float
    ) -> None:
        """Record a dead letter."""
        del timeout_s
        if self.failures:
            raise self.failures.pop(0)
        self.effects.append(f"dead {delivery.tag}")
        if delivery.tag not in self.confirmed:
            await self.may_confirm.wait()
        self.dead.append(letter)

    async def retry(
        self,
        delivery: Delivery,
        retry: RetryAfter,
        *,
        deadline_s: float | None,
        timeout_s: float,
    ) -> None:
        """Record a retry."""
        del timeout_s
        if self.failures:
            raise self.failures.pop(0)
        self.effects.append(f"retry {delivery.tag}")
        self.retried.append((retry, deadline_s))


class Harness:
    """A pipeline and the fakes around it, which share one record of effects."""

    def __init__(self) -> None:
        self.effects: list[str] = []
        self.wall_s = 1000.0  # a change is a jump
        self.events_problem: str | None = None
        self.intake = FakeIntake(self.effects)
        self.inbox = FakeInbox(self.effects)
        self.publisher = FakePublisher(self.effects)
        self.metrics = Metrics()
        self.journal = Journal()
        self.consumer = FakeConsumer(self.effects)
        self.outbox = Outbox(
            cast("Intake", self.intake),
            cast("Publisher", self.publisher),
            metrics=self.metrics,
            slow_after_s=0.02,
            space_within_s=0.02,
        )
        self.pipeline = Pipeline(
            intake=cast("Intake", self.intake),
            inbox=self.inbox,
            publisher=cast("Publisher", self.publisher),
            outbox=self.outbox,
            limits=MessageLimits(body_bytes=100),
            retry_delays_s=(1.0, 10.0),
            metrics=self.metrics,
            journal=self.journal,
            clock=SteadyClock(wall=lambda: self.wall_s, real=lambda: 0.0),
            events_problem=lambda: self.events_problem,
        )

    async def settle(self, deliveries: Sequence[Delivery]) -> None:
        """Settle a batch, and wait until the outbox is empty."""
        await self.pipeline.settle(batch_of(deliveries, self.consumer))
        await eventually(lambda: not self.consumer.held)

    def held(self, outcome: str) -> float:
        """Return how many deliveries wait for a publish."""
        name, labels = "bridge_held_deliveries", {"outcome": outcome}
        return self.metrics.registry.get_sample_value(name, labels) or 0

    def suspects(self, mode: str) -> float:
        """Return how many suspects were settled together or alone."""
        labels = {"mode": mode}
        return (
            self.metrics.registry.get_sample_value("bridge_suspects_total", labels) or 0
        )

    def settled(self, outcome: str, reason: str = "") -> float:
        """Return how many deliveries were settled that way."""
        labels = {"outcome": outcome, "reason": reason}
        name = "bridge_deliveries_settled_total"
        return self.metrics.registry.get_sample_value(name, labels) or 0


def delivery(
    tag: int, body: bytes = b"1", *, properties: Properties | None = None
) -> Delivery:
    raw = render_properties(properties or Properties())
    return Delivery(tag, False, b"bridge.messages", b"ann", raw, body, "q")  # noqa: FBT003 - a field
