"""
The heart: deliveries in, inboxes filled, deliveries settled. Read this first.

The order of effects is append, then ack. A crash between any two lines repeats work and
never loses it: what was appended and not acked comes again, what was published to the
dead letters and not acked is set aside twice.

One batch is settled at a time, so order per user holds. While it is settled the next one
gathers at the broker room's door: when there is little to do batches are small and quick,
when there is much they are large and cheap. A store that is away makes the pump wait, never
overtake; prefetch bounds what waits with it and the broker keeps the rest.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from operator import attrgetter
from time import monotonic, time
from typing import Final, Generic, Protocol, TypeVar

import structlog
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_random_exponential,
)

from bridge.core.event_schemas import EventSchemas
from bridge.core.journal import Journal, JournalEntry
from bridge.core.message import (
    Delivery,
    Message,
    MessageLimits,
    Rejection,
    message_id_of,
    parse_delivery,
)
from bridge.core.settlement import (
    DeadLetter,
    RetryAfter,
    attempt_of,
    is_suspect,
    settle_trial,
    settle_unexpected,
    trial_key,
)
from bridge.enums import Outcome, Stage
from bridge.errors import PublishRefusedError, StaleBatchError, TransientError
from bridge.inbox.contract import InboxWriter
from bridge.logging import user_hash
from bridge.metrics import Metrics
from bridge.tracing import Tracing

log = structlog.get_logger(__name__)

_WAS_REDELIVERED: Final = attrgetter("redelivered")

T = TypeVar("T")
B = TypeVar("B", bound="Batch")
_Parsed = tuple[Delivery, Message]
_Append = Callable[[B, Sequence[Message]], Awaitable[Sequence[int | None]]]

# A refusal too: the queue was deleted or is full, we may not write, or the body is too large
# by now. An operator can mend each (`problem` says what); going on would be losing it.
_AWAY: Final = (TransientError, PublishRefusedError)


class Batch(Protocol):
    """Deliveries of one consuming session, in order."""

    @property
    def deliveries(self) -> Sequence[Delivery]:
        """At least one."""


class Intake(Protocol[B]):
    """Where deliveries come from (the room `broker`)."""

    async def next_batch(self) -> B:
        """Wait for deliveries and return all that wait, within bounds."""

    def is_current(self, batch: B) -> bool:
        """Whether the session that brought `batch` lives, so that it can be acked."""

    async def ack(self, batch: B) -> bool:
        """Ack all of `batch`; false if its session is gone and it will come again."""

    def is_mark(self, delivery: Delivery) -> bool:
        """Whether `delivery` is meant for the intake, and only to be acked."""


class Publisher(Protocol):
    """Sets deliveries aside, confirmed by the broker when the call returns."""

    async def dead_letter(self, delivery: Delivery, letter: DeadLetter) -> None:
        """Publish a copy to the dead letters."""

    async def retry(
        self, delivery: Delivery, retry: RetryAfter, *, deadline_s: float | None
    ) -> None:
        """Publish a copy that comes back later."""


class Pump(Generic[B]):
    """Moves batches from the intake to the inbox until it is cancelled."""

    def __init__(
        self,
        *,
        intake: Intake[B],
        inbox: InboxWriter,
        publisher: Publisher,
        limits: MessageLimits,
        retry_delays_s: Sequence[float],
        metrics: Metrics,
        schemas: EventSchemas | None = None,
        pace_s: float = 0.0,
        journal: Journal | None = None,
        tracing: Tracing | None = None,
        append: _Append[B] | None = None,
        now: Callable[[], float] = time,
    ) -> None:
        """
        Wire up, do nothing yet.

        Args:
            intake: Where deliveries come from.
            inbox: Where messages are kept.
            publisher: Sets deliveries aside.
            limits: The operator's bounds.
            retry_delays_s: Waits before new attempts at what failed in an unknown way.
            metrics: Counts outcomes.
            schemas: What the data of events must be; ``None`` = any JSON.
            pace_s: The least time between the starts of two batches: dear commits become
                fewer and larger. What comes after a pause is never held up by it.
            journal: Remembers what happened, for operators; ``None`` = one of its own.
            tracing: Adds spans to the traces of producers; ``None`` = no spans.
            append: How to append to `inbox` what came with a batch, if it is shared.
            now: Unix time.

        """
        # Both may be replaced while running.
        self.limits = limits
        self.schemas = schemas
        self.problem: str | None = None  # of a store or broker that it waits for
        self._intake = intake
        self._inbox = inbox
        self._append = append or (lambda _, messages: inbox.append(messages))
        self._publisher = publisher
        self._retry_delays_s = retry_delays_s
        self._metrics = metrics
        self._stored = metrics.settled.labels(outcome=Outcome.STORED, reason="")
        self._pace_s = pace_s
        self._tracing = tracing
        self._journal = journal or Journal()
        self._now = now
        self._in_trial: bytes | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether a store or broker that is away is waited for."""
        return self.problem is not None

    async def run(self) -> None:
        """
        Settle batch after batch, for ever.

        Cancellation: safe anywhere. What is not acked comes again.
        """
        if not self._pace_s:
            while True:
                await self.settle(await self._intake.next_batch())
        began_s = 0.0
        while True:
            early_s = began_s + self._pace_s - monotonic()
            if early_s > 0:
                await asyncio.sleep(early_s)  # it gathers meanwhile
            batch = await self._intake.next_batch()
            began_s = monotonic()
            await self.settle(batch)

    async def settle(self, batch: B) -> None:
        """Store or set aside every delivery of `batch`, in order, then ack them all."""
        try:
            if any(map(_WAS_REDELIVERED, batch.deliveries)):
                await self._settle_redelivered(batch)
            else:
                await self._settle_group(batch, batch.deliveries)
            if not await self._intake.ack(batch):
                raise StaleBatchError  # noqa: TRY301 - one end for all ways to find out
        except StaleBatchError:
            self._count(Outcome.STALE, len(batch.deliveries))

    async def _settle_redelivered(self, batch: B) -> None:
        """Settle a batch of which some may be suspects: those one by one, in their turn."""
        for suspicious, group in groupby(batch.deliveries, key=is_suspect):
            if suspicious:
                for delivery in group:
                    await self._try_suspect(batch, delivery)
            else:
                await self._settle_group(batch, list(group))

    async def _settle_group(self, batch: B, deliveries: Sequence[Delivery]) -> None:
        now_s = self._now()
        good: list[_Parsed] = []
        for delivery in deliveries:
            try:
                parsed = parse_delivery(
                    delivery, limits=self.limits, now_s=now_s, schemas=self.schemas
                )
            except Exception as exc:  # noqa: BLE001 - a bug must cost one message, not the queue
                await self._try_again_later(batch, delivery, None, exc)
                continue
            if isinstance(parsed, Rejection):
                if self._intake.is_mark(delivery):
                    continue
                letter = DeadLetter(parsed, attempt_of(delivery))
                await self._set_aside(batch, delivery, letter)
            elif parsed.deadline_s is not None and parsed.deadline_s <= now_s:
                self._count(Outcome.EXPIRED)
                self._note(delivery, Stage.EXPIRED, "before it could be stored")
            else:
                good.append((delivery, parsed))
        if good:
            await self._store(batch, good)

    async def _try_suspect(self, batch: B, delivery: Delivery) -> None:
        """
        Handle alone what may make the process die: the crash net.

        The note is in the store before the message is touched, and goes when it was
        settled or anything else ended the trial that leaves us alive to say so. While a
        store or broker that is away is waited for it goes as well (see `_patiently`).
        """
        key = trial_key(delivery)
        trial = await self._patiently(
            batch, lambda: self._inbox.note_trial(key), doing="note_trial"
        )
        try:
            reason = settle_trial(trial)
            if reason is None:
                self._in_trial = key
                await self._settle_group(batch, [delivery])
            else:
                text = f"the process died {trial - 1} times with this message in hand"
                letter = DeadLetter(Rejection(reason, text), attempt_of(delivery))
                await self._set_aside(batch, delivery, letter)
        except (StaleBatchError, asyncio.CancelledError):
            self._inbox.forget_trial(key)
            raise
        finally:
            self._in_trial = None
        # Any other error goes up and ends the process: that is a death, the note stays.
        self._inbox.forget_trial(key)

    async def _store(self, batch: B, good: Sequence[_Parsed]) -> None:
        """Append `good`; a batch that fails is split until the culprit stands alone."""
        messages = [message for _, message in good]
        try:
            offsets = await self._patiently(
                batch, lambda: self._append(batch, messages), doing="append"
            )
        except StaleBatchError:
            raise
        except Exception as exc:  # noqa: BLE001 - a bug must cost one message, not the queue
            if len(good) == 1:
                await self._try_again_later(batch, *good[0], exc)
                return
            middle = len(good) // 2
            await self._store(batch, good[:middle])  # the first half first: order
            await self._store(batch, good[middle:])
            return
        now_s = self._now()
        self._journal.stored(messages, offsets, at_s=now_s)
        if self._tracing is not None:
            self._tracing.stored(messages, offsets, now_s=now_s)
        duplicates = offsets.count(None)
        self._stored.inc(len(good) - duplicates)
        self._count(Outcome.DUPLICATE, duplicates)

    async def _try_again_later(
        self,
        batch: B,
        delivery: Delivery,
        message: Message | None,
        cause: Exception,
    ) -> None:
        attempt = attempt_of(delivery)
        log.error(
            "delivery.failed",
            user=user_hash(delivery.routing_key.decode(errors="replace")),
            message_id=message.id if message else None,
            attempt=attempt,
            exc_info=cause,
        )
        problem = f"{type(cause).__name__}: {cause}"
        choice = settle_unexpected(attempt, problem, delays_s=self._retry_delays_s)
        if isinstance(choice, DeadLetter):
            await self._set_aside(batch, delivery, choice)
            return
        await self._patiently(
            batch,
            lambda: self._publisher.retry(
                delivery, choice, deadline_s=message.deadline_s if message else None
            ),
            doing="retry",
        )
        self._count(Outcome.RETRY)
        text = f"attempt {attempt} failed, the next is in {choice.delay_s:g} s"
        self._note(delivery, Stage.RETRIED, text)

    async def _set_aside(
        self, batch: B, delivery: Delivery, letter: DeadLetter
    ) -> None:
        """Publish a dead letter and wait for the broker's confirm."""
        await self._patiently(
            batch,
            lambda: self._publisher.dead_letter(delivery, letter),
            doing="dead_letter",
        )
        reason = letter.rejection.reason
        log.warning(
            "delivery.dead_lettered",
            reason=reason,
            error=letter.rejection.text,
            attempt=letter.attempt,
        )
        self._count(Outcome.DEAD_LETTER, reason=reason)
        text = f"attempt {letter.attempt}, {reason}: {letter.rejection.text}"
        self._note(delivery, Stage.DEAD, text)
        if self._tracing is not None:
            self._tracing.set_aside(delivery, letter, now_s=self._now())

    async def _patiently(
        self, batch: B, work: Callable[[], Awaitable[T]], *, doing: str
    ) -> T:
        """
        Do `work`, waiting for as long as a peer is away.

        A message in trial is not in hand while that lasts: an operator who ends a process
        that waits does not make it a culprit. Each try of it is a trial of its own.

        Raises:
            StaleBatchError: If the session of `batch` ended while waiting. It will come
                again, and doing the work now would do it twice.

        """
        try:
            return await work()
        except _AWAY as exc:
            failure = exc
        # Only now: what is built here costs more than a small batch does.
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_AWAY),
            wait=wait_random_exponential(multiplier=0.1, max=5),
            before_sleep=self._tell_waiting,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    if attempt.retry_state.attempt_number == 1:
                        raise failure  # it was made above
                    if not self._intake.is_current(batch):
                        raise StaleBatchError
                    if self._in_trial is not None:
                        await self._inbox.note_trial(self._in_trial)
                    return await work()
        finally:
            if self.is_waiting:
                self.problem = None
                log.info("pump.goes_on", doing=doing)
        raise AssertionError(doing)  # the loop above ends by return or raise alone

    def _tell_waiting(self, state: RetryCallState) -> None:
        if self._in_trial is not None:
            self._inbox.forget_trial(self._in_trial)
        problem = str(state.outcome.exception() if state.outcome else None)
        if problem != self.problem:  # told once, not with each try
            self.problem = problem
            log.warning("pump.waiting", error=problem)

    def _note(self, delivery: Delivery, stage: Stage, text: str) -> None:
        user = delivery.routing_key.decode(errors="backslashreplace")
        message_id = message_id_of(delivery)
        self._journal.note(
            JournalEntry(self._now(), stage, user, message_id, text=text)
        )

    def _count(self, outcome: Outcome, number: int = 1, *, reason: str = "") -> None:
        if number:
            self._metrics.settled.labels(outcome=outcome, reason=reason).inc(number)
