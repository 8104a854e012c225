"""
The outbox publishes dead letters and retries while the pipeline continues.

The broker may accept no publish for hours: a memory or disk alarm, a full queue, a missing
permission. So a delivery is held while its copy waits to be published: it stays unacked, and
everything else is settled and acked meanwhile. This changes no order: a dead letter leaves
the order of its user, and a retry is delivered after newer messages in any case.

Some copies are in flight together, because a confirm takes milliseconds: one at a time, a
producer of invalid messages would delay all users. They are written in order. If confirms are
missing, nothing is published again while the connection lives: the broker reads what was sent
during an alarm when the alarm is over. A crash, or a lost connection, between publish and ack
repeats copies. So does a copy that the broker refuses by closing the channel. After a failure
each copy that was in flight is published alone, so this happens once.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile
from typing import Final

import structlog

from bridge.amqp.consume.consumer import Consumer
from bridge.amqp.consume.intake import Intake
from bridge.amqp.consume.session import Batch
from bridge.amqp.publish.publisher import Publisher
from bridge.core.message import Delivery
from bridge.core.settlement import trial_key
from bridge.enums import Outcome
from bridge.errors import BrokerUnavailableError, PublishRefusedError, first_error
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)

# Longer than most alarms. The connection has heartbeats, so its loss is noticed earlier.
CONFIRM_WITHIN_S: Final = 3600.0
_SLOW_AFTER_S: Final = 2.0
_SPACE_WITHIN_S: Final = 5.0
_IN_FLIGHT_MAX: Final = 64
_BACKOFF_FIRST_S: Final = 0.1
_BACKOFF_MAX_S: Final = 5.0


@dataclass(eq=False, slots=True)
class HeldDelivery:
    """
    A delivery that is acked when its copy is published.

    `has_failed` is true after its copy, or another one that was in flight with it, was not
    published.
    """

    delivery: Delivery
    batch: Batch
    outcome: Outcome
    publish: Callable[[], Awaitable[None]]
    on_published: Callable[[], None]
    has_failed: bool = False

    @property
    def consumer(self) -> Consumer:
        """The consumer that holds the delivery."""
        return self.batch.consumer_of(self.delivery)


class Outbox:
    """
    Publishes copies of held deliveries, oldest first, until it is cancelled.

    Args:
        intake: Tracks which deliveries can still be acked.
        publisher: Publishes on a connection that an alarm may block.
        metrics: Counts held deliveries.
        slow_after_s: How long a publish may take before it counts as a problem.
        space_within_s: How long `add` waits until it may hold another delivery.

    """

    def __init__(
        self,
        intake: Intake,
        publisher: Publisher,
        *,
        metrics: Metrics,
        slow_after_s: float = _SLOW_AFTER_S,
        space_within_s: float = _SPACE_WITHIN_S,
    ) -> None:
        self._intake = intake
        self._publisher = publisher
        self._slow_after_s = slow_after_s
        self._space_within_s = space_within_s
        self._held: deque[HeldDelivery] = deque()
        self._in_flight: list[HeldDelivery] = []  # sent, and not confirmed
        self._changed = asyncio.Event()
        self._problem: str | None = None
        self._crash: Exception | None = None
        for outcome in (Outcome.DEAD_LETTER, Outcome.RETRY):
            count = partial(self._count, outcome)
            metrics.held.labels(outcome=outcome).set_function(count)
        metrics.publishing_blocked.set_function(lambda: publisher.is_blocked)

    @property
    def problem(self) -> str | None:
        """How many deliveries wait for a publish, and why; ``None`` if none waits long."""
        if self._problem is None or not self._held:
            return None
        cause = self._publisher.problem or self._problem
        return (
            f"{len(self._held)} dead letters or retries wait to be published: {cause}"
        )

    def _count(self, outcome: Outcome) -> int:
        return sum(held.outcome is outcome for held in self._held)

    async def add(self, held: HeldDelivery) -> None:
        """
        Hold a delivery and publish its copy later; adding it twice does nothing.

        Raises:
            BrokerUnavailableError: If too much of its queue is held, and nothing of it could
                be published for a while.

        Cancellation: safe; it is not held.

        """
        consumer, delivery = held.consumer, held.delivery
        if consumer.holds(delivery) or consumer.was_published(delivery):
            return
        try:
            async with asyncio.timeout(self._space_within_s):
                while not consumer.hold(delivery):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as exc:
            problem = self.problem or "the broker is slow"
            raise BrokerUnavailableError(
                f"publish from {consumer.queue}", problem
            ) from exc
        self._drop_stale()
        for sent in self._in_flight:
            if not self._is_current(sent) and _is_same(sent, held):
                # Its copy is in flight, from before the session ended.
                sent.delivery, sent.batch = delivery, held.batch
                break
        else:
            self._held.append(held)
        self._changed.set()

    async def published(self) -> None:
        """Wait until nothing is held, or until publishing does not work at present."""
        while self._held and self._problem is None and self._crash is None:
            self._changed.clear()
            await self._changed.wait()
        if self._crash is not None:
            raise self._crash

    async def run(self) -> None:
        """
        Publish held deliveries until cancelled.

        Cancellation: safe; the broker redelivers held deliveries.
        """
        pause_s = _BACKOFF_FIRST_S
        while True:
            while not self._held:
                self._changed.clear()
                await self._changed.wait()
            try:
                published, problem = await self._publish_oldest()
            except Exception as exc:
                self._crash = exc
                self._changed.set()
                raise
            if published:
                pause_s = _BACKOFF_FIRST_S
            if problem is not None:
                self._note_problem(problem)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _BACKOFF_MAX_S)
            elif self._problem is not None:
                self._problem = None
                log.info("outbox.resumed")
                self._changed.set()

    async def _publish_oldest(self) -> tuple[int, str | None]:
        """Return how many copies were published, and why another one was not."""
        loop = asyncio.get_running_loop()
        slow = "the broker has not confirmed the first of them"
        timer = loop.call_later(self._slow_after_s, self._note_problem, slow)
        try:
            await self._publisher.ready()
            # Only now: deliveries of sessions that ended meanwhile are redelivered.
            self._drop_stale()
            self._in_flight = self._next_group()
            async with asyncio.TaskGroup() as tasks:
                publishes = [
                    tasks.create_task(self._publish(held), name="outbox publish")
                    for held in self._in_flight
                ]
        except BrokerUnavailableError as exc:
            return 0, str(exc)
        except ExceptionGroup as group:
            raise first_error(group) from group
        finally:
            timer.cancel()
            self._in_flight = []
        problems = [each for each in (task.result() for task in publishes) if each]
        return len(publishes) - len(problems), problems[0] if problems else None

    def _next_group(self) -> list[HeldDelivery]:
        if self._held and self._held[0].has_failed:
            return [self._held[0]]
        together = takewhile(lambda held: not held.has_failed, self._held)
        return list(islice(together, _IN_FLIGHT_MAX))

    async def _publish(self, held: HeldDelivery) -> str | None:
        """Publish a copy and ack its delivery; return why that failed."""
        try:
            await held.publish()
        except BrokerUnavailableError as exc:
            held.has_failed = True
            return str(exc)
        except PublishRefusedError as exc:
            held.has_failed = True
            self._held.remove(held)
            self._held.append(held)  # the broker may accept the others
            return str(exc)
        finally:
            self._in_flight.remove(held)
        self._held.remove(held)
        held.consumer.ack_held(held.delivery)
        held.on_published()
        self._changed.set()
        return None

    def _drop_stale(self) -> None:
        """Drop deliveries that the broker redelivers, except those in flight."""
        if not all(map(self._is_current, self._held)):
            kept = (
                held
                for held in self._held
                if held in self._in_flight or self._is_current(held)
            )
            self._held = deque(kept)
            self._changed.set()

    def _is_current(self, held: HeldDelivery) -> bool:
        return held.consumer.holds(held.delivery) and self._intake.is_current(
            held.batch
        )

    def _note_problem(self, problem: str) -> None:
        if problem != self._problem:  # log it once, not at each attempt
            self._problem = problem
            log.warning("outbox.waiting", held=len(self._held), problem=self.problem)
        self._changed.set()


def _is_same(one: HeldDelivery, other: HeldDelivery) -> bool:
    return (
        one.outcome is other.outcome
        and one.delivery.queue == other.delivery.queue
        and trial_key(one.delivery) == trial_key(other.delivery)
    )
