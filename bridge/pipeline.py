"""
The pipeline takes deliveries, stores their messages and settles the deliveries.

Effects happen in the order append, then ack. A crash between any two lines repeats work
and never loses it: messages that were appended and not acked are redelivered, and a
delivery that was published to the dead letters and not acked is dead-lettered twice. Dead
letters and retries go to the outbox, which publishes them while the pipeline continues.

One batch is settled at a time, which keeps the order per user. The next batch collects
meanwhile, and for some milliseconds more if batches are expensive (core/batch_pace.py):
batches are small and quick under little load, large and cheap under much. While the store or the broker is away, the pipeline waits and nothing overtakes;
prefetch bounds what waits in the process, and the broker keeps the rest.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import groupby, islice
from operator import attrgetter
from time import monotonic, process_time
from typing import Final, TypeVar

import structlog
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_random_exponential,
)

from bridge.amqp.consume.intake import Intake
from bridge.amqp.consume.session import Batch
from bridge.amqp.publish.publisher import Publisher
from bridge.clock import SteadyClock
from bridge.core.batch_pace import BatchPace
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
from bridge.core.receipts import WorkerEvent
from bridge.core.settlement import (
    SUSPECTS_TOGETHER,
    DeadLetter,
    attempt_of,
    is_suspect,
    joint_trial_key,
    settle_trial,
    settle_unexpected,
    trial_key,
)
from bridge.enums import DeadLetterReason, Outcome, Stage
from bridge.errors import (
    PublishRefusedError,
    StaleBatchError,
    StoreUnavailableError,
    TransientError,
)
from bridge.fencing import Fencing
from bridge.inbox.contract import REFUSED, InboxWriter
from bridge.inbox.worker_events import dead_event, expired_events
from bridge.logging import user_hash
from bridge.metrics import Metrics
from bridge.outbox import CONFIRM_WITHIN_S, HeldDelivery, Outbox
from bridge.tracing import Tracing

log = structlog.get_logger(__name__)

_WAS_REDELIVERED: Final = attrgetter("redelivered")
_OPTIONS: Final = attrgetter("options")
_STORE_PAUSE_S: Final = 0.5

_TOO_MANY_RETAINED: Final = Rejection(
    DeadLetterReason.TOO_MANY_RETAINED,
    "x-bridge-retain with one key more than BRIDGE_MAX_RETAINED allows",
)

T = TypeVar("T")
_Parsed = tuple[Delivery, Message]

# A refused publish is waited out, too: its queue was deleted or is full, the permission is
# missing, or the body is too large now. An operator can fix each of these (`problem` says
# which it is), and to continue without the publish would lose the message.
_RETRIED: Final = (TransientError, PublishRefusedError)


class Pipeline:
    """
    Moves batches from the intake to the inbox until it is cancelled.

    Args:
        intake: Hands out batches of deliveries.
        inbox: Stores messages.
        publisher: Publishes retries and dead letters.
        outbox: Calls the publisher, and acks what it has published.
        limits: The operator's bounds.
        retry_delays_s: The waits before new attempts after unexpected failures.
        metrics: Counts outcomes.
        schemas: What the data of events must be; ``None`` allows any JSON.
        pace: Says how soon a batch may begin after the last; ``None`` for the usual pace.
        journal: Records what happened, for operators; ``None`` for a private one.
        tracing: Records spans; ``None`` for no tracing.
        fencing: Appends instead of `inbox` if other bridges share the store.
        clock: Stamps messages; ``None`` for one of its own.
        events_problem: Returns why no tracked message may be stored now; ``None`` if there
            is room for the events about it.

    """

    def __init__(
        self,
        *,
        intake: Intake,
        inbox: InboxWriter,
        publisher: Publisher,
        outbox: Outbox,
        limits: MessageLimits,
        retry_delays_s: Sequence[float],
        metrics: Metrics,
        schemas: EventSchemas | None = None,
        pace: BatchPace | None = None,
        journal: Journal | None = None,
        tracing: Tracing | None = None,
        fencing: Fencing | None = None,
        clock: SteadyClock | None = None,
        events_problem: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.problem: str | None = None  # of the store or broker that is waited for
        self._intake = intake
        self._inbox = inbox
        self._publisher = publisher
        self._outbox = outbox
        self._limits = limits
        self._retry_delays_s = retry_delays_s
        self._metrics = metrics
        self._stored = metrics.settled.labels(outcome=Outcome.STORED, reason="")
        self._schemas = schemas
        self._pace = pace or BatchPace()
        self._journal = journal or Journal()
        self._tracing = tracing
        self._fencing = fencing
        self._clock = clock or SteadyClock()
        self._events_problem = events_problem
        self._trial_keys: Sequence[bytes] = ()  # of the messages that are on trial now

    @property
    def is_waiting(self) -> bool:
        """Whether the pipeline waits for a store or broker that is away."""
        return self.problem is not None

    def replace_rules(
        self, limits: MessageLimits, schemas: EventSchemas | None
    ) -> None:
        """Apply other limits and schemas to the deliveries parsed from now on."""
        self._limits = limits
        self._schemas = schemas

    async def run(self) -> None:
        """
        Settle one batch after another, forever.

        Cancellation: safe at any point; unacked deliveries are redelivered.
        """
        pace = self._pace
        while True:
            wait_s = pace.wait_s(monotonic())
            if wait_s > 0:
                await self._intake.collect(wait_s)
            batch = await self._intake.next_batch()
            # The processor time of the whole process: stores have threads of their own.
            started_s, cpu_s = monotonic(), process_time()
            await self.settle(batch)
            pace.note_batch(started_s=started_s, cpu_s=process_time() - cpu_s)

    async def settle(self, batch: Batch) -> None:
        """Store, retry or dead-letter every delivery of `batch` in order, then ack them all."""
        try:
            if any(map(_WAS_REDELIVERED, batch.deliveries)):
                await self._settle_redelivered(batch)
            else:
                await self._settle_group(batch, batch.deliveries)
            if not await self._intake.ack(batch):
                raise StaleBatchError  # noqa: TRY301 - handled like one raised below
        except StaleBatchError:
            returned = self._intake.put_back(batch)
            self._count(Outcome.STALE, len(batch.deliveries) - returned)

    async def _settle_redelivered(self, batch: Batch) -> None:
        """Settle a batch that may contain suspects, which are tried in their order."""
        for suspicious, group in groupby(batch.deliveries, key=is_suspect):
            if suspicious:
                while suspects := list(islice(group, SUSPECTS_TOGETHER)):
                    await self._try_suspects(batch, suspects)
            else:
                await self._settle_group(batch, list(group))

    async def _try_suspects(self, batch: Batch, suspects: Sequence[Delivery]) -> None:
        """
        Settle messages of which one may crash the process.

        Most suspects cannot crash the process: they were in flight when connections were lost.
        So they are settled together, in a trial that the store records. If the record shows that
        the process died in such a trial of one of them, each is settled alone.
        """
        # Messages without an id may be identical: their key is counted once.
        keys = list(dict.fromkeys(map(joint_trial_key, suspects)))
        trials = await self._note_trials(batch, keys)
        if max(trials) == 1:
            await self._on_trial(keys, self._settle_group(batch, suspects))
        else:
            # The records stay until each message was alone: until then a crash must not
            # lead back to a trial together.
            for suspect in suspects:
                await self._try_alone(batch, suspect)
                self._inbox.forget_trial(joint_trial_key(suspect))
        mode = "together" if max(trials) == 1 else "alone"
        self._metrics.suspects.labels(mode=mode).inc(len(suspects))

    async def _settle_group(self, batch: Batch, deliveries: Sequence[Delivery]) -> None:
        now_s = self._clock.wall_s()
        good: list[_Parsed] = []
        ephemeral: list[Message] = []
        expired: list[WorkerEvent] = []
        for delivery in deliveries:
            try:
                parsed = parse_delivery(
                    delivery,
                    limits=self._limits,
                    now_s=now_s,
                    schemas=self._schemas,
                )
            except Exception as exc:  # noqa: BLE001 - a bug must cost one message, not the queue
                await self._retry_or_dead_letter(batch, delivery, None, exc)
                continue
            if isinstance(parsed, Rejection):
                if self._intake.is_end_marker(delivery):
                    batch.ended_queues.append(delivery.queue)
                    continue
                letter = DeadLetter(parsed, attempt_of(delivery))
                await self._dead_letter(batch, delivery, letter)
            elif parsed.deadline_s is not None and parsed.is_expired(
                self._clock.read()
            ):
                self._count(Outcome.EXPIRED)
                self._note(delivery, Stage.EXPIRED, "before it could be stored")
                expired += expired_events(delivery, parsed, self._clock.read())
            elif parsed.options is not None and parsed.options.is_ephemeral:
                ephemeral.append(parsed)
            else:
                good.append((delivery, parsed))
        if expired:
            work = partial(self._add_events, expired)
            await self._with_retries(batch, work, doing="add_event")
        if good:
            await self._store(batch, good)
        if ephemeral:
            await self._announce(ephemeral)

    async def _add_events(self, events: Sequence[WorkerEvent]) -> None:
        self._require_room_for_events()
        # Together, because each may wait for the disk.
        await asyncio.gather(*map(self._inbox.add_event, events))

    async def _wait_for_room(self, batch: Batch) -> None:
        async def check() -> None:
            self._require_room_for_events()

        await self._with_retries(batch, check, doing="add_event")

    def _require_room_for_events(self) -> None:
        """Raise if no message may be settled now that makes more events for workers."""
        problem = self._events_problem()
        if problem is not None:
            raise StoreUnavailableError("event outbox", problem)

    async def _announce(self, messages: Sequence[Message]) -> None:
        """Emit ephemeral messages, after the stored ones of their batch."""
        await self._inbox.announce(messages)
        self._count(Outcome.EPHEMERAL, len(messages))
        at_s, stage = self._clock.wall_s(), Stage.EMITTED
        for message in messages:
            self._journal.note(JournalEntry(at_s, stage, message.user, message.id))

    async def _try_alone(self, batch: Batch, delivery: Delivery) -> None:
        """Settle a suspect alone, or dead-letter it unparsed after too many crashes."""
        key = trial_key(delivery)
        (trial,) = await self._note_trials(batch, [key])
        reason = settle_trial(trial)
        if reason is None:
            await self._on_trial([key], self._settle_group(batch, [delivery]))
            return
        text = f"the process died {trial - 1} times while it settled this message"
        letter = DeadLetter(Rejection(reason, text), attempt_of(delivery))
        await self._on_trial([key], self._dead_letter(batch, delivery, letter))

    async def _note_trials(self, batch: Batch, keys: Sequence[bytes]) -> Sequence[int]:
        return await self._with_retries(
            batch, lambda: self._inbox.note_trials(keys), doing="note_trials"
        )

    async def _on_trial(self, keys: Sequence[bytes], work: Awaitable[None]) -> None:
        """
        Do `work` while the store has records of a trial under `keys`.

        They are deleted when the trial has ended in any way that the process survives, and
        while the pipeline waits for a store or broker that is away (see `_with_retries`).
        """
        self._trial_keys = keys
        try:
            await work
            # A crash while a dead letter is published counts, too.
            await self._outbox.published()
        except (StaleBatchError, asyncio.CancelledError):
            self._forget_trials()
            raise
        else:
            self._forget_trials()
        finally:
            # After any other error the records stay: it ends the process and counts as a
            # crash.
            self._trial_keys = ()

    def _forget_trials(self) -> None:
        for key in self._trial_keys:
            self._inbox.forget_trial(key)

    async def _store(self, batch: Batch, good: Sequence[_Parsed]) -> None:
        """Append `good`; if that fails, split it until the message at fault is alone."""
        messages = [message for _, message in good]
        try:
            offsets = await self._with_retries(
                batch, lambda: self._append(batch, messages), doing="append"
            )
        except StaleBatchError:
            raise
        except Exception as exc:  # noqa: BLE001 - a bug must cost one message, not the queue
            if len(good) == 1:
                await self._retry_or_dead_letter(batch, *good[0], exc)
                return
            middle = len(good) // 2
            await self._store(batch, good[:middle])  # first, to keep the order
            await self._store(batch, good[middle:])
            return
        has_options = any(map(_OPTIONS, messages))
        refused: list[Delivery] = []
        if has_options and REFUSED in offsets:
            refused = [
                one for (one, _), at in zip(good, offsets, strict=True) if at == REFUSED
            ]
            messages = [
                one for one, at in zip(messages, offsets, strict=True) if at != REFUSED
            ]
            offsets = [at for at in offsets if at != REFUSED]
        now_s = self._clock.wall_s()
        self._journal.stored(messages, offsets, at_s=now_s)
        if has_options:
            self._journal.keyed(messages, offsets, at_s=now_s)
        if self._tracing is not None:
            self._tracing.stored(messages, offsets, now_s=now_s)
        duplicates = offsets.count(None)
        self._stored.inc(len(offsets) - duplicates)
        self._count(Outcome.DUPLICATE, duplicates)
        for delivery in refused:
            letter = DeadLetter(_TOO_MANY_RETAINED, attempt_of(delivery))
            await self._dead_letter(batch, delivery, letter)

    def _append(
        self, batch: Batch, messages: Sequence[Message]
    ) -> Awaitable[Sequence[int | None]]:
        # No coroutine: it would be created for each batch.
        if self._events_problem() is not None and any(map(_is_tracked, messages)):
            self._require_room_for_events()
        if self._fencing is not None:
            return self._fencing.append(batch, messages)
        return self._inbox.append(messages)

    async def _retry_or_dead_letter(
        self,
        batch: Batch,
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
            await self._dead_letter(batch, delivery, choice)
            return
        publish = partial(
            self._publisher.retry,
            delivery,
            choice,
            deadline_s=message.deadline_s if message else None,
            timeout_s=CONFIRM_WITHIN_S,
        )

        def on_published() -> None:
            self._count(Outcome.RETRY)
            text = f"attempt {attempt} failed, the next is in {choice.delay_s:g} s"
            self._note(delivery, Stage.RETRIED, text)

        await self._hold(batch, delivery, Outcome.RETRY, publish, on_published)

    async def _dead_letter(
        self, batch: Batch, delivery: Delivery, letter: DeadLetter
    ) -> None:
        """Let the outbox publish a dead letter, which is confirmed before the ack."""
        publish = partial(
            self._publisher.dead_letter, delivery, letter, timeout_s=CONFIRM_WITHIN_S
        )
        at_s, reason = self._clock.wall_s(), letter.rejection.reason
        event = dead_event(delivery, reason, at_s=at_s)
        if event is not None:
            publish = partial(self._publish_and_report, publish, event)
            await self._wait_for_room(batch)
        on_published = partial(self._note_dead_letter, delivery, letter)
        await self._hold(batch, delivery, Outcome.DEAD_LETTER, publish, on_published)

    async def _publish_and_report(
        self, publish: Callable[[], Awaitable[None]], event: WorkerEvent
    ) -> None:
        """Publish a dead letter; then store that it is one, before the delivery is acked."""
        await publish()
        while True:
            try:
                await self._inbox.add_event(event)
            except StoreUnavailableError:  # the pipeline reports it
                await asyncio.sleep(_STORE_PAUSE_S)
            else:
                return

    async def _hold(
        self,
        batch: Batch,
        delivery: Delivery,
        outcome: Outcome,
        publish: Callable[[], Awaitable[None]],
        on_published: Callable[[], None],
    ) -> None:
        held = HeldDelivery(delivery, batch, outcome, publish, on_published)
        await self._with_retries(
            batch, lambda: self._outbox.add(held), doing=str(outcome)
        )

    def _note_dead_letter(self, delivery: Delivery, letter: DeadLetter) -> None:
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
            self._tracing.dead_lettered(delivery, letter, now_s=self._clock.wall_s())

    async def _with_retries(
        self, batch: Batch, work: Callable[[], Awaitable[T]], *, doing: str
    ) -> T:
        """
        Do `work`, again and again while the store or the broker is away.

        During the pauses no trial is recorded for the messages on trial: if an operator kills
        a waiting process, that must not count as a crash by these messages. Each attempt counts as
        a trial of its own.

        Raises:
            StaleBatchError: If the session of `batch` has ended. The batch is redelivered,
                and doing the work now would do it twice.

        """
        if not self._intake.is_current(batch):
            raise StaleBatchError
        try:
            return await work()
        except _RETRIED as exc:
            failure = exc
        # Built only after a failure: it costs more than settling a small batch.
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_RETRIED),
            wait=wait_random_exponential(multiplier=0.1, max=5),
            before_sleep=self._note_waiting,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    if attempt.retry_state.attempt_number == 1:
                        raise failure  # the first attempt was made above
                    if not self._intake.is_current(batch):
                        raise StaleBatchError
                    if self._trial_keys:
                        await self._inbox.note_trials(self._trial_keys)
                    return await work()
        finally:
            if self.is_waiting:
                self.problem = None
                log.info("pipeline.resumed", doing=doing)
        raise AssertionError(doing)  # the loop above only returns or raises

    def _note_waiting(self, state: RetryCallState) -> None:
        self._forget_trials()
        problem = str(state.outcome.exception() if state.outcome else None)
        if problem != self.problem:  # log it once, not at each attempt
            self.problem = problem
            log.warning("pipeline.waiting", error=problem)

    def _note(self, delivery: Delivery, stage: Stage, text: str) -> None:
        user = delivery.routing_key.decode(errors="backslashreplace")
        message_id = message_id_of(delivery)
        self._journal.note(
            JournalEntry(self._clock.wall_s(), stage, user, message_id, text=text)
        )

    def _count(self, outcome: Outcome, number: int = 1, *, reason: str = "") -> None:
        if number:
            self._metrics.settled.labels(outcome=outcome, reason=reason).inc(number)


def _is_tracked(message: Message) -> bool:
    return message.options is not None and message.options.tracking is not None
