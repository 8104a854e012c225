"""
The operations on dead letters: browse, count, redrive and discard.

Each operation runs one session on the queue or several (browser.py), one at a time. Browsing
keeps no bodies; a redrive keeps a bounded number of them between reading a message and its
confirm.

A redrive publishes to the exchange of the inbound queue, as a retry does, so other consumers
of `<ns>.messages` do not receive the message a second time. The order is publish, confirm,
ack: a process that dies in between leaves the dead letter in the queue, and the next redrive
publishes it again with the same id, by which the inbox recognizes the duplicate within
BRIDGE_DEDUPE_WINDOW.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final
from uuid import uuid4

from bridge.amqp.connection import BrokerAddress
from bridge.amqp.dead_letters.batches import (
    JobProgress,
    PendingDeadLetter,
    RedrivePace,
    collect,
    concurrent_groups,
)
from bridge.amqp.dead_letters.browser import BrowseSession, DeadLetterBrowser
from bridge.amqp.dead_letters.cache import CacheRecording, DeadLetterCache
from bridge.amqp.dead_letters.delivery_limit import DELIVERIES_MAX, DeliveryLimitGuard
from bridge.amqp.publish.publisher import Publisher
from bridge.core.broker_names import BrokerNames
from bridge.core.contracts.operator.dead_letters import DeadLetterSelection, Redrive
from bridge.core.dead_letter import (
    DeadLetterCount,
    DeadLetterReader,
    StoredDeadLetter,
    original_expiration,
    readable,
    redriven_id,
    routing_key_of,
    was_published_to,
)
from bridge.core.journal import Journal, JournalEntry
from bridge.core.message import Delivery, message_id_of
from bridge.core.properties import header_bytes
from bridge.core.settlement import redrive_properties
from bridge.enums import DeadLetterReason, Header, Stage
from bridge.errors import BrokerUnavailableError, PublishRefusedError, first_error

# How much a job does before it releases the lock, so that other operations get a turn.
_BATCH_S: Final = 5.0
_BATCH_MAX: Final = 10_000
# The age of the oldest dead letter costs at most one session per this time.
_AGE_EVERY_S: Final = 60.0
# Ids of identical messages matter where ids are named, and a request names no more than this.
_REMOVED_MAX: Final = 10_000

Take = Callable[[StoredDeadLetter], bool]
Batch = Sequence[PendingDeadLetter]
# Returns the part of the batch that it has removed from the queue.
Work = Callable[[BrowseSession, Batch], Awaitable[Batch]]


class DeadLetterQueue:
    """The dead-letter queue of one namespace."""

    def __init__(
        self,
        address: BrokerAddress,
        names: BrokerNames,
        *,
        publisher: Publisher,
        journal: Journal | None = None,
        deliveries_max: int = DELIVERIES_MAX,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names = names
        self._publisher = publisher
        self._journal = journal or Journal()
        self._now = now
        self._cache = DeadLetterCache(now)
        self._age_at_s = float("-inf")
        self._browser = DeadLetterBrowser(address, names.dead)
        self._limit = DeliveryLimitGuard(names.dead, now, limit=deliveries_max)

    # --- browse

    @property
    def browsed_depth(self) -> int | None:
        """
        How many dead letters there are while a session has taken some of them.

        ``None`` without a session: then the broker's own count is right. Dead letters that
        arrived since the session began are not included.
        """
        return self._browser.depth

    async def browse(self, begin: Callable[[], Take]) -> DeadLetterCount:
        """
        Pass every dead letter, oldest first, to a function until it has enough.

        Args:
            begin: Returns that function, which returns whether it wants another one. The
                cached head of the queue is passed first; if it does not suffice, `begin` is
                called again and all of the queue is passed.

        Returns:
            How many were passed, and how many there are.

        Raises:
            BrokerUnavailableError: If the broker is unreachable or too slow, a job holds the
                queue for too long, or the queue was browsed so often that RabbitMQ would
                soon drop messages.

        Cancellation:
            Safe; the messages return to the queue.

        """
        async with self._browser.lock():
            if not self._cache.is_empty:
                depth = await self._browser.count_ready()
                head = self._cache.head(depth)
                passed = _pass(head, begin())
                if passed is not None or len(head) >= depth:
                    return DeadLetterCount(
                        len(head) if passed is None else passed, depth
                    )
            return await self._browse_queue(begin())

    async def _browse_queue(self, take: Take) -> DeadLetterCount:
        """Browse without the cache, and fill it. The caller holds the lock."""
        recording = CacheRecording()
        passed = 0
        wants_more = True

        def record(stored: StoredDeadLetter, _delivery: Delivery) -> bool:
            nonlocal passed, wants_more
            recording.add(stored)
            if wants_more:
                passed += 1
                wants_more = take(stored)
            return wants_more or not recording.is_block_complete

        depth = await self._read(record)
        self._cache.fill(recording, depth)
        return DeadLetterCount(passed, depth)

    async def _read(self, take: Callable[[StoredDeadLetter, Delivery], bool]) -> int:
        """
        Read the queue from its head until `take` has enough. The caller holds the lock.

        `take` must not keep the deliveries. Returns the depth of the queue.
        """
        self._limit.refuse_near_limit()
        reader = DeadLetterReader()

        def read(delivery: Delivery) -> bool:
            if not reader.count:
                self._limit.inspect(delivery)
            return take(reader.read(delivery), delivery)

        async with self._browser.session() as session:
            await session.read(read, at_most=session.depth)
            return session.depth

    async def oldest_s(self, depth: int) -> float | None:
        """
        Return the age in seconds of the oldest of `depth` dead letters.

        It comes from the cache or from a session that takes one message, at most once a
        minute, because RabbitMQ counts every session. ``None`` if there is no dead letter, it
        has no time, another operation holds the queue, or the broker is unreachable.

        Cancellation:
            As `browse`.

        """
        head = self._cache.head(depth)
        if not head and depth and not self._browser.is_busy:
            if self._now() < self._age_at_s:
                return None
            self._age_at_s = self._now() + _AGE_EVERY_S
            with suppress(BrokerUnavailableError):
                await self.browse(lambda: lambda _stored: False)
            head = self._cache.head(depth)
        dead_s = head[0].dead_s if head else None
        return None if dead_s is None else max(0.0, time.time() - dead_s)

    async def find(
        self, dead_letter_id: str
    ) -> tuple[StoredDeadLetter, Delivery] | None:
        """Return one dead letter with its body; ``None`` if absent. Errors as `browse`."""
        found: tuple[StoredDeadLetter, Delivery] | None = None

        def take(stored: StoredDeadLetter, delivery: Delivery) -> bool:
            nonlocal found
            if stored.id == dead_letter_id:
                found = stored, delivery
            return found is None

        async with self._browser.lock():
            await self._read(take)
        return found

    async def count(self, selection: DeadLetterSelection) -> DeadLetterCount:
        """Count the dead letters that `selection` selects. Errors as `browse`."""
        matches = selection.matcher()
        at_most = None if selection.ids is None else len(set(selection.ids))
        matching = 0

        def take(stored: StoredDeadLetter, _delivery: Delivery) -> bool:
            nonlocal matching
            matching += matches(stored)
            return at_most is None or matching < at_most

        async with self._browser.lock():
            if selection.all:  # without a session, which RabbitMQ would count
                depth = await self._browser.count_ready()
                return DeadLetterCount(depth, depth)
            depth = await self._read(take)
        return DeadLetterCount(matching, depth)

    # --- redrive and discard

    async def redrive(
        self, request: Redrive, counted: DeadLetterCount, *, progress: JobProgress
    ) -> None:
        """
        Publish the selected dead letters to the inbound queue again.

        Messages of one user are published in their order. A message that the broker refuses
        stays in the dead-letter queue and counts as failed.

        Args:
            request: Which ones, and the highest rate.
            counted: The result of `count`. Dead letters that arrived later are not touched,
                also those that come back at once because their cause still exists.
            progress: Records each step.

        Raises:
            BrokerUnavailableError: If the broker is unreachable or too slow.

        Cancellation:
            Messages that were confirmed have left the queue, except those in flight at
            that moment: a later redrive repeats them, and the inbox recognizes the repetition.

        """
        pace = RedrivePace(request.rate_per_s, progress, self._now)

        async def work(session: BrowseSession, batch: Batch) -> Batch:
            sent: list[PendingDeadLetter] = []
            for group in concurrent_groups(batch, at_most=pace.group_size):
                await pace.wait(len(group))
                if progress.is_cancelled:
                    break
                sent += await self._send(session, group, progress)
            return sent

        batch_max = max(1, min(_BATCH_MAX, int(request.rate_per_s * _BATCH_S)))
        await self._work(request, counted, work, progress, batch_max=batch_max)

    async def discard(
        self,
        request: DeadLetterSelection,
        counted: DeadLetterCount,
        *,
        progress: JobProgress,
    ) -> None:
        """Remove the selected dead letters. Arguments and errors as `redrive`."""

        async def work(session: BrowseSession, batch: Batch) -> Batch:
            await session.ack([pending.delivery.tag for pending in batch])
            progress.advance(done=len(batch))
            return batch

        await self._work(request, counted, work, progress, batch_max=_BATCH_MAX)

    async def _work(
        self,
        selection: DeadLetterSelection,
        counted: DeadLetterCount,
        work: Work,
        progress: JobProgress,
        *,
        batch_max: int,
    ) -> None:
        """Run one session per batch: memory is bounded and other operations get a turn."""
        matches = selection.matcher()
        left, depth = counted.matching, counted.depth
        removed: set[str] = set()
        failed: set[str] = set()
        while left > 0 and depth > 0 and not progress.is_cancelled:
            batch: list[PendingDeadLetter] = []
            async with (
                self._browser.lock(within_s=None),
                self._browser.session() as session,
            ):
                take = collect(
                    batch,
                    DeadLetterReader(removed),
                    lambda stored: stored.id not in failed and matches(stored),
                    at_most=min(left, batch_max),
                )
                await session.read(take, at_most=depth)
                if not batch:
                    return
                # Removing one of several identical messages changes the ids of the others.
                self._cache.clear()
                self._limit.reset()
                # The head of the queue only loses what this job removes.
                done = {pending.id for pending in await work(session, batch)}
                depth -= len(done)
            left -= len(batch)
            failed.update(pending.id for pending in batch if pending.id not in done)
            if len(removed) < _REMOVED_MAX:
                removed |= done

    async def _send(
        self, session: BrowseSession, group: Batch, progress: JobProgress
    ) -> Batch:
        """Publish all of `group` concurrently, and ack those that the broker confirmed."""
        confirmed: list[PendingDeadLetter] = []
        refused: list[str] = []

        async def send_one(pending: PendingDeadLetter) -> None:
            try:
                await self._publish(pending)
            except PublishRefusedError as exc:
                refused.append(str(exc))
            else:
                confirmed.append(pending)

        failure: BaseException | None = None
        began_s = time.time()
        try:
            async with asyncio.TaskGroup() as tasks:
                for pending in group:
                    tasks.create_task(send_one(pending), name="redrive")
        except* BrokerUnavailableError as errors:
            failure = first_error(errors)
        if confirmed:
            await session.ack([pending.delivery.tag for pending in confirmed])
        for pending in confirmed:
            self._note(pending.delivery, began_s)
        progress.advance(
            done=len(confirmed),
            failed=len(refused),
            error=refused[-1] if refused else None,
        )
        if failure is not None:
            raise failure
        return confirmed

    async def _publish(self, pending: PendingDeadLetter) -> None:
        delivery = pending.delivery
        routing_key = routing_key_of(delivery)
        # Other programs may have queues bound to the exchange of messages.
        exchange = self._names.inbound
        reason = header_bytes(delivery.properties.headers, Header.REASON)
        if reason == DeadLetterReason.BAD_ROUTE.encode():
            # The routing key may be the name of a queue, and would be stored as a user.
            problem = "it names no single user: publish its body to each user instead"
            raise PublishRefusedError(exchange, problem)
        if was_published_to(delivery, self._names.control):
            # It would be stored for the user `revoke`. Its headers may be forged, so it is not
            # published as a command either.
            problem = f"it is a command: publish it to {self._names.control} again"
            raise PublishRefusedError(exchange, problem)
        try:
            routing_key.decode()
        except UnicodeDecodeError as exc:
            # The publisher would escape it, and the result may be the key of another user.
            problem = f"the routing key is not UTF-8 at byte {exc.start}, so it can never be delivered"
            raise PublishRefusedError(exchange, problem) from exc
        properties = redrive_properties(
            delivery,
            redriven_id=redriven_id(delivery, pending.id) or uuid4().hex,
            expiration=original_expiration(delivery.properties),
            max_bytes=self._publisher.max_properties_bytes,
        )
        await self._publisher.publish(
            exchange, routing_key, body=delivery.body, properties=properties
        )

    def _note(self, delivery: Delivery, at_s: float) -> None:
        user = readable(routing_key_of(delivery))
        message_id = message_id_of(delivery)
        self._journal.note(JournalEntry(at_s, Stage.REDRIVEN, user, message_id))


def _pass(head: Sequence[StoredDeadLetter], take: Take) -> int | None:
    """Return how many were passed until `take` had enough; ``None`` if it wants more."""
    for passed, stored in enumerate(head, start=1):
        if not take(stored):
            return passed
    return None
