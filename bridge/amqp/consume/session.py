"""
One session of the intake: a consumer for each of its queues, on one connection.

Each consumer has a channel of its own, because a queue is given away by closing the channel:
what may still be in flight goes back in order, and only then is the next consumer made active.
A consumer is cancelled only where nothing is: it is followed at once. A nack brings disorder.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from aiormq.exceptions import ChannelNotFoundEntity

from bridge.amqp.connection import BrokerConnection, broker_call
from bridge.amqp.consume.consumer import BatchLimits, ConsumerSession
from bridge.amqp.frame_reader import DeliveryReader
from bridge.core.message import Delivery
from bridge.errors import BridgeError, BrokerUnavailableError, first_error
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)

_LOOK_EACH_S: Final = 1.0

Work = Callable[[], Coroutine[Any, Any, None]]


@dataclass(slots=True)
class Batch:
    """
    Deliveries that are settled together, those of one queue oldest first.

    Its session is known to `Intake` only: tags mean nothing on another one. Nobody changes
    one; not frozen all the same, because that would take three times as long to make.

    Attributes:
        deliveries: At least one.
        session: That brought them.
        last: For each queue that they are from, who consumed it and the last tag.

    """

    deliveries: Sequence[Delivery]
    session: "IntakeSession" = field(repr=False, compare=False)
    last: Sequence[tuple[ConsumerSession, int]] = field(repr=False, compare=False)

    @property
    def consumers(self) -> Sequence[ConsumerSession]:
        """Who brought them, one for each queue."""
        return [consumer for consumer, _ in self.last]


class IntakeSession:
    """
    Consumes queues over one connection, until one of them fails: then all of it has failed.

    Args:
        connection: Lives on; its reader is told who takes what.
        queues: To consume, each by itself.
        prefetch_count: How many deliveries of all of them together may be in flight,
            rounded up to the same number for each.
        timeout_s: For each single call to the broker.
        arrived: Set when there is something to take.
        limits: How much may wait here.
        may_vanish: Whether a queue that is gone ends the session in order, as `leave`
            does, and not as a failure.

    """

    def __init__(
        self,
        connection: BrokerConnection[DeliveryReader],
        queues: Sequence[str],
        *,
        prefetch_count: int,
        timeout_s: float,
        arrived: asyncio.Event,
        metrics: Metrics,
        limits: BatchLimits,
        may_vanish: bool = False,
    ) -> None:
        self.queues = queues
        self._limits = limits
        self._prefetch_count = prefetch_count
        self._connection = connection
        self._may_vanish = may_vanish
        self._timeout_s = timeout_s
        self._arrived = arrived
        self._metrics = metrics
        self._look = asyncio.Event()
        self._failure: str | None = None
        self._consumers: list[ConsumerSession] = []
        self._is_closing = False
        self._marked: list[str] = []
        self._has_new_prefetch = False

    @property
    def prefetch_count(self) -> int:
        """Of all consumers together; a new one makes new consumers, one after the other."""
        return self._prefetch_count

    @prefetch_count.setter
    def prefetch_count(self, count: int) -> None:
        if count != self._prefetch_count:
            self._prefetch_count = count
            self._has_new_prefetch = True
            self._look.set()

    @property
    def consumers(self) -> Sequence[ConsumerSession]:
        """One for each queue, but for those that are between two."""
        return self._consumers

    @property
    def in_flight(self) -> int:
        """Deliveries that came and are not acked."""
        return sum(consumer.in_flight for consumer in self._consumers)

    @property
    def oldest_s(self) -> float | None:
        """Seconds since the oldest delivery in flight came; ``None`` if none is."""
        ages = [consumer.oldest_s for consumer in self._consumers]
        return max((age for age in ages if age is not None), default=None)

    @property
    def waiting(self) -> int:
        """Deliveries that wait to be taken out."""
        return sum([consumer.waiting for consumer in self._consumers])

    def has_failed(self) -> bool:
        """Say whether it is being taken down: all that it has brought comes again."""
        return self._failure is not None

    def problem(self) -> str | None:
        """Say what is wrong with the session, ``None`` if nothing is."""
        if self._failure is not None:
            return self._failure
        for consumer in self._consumers:
            if consumer.parting.locked():
                continue  # whoever parts with it hears of it
            problem = consumer.problem()
            if problem is None or (self._may_vanish and consumer.was_cancelled):
                continue
            return problem
        return None

    def fail(self, problem: str) -> None:
        """Let `watch` end the session."""
        self._failure = problem
        self._look.set()

    async def start(self) -> None:
        """Consume all queues."""
        for queue in self.queues:
            await self.consume(queue)

    async def consume(self, queue: str) -> None:
        """Consume one queue; if others do so already, wait at the end of their line."""
        async with broker_call("open a channel", timeout_s=self._timeout_s):
            channel = await self._connection.open_channel(confirms=False)
        reader = self._connection.reader
        consumer = ConsumerSession(
            channel,
            queue=queue,
            timeout_s=self._timeout_s,
            arrived=self._arrived,
            look=self._look,
            metrics=self._metrics,
            write=self._connection.write,
            reader=reader,
            waiting_max_bytes=self._limits.waiting_bytes,
        )
        reader.subscribe(consumer.channel_number, queue, consumer.take_in)
        self._consumers.append(consumer)
        await consumer.start(-(-self.prefetch_count // len(self.queues)))
        if self._is_closing:  # while we were starting
            consumer.leave()

    async def give_away(self, consumer: ConsumerSession) -> None:
        """
        Let the next in the line have its queue, and leave nothing older behind.

        All that the broker has given is settled before that, however long it takes.
        """
        consumer.leave()
        while consumer in self._consumers:
            await consumer.settled()
            await self._part_with(consumer)

    async def _part_with(self, consumer: ConsumerSession) -> None:
        """Close its channel, unless something is in flight."""
        async with consumer.parting:
            if consumer not in self._consumers or consumer.in_flight:
                return
            if not consumer.is_full and await consumer.brings_more():
                return
            self._consumers.remove(consumer)
            # Before it is closed: then its number is free, and another may have it at once.
            self._connection.reader.unsubscribe(consumer.channel_number)
            await consumer.close()

    def leave(self) -> None:
        """
        Be about to go from all queues; what is in flight can still be taken and acked.

        Each queue is given away when that is done, so that others go on with it.
        """
        self._is_closing = True
        for consumer in self._consumers:
            consumer.leave()
        self._look.set()

    def tell(self) -> None:
        """Send all acks that wait for others."""
        for consumer in self._consumers:
            consumer.tell()

    def take_out(self) -> Batch | None:
        """
        Hand over the oldest of what waits in each queue.

        ``None`` if nothing does, or the session has failed: that comes again.
        """
        if self._failure is not None:
            return None
        limits = self._limits
        if len(self._consumers) == 1:
            (consumer,) = self._consumers
            if not consumer.waiting:
                return None
            taken = consumer.take_out(limits)
            return Batch(taken, self, ((consumer, taken[-1].tag),))
        return self._take_from_all(limits)

    def _take_from_all(self, limits: BatchLimits) -> Batch | None:
        all_taken: list[Delivery] = []
        last: list[tuple[ConsumerSession, int]] = []
        body_bytes = 0
        for consumer in self._consumers:
            if not consumer.waiting:
                continue
            left = BatchLimits(
                limits.deliveries - len(all_taken), limits.body_bytes - body_bytes
            )
            if all_taken and (left.deliveries <= 0 or left.body_bytes <= 0):
                break
            taken = consumer.take_out(left)
            all_taken += taken
            body_bytes += sum(len(delivery.body) for delivery in taken)
            last.append((consumer, taken[-1].tag))
        if not last:
            return None
        # Whoever was first comes last the next time, so that none starves.
        self._consumers.append(self._consumers.pop(0))
        return Batch(all_taken, self, last)

    def pass_marks(self, queues: Sequence[str]) -> None:
        """Say that a mark of these queues, and all before it, is acked."""
        self._marked += queues
        self._look.set()

    async def watch(self) -> None:
        """
        Wait until something is wrong.

        Raises:
            BrokerUnavailableError: Always, with what it is.

        """
        while (problem := self.problem()) is None:
            await self._wait_for_news()
        self._failure = problem
        raise BrokerUnavailableError(f"consume {', '.join(self.queues)}", problem)

    async def do_chores(self) -> None:
        """
        Apply a new prefetch, delete queues that were marked, end in order.

        Returns when nothing is in flight after `leave`, or after one of the queues was
        gone, if they may vanish; else never.

        Raises:
            BrokerUnavailableError: If the broker is away or too slow.

        """
        while True:
            if not self._is_closing:
                self._allow_for_large()
            if self._has_new_prefetch and not self._is_closing:
                self._has_new_prefetch = False
                await self._consume_anew()
            marked, self._marked = self._marked, []
            for queue in dict.fromkeys(marked):
                await self._delete_if_empty(queue)
            if self._may_vanish and any(one.was_cancelled for one in self._consumers):
                self.leave()
            if self._is_closing:
                for consumer in list(self._consumers):
                    await self._part_with(consumer)
            if not self._consumers:
                return
            await self._wait_for_news()

    def _allow_for_large(self) -> None:
        """Lower the prefetch, until the next session, where too many bytes have come."""
        fitting = [one.fitting for one in self._consumers if one.fitting is not None]
        if fitting:
            self.prefetch_count = min(fitting) * len(self.queues)
            self._has_new_prefetch = True
            log.warning("intake.large_messages", prefetch=self.prefetch_count)

    async def _consume_anew(self) -> None:
        for consumer in list(self._consumers):
            # One that is given away is consumed anew by whoever does that.
            if consumer.fitting is not None or not consumer.is_leaving:
                await self.give_away(consumer)
                await self.consume(consumer.queue)

    async def _delete_if_empty(self, queue: str) -> None:
        """
        Delete a queue of before, whose mark came out, if nothing came behind it.

        By the looks of it twice: the broker cannot be told "if empty" of such a queue.
        """
        ours = [one for one in self._consumers if one.queue == queue]
        async with broker_call(f"delete {queue}", timeout_s=self._timeout_s):
            channel = await self._connection.open_channel(confirms=False)
            try:
                for pause_s in (_LOOK_EACH_S, 0.0):
                    told = await channel.queue_declare(queue, passive=True)
                    if told.message_count or any(one.in_flight for one in ours):
                        break
                    await asyncio.sleep(pause_s)
                else:
                    await channel.queue_delete(queue)
                    log.info("shards.emptied", queue=queue)
            except ChannelNotFoundEntity:
                return  # another bridge had a mark of it, too
            await channel.close()

    async def _wait_for_news(self) -> None:
        """Wait until something may have happened to a consumer, a second at most."""
        self._look.clear()
        try:
            # The library reports what it notices; the look once a second is for what it
            # does not.
            async with asyncio.timeout(_LOOK_EACH_S):
                await self._look.wait()
        except TimeoutError:
            return


async def first_to_end(works: Sequence[Work]) -> None:
    """
    Run all until one of them ends, and end the others.

    Raises:
        BridgeError: What one of them raised.

    Cancellation:
        Passed on, also where one of them fails in the same moment.

    """
    task = asyncio.current_task()
    asked_before = task.cancelling() if task else 0
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work()) for work in works]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
    except* BridgeError as failures:
        failure = first_error(failures)
    else:
        return
    if task is not None and task.cancelling() > asked_before:
        # A group with a failure forgets that it was cancelled (before Python 3.13), and
        # who asked for it would wait for ever for a session that is begun anew.
        raise asyncio.CancelledError
    raise failure
