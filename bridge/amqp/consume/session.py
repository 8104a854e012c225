"""
One session of the intake: a consumer for each queue, all on one connection.

A session ends with its connection: its deliveries are dropped, and the broker redelivers
them to the next one. When only a consumer is lost, its queue alone is consumed again.
`maintain` is the only task that replaces consumers: everything else makes them drain or
give up.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from operator import attrgetter
from typing import Final

import aiormq
import structlog
from aiormq.exceptions import ChannelNotFoundEntity

from bridge.amqp.connection import CONNECTION_LOST, BrokerConnection
from bridge.amqp.consume.consumer import Consumer, IntakeLimits
from bridge.amqp.frame_reader import DeliveryReader
from bridge.core.message import Delivery
from bridge.errors import BrokerUnavailableError
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)

_IS_DRAINING: Final = attrgetter("is_draining")
_TURNS_TO_READ: Final = 2
_CONNECTION: Final = 0  # the channel number of the connection itself
# More messages a second than RabbitMQ delivers from one queue.
_FASTEST_PER_S: Final = 50_000


@dataclass(slots=True)
class Batch:
    """
    Deliveries that are settled together, those of each queue oldest first.

    Not frozen, because creating a frozen one takes three times as long.

    Attributes:
        deliveries: At least one.
        session: The session that received them. Their tags mean nothing in another one.
        last_tags: Each consumer that received some of them, with the last of its tags.
        ended_queues: Queues of the old layout whose end marker is in this batch.

    """

    deliveries: Sequence[Delivery]
    session: "IntakeSession" = field(repr=False, compare=False)
    last_tags: Sequence[tuple[Consumer, int]] = field(repr=False, compare=False)
    ended_queues: list[str] = field(default_factory=list)

    @property
    def consumers(self) -> Sequence[Consumer]:
        """The consumers that received the deliveries, one for each queue."""
        return [consumer for consumer, _ in self.last_tags]

    def consumer_of(self, delivery: Delivery) -> Consumer:
        """Return the consumer that received `delivery`, which is in this batch."""
        return next(one for one in self.consumers if one.queue == delivery.queue)


class SessionState(IntEnum):
    """
    The states of a session, in their only order.

    Attributes:
        STARTING: Some queues are not consumed yet; others may bring deliveries.
        ACTIVE: All queues are consumed.
        DRAINING: The consumers drain; deliveries in flight can be taken and acked.
        ENDED: Nothing can be taken or acked any more; the broker redelivers the rest.

    """

    STARTING = 0
    ACTIVE = 1
    DRAINING = 2
    ENDED = 3


class IntakeSession:
    """
    Consumes queues over one connection until it has drained or something fails.

    Args:
        connection: Stays open at the end; its reader routes deliveries to the consumers.
        queues: The queues to consume.
        prefetch_count: How many deliveries of all queues together may be in flight,
            rounded up to the same number for each queue.
        arrived: Set when deliveries arrive.
        metrics: Counts deliveries.
        limits: How much may wait here and how large batches are.

    """

    def __init__(
        self,
        connection: BrokerConnection[DeliveryReader],
        queues: Sequence[str],
        *,
        prefetch_count: int,
        arrived: asyncio.Event,
        metrics: Metrics,
        limits: IntakeLimits,
    ) -> None:
        self.queues = queues
        self._connection = connection
        self._prefetch_count = prefetch_count
        self._arrived = arrived
        self._metrics = metrics
        self._limits = limits
        self._state = SessionState.STARTING
        self._failure = ""  # why the session has ended
        self._changed = asyncio.Event()
        self._consumers: list[Consumer] = []
        self._ended_queues: list[str] = []  # their end markers are acked
        # Queues whose consumer is being replaced, and since when they have none.
        self._replaced: dict[str, float] = {}
        self._takes = 0  # batches taken

    # --- state

    @property
    def state(self) -> SessionState:
        """The current state."""
        return self._state

    async def start(self) -> None:
        """
        Consume all queues.

        Raises:
            BrokerUnavailableError: If the broker is away or too slow.

        """
        for queue in self.queues:
            await self.consume(queue)
        if self._state is SessionState.STARTING:
            self._state = SessionState.ACTIVE

    def drain(self) -> None:
        """
        Begin to leave all queues; deliveries in flight can still be taken and acked.

        Each queue is handed over to other bridges as soon as its deliveries are settled.
        """
        if self._state < SessionState.DRAINING:
            self._state = SessionState.DRAINING
            for consumer in self._consumers:
                consumer.drain()
            self._changed.set()

    def fail(self, problem: str) -> None:
        """End the session: `watch` raises, and the broker redelivers what is in flight."""
        if self._state is not SessionState.ENDED:
            self._state = SessionState.ENDED
            self._failure = problem
            self._changed.set()

    def is_alive(self) -> bool:
        """
        Whether deliveries of this session can still be acked; asks the library.

        Once this was false it stays false, because the caller drops its batch. If a
        session went on without settling that batch, its queue would stand still.
        """
        if self._connection.is_lost:
            self.fail(CONNECTION_LOST)
        return self._state is not SessionState.ENDED

    async def watch(self) -> None:
        """
        Wait until the session fails.

        Raises:
            BrokerUnavailableError: Always, with the reason.

        """
        while self.is_alive():
            await self._wait_for_change()
        raise BrokerUnavailableError(f"consume {', '.join(self.queues)}", self._failure)

    async def maintain(self) -> None:
        """
        Replace consumers, delete emptied queues, and close the consumers of a drain.

        A consumer is replaced when it drains or has given up. Returns when all consumers
        are closed after `drain`. The session also drains when a queue was deleted: the
        next session then consumes what the layout says.

        Raises:
            BrokerUnavailableError: If the broker is away or too slow.

        """
        async with asyncio.TaskGroup() as tasks:
            while (
                self._state < SessionState.DRAINING or self._consumers or self._replaced
            ):
                self._drain_outdated()
                for consumer in self._consumers:
                    if consumer.was_cancelled:
                        consumer.drain()
                    is_leaving = consumer.is_draining or not consumer.is_alive()
                    if is_leaving and consumer.queue not in self._replaced:
                        self._replaced[consumer.queue] = time.monotonic()
                        tasks.create_task(
                            self._replace(consumer), name=f"replace {consumer.queue}"
                        )
                await self._delete_ended_queues()
                await self._wait_for_change()

    async def observe(self) -> None:
        """
        Look up, at intervals, how many messages are ready in the queues, until cancelled.

        A consumer gives up if the broker delivers none of them to it for `still_s`.
        """
        channel: aiormq.Channel | None = None
        while True:
            await asyncio.sleep(self._limits.look_s)
            for consumer in [one for one in self._consumers if one.is_single_active]:
                try:
                    if channel is None or channel.is_closed:
                        channel = await self._connection.open_channel(confirms=False)
                    async with self._connection.call(f"look up {consumer.queue}"):
                        reply = await channel.queue_declare(
                            consumer.queue, passive=True
                        )
                except BrokerUnavailableError:
                    continue  # a lost connection or queue is noticed elsewhere
                consumer.note_ready(reply.message_count or 0)
                if not consumer.in_flight and consumer.still_s > self._limits.still_s:
                    consumer.give_up("the broker delivers nothing, and messages wait")

    async def _wait_for_change(self) -> None:
        """Wait until a consumer may have changed, at most for the polling interval."""
        self._changed.clear()
        try:
            async with asyncio.timeout(self._limits.poll_s):
                await self._changed.wait()
        except TimeoutError:
            return

    # --- consumers

    @property
    def consumers(self) -> Sequence[Consumer]:
        """One for each queue, except for queues between two consumers."""
        return self._consumers

    @property
    def in_flight(self) -> int:
        """Deliveries that arrived and are not acked."""
        return sum(consumer.in_flight for consumer in self._consumers)

    @property
    def waiting(self) -> int:
        """Deliveries that wait to be taken."""
        return sum([consumer.waiting for consumer in self._consumers])

    @property
    def still_s(self) -> Mapping[str, float]:
        """Seconds since the last progress of each queue; 0 where nothing waits."""
        now_s = time.monotonic()
        unconsumed = {
            queue: now_s - since_s for queue, since_s in self._replaced.items()
        }
        return unconsumed | {one.queue: one.still_s for one in self._consumers}

    def stalls(self) -> list[str]:
        """Return one sentence for each queue that stands still although messages wait."""
        waiting = {one.queue: one.in_flight + one.ready for one in self._consumers}
        return [
            f"queue {queue}: {waiting[queue]} deliveries wait, nothing settled for {still_s:.0f} s"
            if queue in waiting
            else f"queue {queue} has not been consumed for {still_s:.0f} s"
            for queue, still_s in self.still_s.items()
            if still_s > self._limits.still_s
        ]

    @property
    def _prefetch_per_queue(self) -> int:
        return -(-self._prefetch_count // len(self.queues))

    def set_prefetch(self, count: int) -> None:
        """Let up to `count` deliveries be in flight, by replacing the consumers."""
        self._prefetch_count = count
        self._changed.set()

    async def consume(self, queue: str) -> None:
        """
        Start a consumer; the broker delivers to it once no earlier consumer is left.

        Raises:
            BrokerUnavailableError: If the broker is away or too slow.

        """
        channel = await self._connection.open_channel(confirms=False)
        consumer = Consumer(
            self._connection,
            channel,
            queue=queue,
            prefetch_count=self._prefetch_per_queue,
            limits=self._limits,
            arrived=self._arrived,
            changed=self._changed,
            metrics=self._metrics,
        )
        self._consumers.append(consumer)
        try:
            await consumer.start()
        except BrokerUnavailableError as exc:
            consumer.give_up(str(exc))
            await self._leave(consumer)
            raise
        if self._state is SessionState.DRAINING:  # since the consumer began to start
            consumer.drain()

    async def _leave(self, consumer: Consumer) -> None:
        try:
            await consumer.leave()
        finally:
            # If this is cancelled, the process ends: without these acks, what it has stored
            # would be stored again by the next one.
            consumer.flush_acks()
            self._consumers.remove(consumer)

    async def _replace(self, consumer: Consumer) -> None:
        """Leave a queue and consume it again, unless the session drains."""
        queue = consumer.queue
        await self._leave(consumer)
        self._replaced[queue] = time.monotonic()
        try:
            pause_s = self._limits.pause_s
            while self._state < SessionState.DRAINING:
                await asyncio.sleep(pause_s * (0.5 + random.random()))  # noqa: S311 - no secret
                if self._state < SessionState.DRAINING and await self._try(queue):
                    return
                pause_s = self._limits.poll_s
        finally:
            del self._replaced[queue]
            self._changed.set()

    async def _try(self, queue: str) -> bool:
        """Consume `queue`, and return whether that worked; drain if it was deleted."""
        try:
            await self.consume(queue)
        except BrokerUnavailableError as exc:
            if not self.is_alive():
                raise
            if isinstance(exc.__cause__, ChannelNotFoundEntity):
                self.drain()
            log.warning("consumer.not_started", queue=queue, problem=str(exc))
            return False
        return True

    def _drain_outdated(self) -> None:
        """Let consumers that have the wrong prefetch drain, to be replaced."""
        fitting = [c.fitting_prefetch for c in self._consumers if c.fitting_prefetch]
        if fitting and min(fitting) < self._prefetch_per_queue:
            # Lower the prefetch until the next session.
            self._prefetch_count = min(fitting) * len(self.queues)
            log.warning("intake.large_messages", prefetch=self._prefetch_count)
        for consumer in self._consumers:
            if consumer.prefetch_count != self._prefetch_per_queue:
                consumer.drain()

    async def _delete_ended_queues(self) -> None:
        ended, self._ended_queues = self._ended_queues, []
        for queue in dict.fromkeys(ended):
            await self._delete_if_empty(queue)

    async def _delete_if_empty(self, queue: str) -> None:
        """
        Delete a queue of the old layout, unless messages arrived after its end marker.

        RabbitMQ does not support `if-empty` for quorum queues, so the queue is found empty
        twice, one polling interval apart.
        """
        ours = [one for one in self._consumers if one.queue == queue]
        async with self._connection.call(f"delete {queue}"):
            channel = await self._connection.open_channel(confirms=False)
            try:
                for pause_s in (self._limits.poll_s, 0.0):
                    reply = await channel.queue_declare(queue, passive=True)
                    if reply.message_count or any(one.in_flight for one in ours):
                        break
                    await asyncio.sleep(pause_s)
                else:
                    await channel.queue_delete(queue)
                    log.info("shards.emptied", queue=queue)
            except ChannelNotFoundEntity:
                return  # another bridge received an end marker, too
            await channel.close()

    # --- deliveries

    async def collect(self, seconds: float) -> None:
        """
        Let deliveries collect in the socket: reading all of them at once is cheaper.

        A small prefetch shortens the wait, because it is all that can collect.
        """
        reader = self._connection.reader
        reader.pause(_CONNECTION)
        try:
            await asyncio.sleep(min(seconds, self._prefetch_per_queue / _FASTEST_PER_S))
        finally:
            reader.resume(_CONNECTION)
        # Reading begins in the next turn of the loop. Without these turns, a batch would be
        # what came before the wait, and everything in the socket would wait once more.
        for _ in range(_TURNS_TO_READ):
            await asyncio.sleep(0)

    def take_batch(self) -> Batch | None:
        """Take the oldest waiting deliveries of each queue; ``None`` if there are none."""
        if self._state is SessionState.ENDED:
            return None
        limits = self._limits
        if len(self._consumers) == 1:
            (consumer,) = self._consumers
            if not consumer.waiting:
                return None
            taken = consumer.take(
                max_deliveries=limits.batch_deliveries, max_bytes=limits.batch_bytes
            )
            return Batch(taken, self, ((consumer, taken[-1].tag),))
        return self._take_from_all(limits.batch_deliveries, limits.batch_bytes)

    def _take_from_all(self, max_deliveries: int, max_bytes: int) -> Batch | None:
        taken: list[Delivery] = []
        last_tags: list[tuple[Consumer, int]] = []
        consumers = self._consumers
        self._takes += 1
        if self._takes % 2:  # another bridge waits for the queue of a draining consumer
            consumers = sorted(consumers, key=_IS_DRAINING, reverse=True)
        for consumer in consumers:
            # Suspects make a batch of their own: the acks of other queues must not wait.
            is_suspect = consumer.next_is_suspect
            if not consumer.waiting or (last_tags and is_suspect):
                continue
            if last_tags and (max_deliveries <= 0 or max_bytes <= 0):
                break
            part = consumer.take(max_deliveries=max_deliveries, max_bytes=max_bytes)
            taken += part
            max_deliveries -= len(part)
            max_bytes -= sum([len(delivery.body) for delivery in part])
            last_tags.append((consumer, part[-1].tag))
            if is_suspect:
                break
        if not last_tags:
            return None
        # Start with another consumer the next time, so that no queue starves.
        first, _ = last_tags[0]
        self._consumers.remove(first)
        self._consumers.append(first)
        return Batch(taken, self, last_tags)

    def ack(self, batch: Batch) -> bool:
        """
        Ack `batch` except held deliveries.

        Returns:
            False if the broker redelivers some of it instead.

        """
        if self._state is SessionState.ENDED:
            return False
        is_acked = True
        for consumer, tag in batch.last_tags:
            is_acked &= consumer.ack(tag)
        if not is_acked:
            return False
        if batch.ended_queues:
            self._ended_queues += batch.ended_queues
            self._changed.set()
        return True

    def is_current(self, batch: Batch) -> bool:
        """
        Whether all of `batch` can still be acked, as far as is known.

        This is asked before each write, so it reads states only. `watch` and `maintain`
        set them at once when the library reports a loss, or when an ack cannot be sent.
        """
        if self._state is SessionState.ENDED:
            return False
        for consumer, _ in batch.last_tags:  # noqa: SIM110 - a generator costs twice as much
            if consumer.is_closed:
                return False
        return True

    def put_back(self, batch: Batch) -> int:
        """
        Let the deliveries of `batch` be taken again that can still be acked, and are not.

        Their queues would stand still otherwise: the caller drops a batch that is not
        current because another of its consumers has given up.

        Returns:
            The number of deliveries that the broker does not redeliver.

        """
        count = 0
        for consumer in batch.consumers:
            if self.is_alive() and consumer.is_alive():
                part = [one for one in batch.deliveries if one.queue == consumer.queue]
                consumer.put_back(part)
                count += len(part)
        return count

    def flush_acks(self) -> None:
        """Send all acks that wait."""
        for consumer in self._consumers:
            consumer.flush_acks()
