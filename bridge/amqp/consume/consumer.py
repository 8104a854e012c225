"""
One consumer of one queue, on a channel of its own, as a state machine.

    STARTING ─▶ ACTIVE ─▶ DRAINING ─▶ DISCARDING ─▶ CLOSED

A consumer only moves forward, and may skip states. A queue is handed over to the next
consumer by closing the channel after everything in flight has been acked. Two other ways
of leaving a queue lose the order of messages: basic.cancel makes the broker activate the
next single active consumer while older deliveries are still in flight here, and a nack
returns deliveries behind others that were returned before (docs/decisions).

Every state but ACTIVE has a deadline: STARTING the limit of a call, DRAINING and DISCARDING
`stall_s` without progress. Then the consumer gives up (`give_up`): it sends the acks it
has and closes its channel, and the broker redelivers the rest to the next consumer. That
keeps the order unless the next prefetch is smaller.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice, takewhile
from struct import Struct
from typing import Final

import aiormq
import structlog
from aiormq.exceptions import ChannelNotFoundEntity

from bridge.amqp.connection import (
    CONNECTION_LOST,
    BrokerConnection,
    broker_call,
    close_reason,
    ignore_message,
)
from bridge.amqp.frame_reader import DeliveryReader
from bridge.core.message import Delivery
from bridge.core.settlement import SUSPECTS_TOGETHER, is_suspect
from bridge.errors import BrokerUnavailableError
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)

# How long an ack may wait to be sent together with the next one. Each ack is an entry in
# the log of a quorum queue, on the disks of a majority of nodes, and new messages wait
# behind it: a bridge that acks every small batch separately slows itself down. If the
# process is killed meanwhile, the deliveries are repeated, as after any crash.
_ACK_DELAY_S: Final = 0.01

# Basic.Ack in its frame: AMQP 0-9-1 sections 4.2.3 and 1.8.3.13.
_ACK: Final = Struct(">BHIIQBB").pack
_METHOD: Final = 1
_ACK_BYTES: Final = 13
_BASIC_ACK: Final = 60 << 16 | 80
_END: Final = 0xCE


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """
    Bounds on batches and on waiting deliveries. A batch may hold one delivery of any size.

    Attributes:
        batch_deliveries: The most deliveries in one batch; newer ones wait until the
            whole batch is settled.
        batch_bytes: The most bytes of bodies in one batch.
        waiting_bytes: The most bytes of bodies that wait here for one queue. Prefetch
            bounds their number alone, which is not enough if messages are large.
        held_deliveries: The most deliveries of one queue that are held; at most a quarter
            of the prefetch, so that the others still flow.
        held_bytes: The most bytes of bodies that are held.
        drain_s: How long a draining consumer still accepts deliveries.
        look_s: How often the number of ready messages is looked up.
        still_s: After how long without progress a queue on which deliveries wait is
            reported as standing still.
        stall_s: How long a draining consumer waits for its deliveries to be settled
            without any progress, and how long the broker may fail to confirm a consumer.
        pause_s: The mean pause before a queue that was left is consumed again; the next
            consumer is active by then.
        poll_s: How long a change that the library does not report may go unnoticed.

    """

    batch_deliveries: int = 2000
    batch_bytes: int = 4 << 20
    waiting_bytes: int = 64 << 20
    held_deliveries: int = 100
    held_bytes: int = 16 << 20
    drain_s: float = 5.0
    look_s: float = 5.0
    still_s: float = 10.0
    stall_s: float = 5.0
    pause_s: float = 0.2
    poll_s: float = 1.0


class ConsumerState(IntEnum):
    """
    The states of a consumer, in their only order.

    Attributes:
        STARTING: The broker has not confirmed basic.consume; deliveries may arrive.
        ACTIVE: Deliveries are handed out, and acks are sent.
        DRAINING: Deliveries are handed out, but acks are withheld: the broker stops
            delivering once `prefetch_count` deliveries are in flight.
        DISCARDING: New deliveries are dropped unread; they return to the queue when the
            channel closes. Older ones are still handed out.
        CLOSED: Nothing can be taken or acked any more: all deliveries are settled, or the
            broker redelivers the rest. The channel is closed or being closed.

    """

    STARTING = 0
    ACTIVE = 1
    DRAINING = 2
    DISCARDING = 3
    CLOSED = 4


class Consumer:
    """
    Consumes one queue and keeps its deliveries until they are taken and acked.

    Args:
        connection: The connection of `channel`.
        channel: Used by this consumer alone; closed by `leave`.
        queue: The queue to consume.
        prefetch_count: How many deliveries may be in flight.
        limits: How much may wait here, and how long a drain accepts deliveries.
        arrived: Set when deliveries arrive.
        changed: Set when the state, the channel or the settlement of deliveries changes.
        metrics: Counts deliveries.

    """

    def __init__(
        self,
        connection: BrokerConnection[DeliveryReader],
        channel: aiormq.Channel,
        *,
        queue: str,
        prefetch_count: int,
        limits: IntakeLimits,
        arrived: asyncio.Event,
        changed: asyncio.Event,
        metrics: Metrics,
    ) -> None:
        self.queue = queue
        self.prefetch_count = prefetch_count
        # The prefetch at which waiting deliveries stay within their limit of bytes; set
        # when they have exceeded it. The consumer drains and has to be replaced then.
        self.fitting_prefetch: int | None = None
        self._connection = connection
        self._reader = connection.reader
        self._channel = channel
        self._limits = limits
        self._arrived = arrived
        self._changed = changed
        self._metrics = metrics
        self._state = ConsumerState.STARTING
        self._loss: str | None = None  # why it gave up
        self._has_failed_call = False
        self._consumer_tag: str | None = None
        self._drain_timer: asyncio.TimerHandle | None = None
        self._settled = asyncio.Event()
        self._waiting: list[Delivery] = []
        self._waiting_bytes = 0
        # Tags count from 1 on each channel, so two numbers tell how many are in flight.
        self._last_tag = 0
        self._acked_tag = 0
        self._sent_ack_tag = 0
        self._ack_timer: asyncio.TimerHandle | None = None
        # Held deliveries: their tags and when they arrived.
        self._held: dict[int, float] = {}
        self._held_bytes = 0
        # Tags that were held, and are acked together with their batch.
        self._published: set[int] = set()
        # Tags that were held when an ack of later ones was sent, and can be acked now.
        self._late_tags: list[int] = []
        # The last tag and the arrival time of each chunk of which a delivery is in flight.
        self._arrivals: deque[tuple[int, float]] = deque()
        # When a delivery was acked last, or the first arrived or became ready after that.
        self._moved_s = time.monotonic()
        self._ready = 0  # messages that are ready in the queue, as far as is known
        self._unconfirmed_s: float | None = None  # since when `confirm` fails
        channel.closing.add_done_callback(lambda _: changed.set())
        channel.on_consumer_cancel_callbacks.add(lambda _: changed.set())

    # --- state

    @property
    def state(self) -> ConsumerState:
        """The current state."""
        return self._state

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be taken or acked any more, as far as is known."""
        return self._state is ConsumerState.CLOSED

    @property
    def is_draining(self) -> bool:
        """Whether the consumer drains or has finished draining."""
        return self._state >= ConsumerState.DRAINING

    def _enter(self, state: ConsumerState) -> None:
        """Move forward to `state`; do nothing if it has been reached before."""
        if state <= self._state:
            return
        self._state = state
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
        if state >= ConsumerState.DRAINING:
            self._stop_ack_timer()
        if state is ConsumerState.DRAINING:
            loop = asyncio.get_running_loop()
            self._drain_timer = loop.call_later(
                self._limits.drain_s, self._enter, ConsumerState.DISCARDING
            )
            self._moved_s = time.monotonic()
        if state >= ConsumerState.DISCARDING:
            self._reader.resume(self._channel.number)
        if state is ConsumerState.CLOSED:
            # Before the channel closes: the library may then give its number to a new
            # channel at once, and that one's deliveries must not be dropped.
            self._reader.unsubscribe(self._channel.number, self._on_deliveries)
            self._waiting.clear()
            self._waiting_bytes = 0
            self._arrivals.clear()
            self._ready = 0
            self._settled.set()
        self._changed.set()

    async def start(self) -> None:
        """
        Consume the queue. Deliveries may arrive before this returns.

        Raises:
            BrokerUnavailableError: If the broker is away or too slow.

        """
        number = self._channel.number
        self._reader.subscribe(number, self.queue, self._on_deliveries)
        doing = f"consume {self.queue}"
        async with self._call(doing):
            await self._channel.basic_qos(
                prefetch_count=self.prefetch_count, global_=False
            )
            # The reader removes all deliveries, so the library never calls this callback.
            reply = await self._channel.basic_consume(self.queue, ignore_message)
            self._consumer_tag = reply.consumer_tag
        self._enter(ConsumerState.ACTIVE)  # unless it has begun to drain

    def drain(self) -> None:
        """
        Begin to leave the queue: withhold acks until everything in flight is settled.

        The broker stops delivering once the prefetch is used up, so draining ends, and
        everything it has delivered is settled here in order. After `drain_s` seconds,
        further deliveries are dropped unread and return to the queue.
        """
        self._enter(ConsumerState.DRAINING)

    def give_up(self, problem: str) -> None:
        """
        Return everything in flight to the queue; the acks that wait are sent.

        The session closes the channel then (`leave`), and consumes the queue again. Does
        nothing if the consumer is closed.
        """
        if self._state is ConsumerState.CLOSED:
            return
        self._loss = problem
        self.flush_acks()
        log.warning(
            "consumer.gave_up",
            queue=self.queue,
            in_flight=self.in_flight,
            problem=problem,
        )
        self._enter(ConsumerState.CLOSED)

    async def leave(self) -> None:
        """
        Settle everything that the broker has delivered, in order, and close the channel.

        If that makes no progress for `stall_s`, or the broker does not answer, the rest
        returns to the queue.

        Raises:
            BrokerUnavailableError: If the channel cannot be closed: the connection has to
                be closed, or the broker could deliver to this consumer again.

        """
        self.drain()
        try:
            while self.in_flight or (not self._is_full and await self._receives_more()):
                await self._settle_in_flight()
        except BrokerUnavailableError as exc:
            self.give_up(str(exc))
        self._enter(ConsumerState.CLOSED)
        await self._close()

    async def _settle_in_flight(self) -> None:
        """Wait until nothing is in flight; give up if that makes no progress."""
        while self.in_flight:
            left_s = self._moved_s + self._limits.stall_s - time.monotonic()
            if left_s <= 0:
                self.give_up("the deliveries in flight are not settled")
                return
            self._settled.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._settled.wait()

    async def _receives_more(self) -> bool:
        """Wait for deliveries that the broker has sent already; return whether any came."""
        can_receive = self.is_single_active and self._state < ConsumerState.DISCARDING
        if can_receive and not self.was_cancelled:
            doing = f"drain {self.queue}"
            async with self._call(doing):
                # A second consumer, which receives nothing, passes through the queue's
                # log behind our acks. When the broker answers it, the deliveries that
                # those acks allowed are on their way to the channel. When the broker
                # answers its cancellation, they have arrived.
                try:
                    second = await self._channel.basic_consume(
                        self.queue, ignore_message
                    )
                    await self._channel.basic_cancel(second.consumer_tag or "")
                except ChannelNotFoundEntity:
                    # The queue was deleted just now, and this has closed the channel.
                    self._enter(ConsumerState.DISCARDING)
        return self.in_flight > 0

    async def _close(self) -> None:
        if self._channel.is_closed:
            return
        tag = self._consumer_tag
        async with self._connection.call(f"leave {self.queue}"):
            has_settled_all = self._loss is None
            if has_settled_all and self._is_full and tag in self._channel.consumers:
                # Cancel first, because the withheld acks would bring new deliveries. The
                # broker activates the next consumer at once, which cannot overtake
                # anything: every delivery of this one is stored.
                await self._channel.basic_cancel(tag)
            self.flush_acks()
            await self._channel.close()

    # --- facts

    @property
    def in_flight(self) -> int:
        """Deliveries that arrived and can still be acked, held ones included."""
        if self._state is ConsumerState.CLOSED:
            return 0
        return self._unsettled + self._held_up_to(self._acked_tag)

    @property
    def _unsettled(self) -> int:
        """Deliveries that wait for the pipeline, and not for a publish alone."""
        if self._state is ConsumerState.CLOSED:
            return 0
        return self._last_tag - self._acked_tag

    def _held_up_to(self, tag: int) -> int:
        return sum(held <= tag for held in self._held) if self._held else 0

    @property
    def waiting(self) -> int:
        """Deliveries that wait to be taken."""
        return len(self._waiting)

    @property
    def ready(self) -> int:
        """Messages that are ready in the queue while it is active, as far as is known."""
        return self._ready

    @property
    def still_s(self) -> float:
        """Seconds since the last progress if deliveries wait, here or at the broker; else 0."""
        if not self._unsettled and not self._ready:
            return 0.0
        return time.monotonic() - self._moved_s

    @property
    def oldest_s(self) -> float | None:
        """Seconds since the oldest delivery in flight arrived; ``None`` if none is."""
        if not self.in_flight:
            return None
        arrived_s = [*self._held.values(), *(at for _, at in islice(self._arrivals, 1))]
        return time.monotonic() - min(arrived_s)

    @property
    def is_single_active(self) -> bool:
        """Whether the broker has made it its queue's active consumer, as far as is known."""
        return self._last_tag > 0 and self._state is not ConsumerState.CLOSED

    @property
    def was_cancelled(self) -> bool:
        """Whether the broker has cancelled it, because the queue or its leader is gone."""
        if self._state is ConsumerState.CLOSED or self._consumer_tag is None:
            return False
        return self._consumer_tag not in self._channel.consumers

    @property
    def _is_full(self) -> bool:
        """Whether the broker cannot deliver more before it receives an ack."""
        sent = self._sent_ack_tag
        unacked = self._last_tag - sent + self._held_up_to(sent) + len(self._late_tags)
        return unacked >= self.prefetch_count

    def is_alive(self) -> bool:
        """
        Whether deliveries can still be acked. Once this was false it stays false.

        Asks the library, and gives up if the broker has closed the channel. That costs
        more than a small batch, so batches use `is_closed`.
        """
        if self._channel.is_closed and self._state is not ConsumerState.CLOSED:
            self.give_up(close_reason(self._channel) or "the broker closed the channel")
        return self._state is not ConsumerState.CLOSED

    # --- deliveries

    def _on_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        """Keep new deliveries. The reader calls this while it reads bytes."""
        if self._state >= ConsumerState.DISCARDING:
            return
        self._waiting.extend(deliveries)
        self._waiting_bytes += sum([len(delivery.body) for delivery in deliveries])
        if self._waiting_bytes > self._limits.waiting_bytes and len(self._waiting) > 1:
            self._limit_waiting()
        now_s = time.monotonic()
        if self._last_tag == self._acked_tag:
            self._moved_s = now_s
        self._last_tag = deliveries[-1].tag
        self._arrivals.append((self._last_tag, now_s))
        self._metrics.consumed.inc(len(deliveries))
        self._arrived.set()

    def _limit_waiting(self) -> None:
        """Pause reading, and drain, to be replaced by a consumer with a lower prefetch."""
        # A consumer that is draining already is being replaced by the task that drains
        # it; its successor finds out for itself that messages are large.
        if self._state < ConsumerState.DRAINING:
            # Half of what fits at the mean size: many large ones may arrive at once.
            mean_bytes = self._waiting_bytes / len(self._waiting)
            fitting = int(self._limits.waiting_bytes / mean_bytes / 2)
            self.fitting_prefetch = max(1, fitting)
            self.drain()
        self._reader.pause(self._channel.number)

    @property
    def next_is_suspect(self) -> bool:
        """Whether `take` returns suspects next, which should make a batch of their own."""
        return bool(self._waiting) and is_suspect(self._waiting[0])

    def take(self, *, max_deliveries: int, max_bytes: int) -> Sequence[Delivery]:
        """
        Remove and return the oldest waiting deliveries: one, or more within the limits.

        Suspects are settled slowly, so only a few of them are taken, and no others.
        """
        # The broker delivers what was returned before what is new.
        if self._waiting and self._waiting[0].redelivered:
            max_deliveries = self._count_alike(max_deliveries)
        size_bytes = 0
        count = 0
        for delivery in islice(self._waiting, max_deliveries):
            size_bytes += len(delivery.body)
            if size_bytes > max_bytes and count:
                break
            count += 1
        taken = self._waiting[:count]
        del self._waiting[:count]
        self._waiting_bytes -= sum([len(delivery.body) for delivery in taken])
        is_draining = self._state >= ConsumerState.DRAINING
        if is_draining and self._waiting_bytes <= self._limits.waiting_bytes:
            self._reader.resume(self._channel.number)
        return taken

    def _count_alike(self, at_most: int) -> int:
        """Count the oldest waiting deliveries that are all suspects, or all are not."""
        suspicious = is_suspect(self._waiting[0])
        if suspicious:
            at_most = min(at_most, SUSPECTS_TOGETHER)
        oldest = islice(self._waiting, at_most)
        alike = takewhile(lambda each: is_suspect(each) is suspicious, oldest)
        return sum(1 for _ in alike)

    def note_ready(self, count: int) -> None:
        """Note how many messages are ready in the queue, for `still_s`."""
        if not self._unsettled and not self._ready:
            self._moved_s = time.monotonic()
        self._ready = count if self.is_single_active else 0

    def put_back(self, deliveries: Sequence[Delivery]) -> None:
        """Let the deliveries that were taken last be taken again, unless they are acked."""
        deliveries = [one for one in deliveries if one.tag > self._acked_tag]
        self._waiting[:0] = deliveries
        self._waiting_bytes += sum([len(delivery.body) for delivery in deliveries])
        self._arrived.set()

    async def confirm(self) -> None:
        """
        Verify, on the channel of the deliveries, that the broker still has this consumer.

        If that fails for `stall_s`, the consumer gives up, so that the other queues do not
        wait for this one.

        Raises:
            BrokerUnavailableError: If it does not, or does not answer.

        """
        limit_s = self._limits.stall_s
        if self._unconfirmed_s is None:
            self._unconfirmed_s = time.monotonic()
        try:
            await self._confirm(within_s=limit_s)
        except BrokerUnavailableError as exc:
            if time.monotonic() - self._unconfirmed_s >= limit_s:
                self.give_up(str(exc))
            raise
        self._unconfirmed_s = None

    async def _confirm(self, *, within_s: float) -> None:
        doing = f"confirm the consumer of {self.queue}"
        async with self._call(doing, within_s=within_s):
            reply = await self._channel.queue_declare(self.queue, passive=True)
        if not reply.consumer_count:
            # A node that cannot reach the queue's leader answers this. The leader may
            # have given the queue to another consumer, unknown to this channel.
            raise BrokerUnavailableError(doing, "its leader does not answer")

    @asynccontextmanager
    async def _call(
        self, doing: str, *, within_s: float | None = None
    ) -> AsyncIterator[None]:
        """Wrap calls on the channel, which the library closes after a call that failed."""
        limited = (
            self._connection.call(doing)
            if within_s is None
            else broker_call(doing, timeout_s=within_s)
        )
        try:
            async with limited:
                yield
        except BaseException:
            self._has_failed_call = True
            raise

    # --- acks

    def ack(self, tag: int) -> bool:
        """
        Ack all deliveries up to `tag` that are not held; repeating it does nothing.

        The ack is sent at once if a quarter of the prefetch is acked and not sent, else
        within 10 ms; a draining consumer sends it when it closes. Nothing is awaited: the
        number of unsent acks is bounded by the prefetch, because the broker delivers
        nothing new before it has read an ack.

        Returns:
            False if the consumer is closed: the broker redelivers what is not acked.

        """
        if tag <= self._acked_tag:
            return True
        if self._state is ConsumerState.CLOSED:
            return False
        self._acked_tag = tag
        self._moved_s = time.monotonic()
        is_draining = self._state >= ConsumerState.DRAINING
        if not is_draining and not self._send_ack_soon(tag):
            self.give_up(CONNECTION_LOST)
            return False
        while self._arrivals and self._arrivals[0][0] <= tag:
            self._arrivals.popleft()
        if self._published:
            self._published = {one for one in self._published if one > tag}
        if is_draining:
            self._note_settled()
        return True

    def _note_settled(self) -> None:
        if self.is_draining and not self.in_flight:
            self._settled.set()

    def hold(self, delivery: Delivery) -> bool:
        """
        Exclude `delivery`, which was taken, from acks until `ack_held`.

        Returns:
            False if too much is held: one delivery may be held, or more within the limits.

        """
        limits = self._limits
        most = min(limits.held_deliveries, self.prefetch_count // 4)
        size_bytes = self._held_bytes + len(delivery.body)
        if self._held and (len(self._held) >= most or size_bytes > limits.held_bytes):
            return False
        tag = delivery.tag
        arrived_s = (at for last, at in self._arrivals if last >= tag)
        self._held[tag] = next(arrived_s, time.monotonic())
        self._held_bytes = size_bytes
        return True

    def holds(self, delivery: Delivery) -> bool:
        """Whether `delivery` is held and can still be acked here."""
        return delivery.tag in self._held and self._state is not ConsumerState.CLOSED

    def was_published(self, delivery: Delivery) -> bool:
        """Whether `delivery` was held before it was put back, and needs nothing more."""
        return delivery.tag in self._published

    def ack_held(self, delivery: Delivery) -> None:
        """Ack a held delivery, whose copy was published, unless it is redelivered."""
        if not self.holds(delivery):
            return
        tag = delivery.tag
        del self._held[tag]
        self._held_bytes -= len(delivery.body)
        self._moved_s = time.monotonic()
        if tag > self._acked_tag:
            self._published.add(tag)
        elif tag <= self._sent_ack_tag:
            self._late_tags.append(tag)
        if not self.is_draining:
            self._send_ack_soon(self._acked_tag)
        self._note_settled()

    def _send_ack_soon(self, tag: int) -> bool:
        if tag - self._sent_ack_tag >= self.prefetch_count // 4:
            return self.flush_acks()
        if self._ack_timer is None:
            loop = asyncio.get_running_loop()
            self._ack_timer = loop.call_later(_ACK_DELAY_S, self.flush_acks)
        return True

    def flush_acks(self) -> bool:
        """Send the acks that wait; return False if the channel or connection is gone."""
        self._stop_ack_timer()
        if self._sent_ack_tag == self._acked_tag and not self._late_tags:
            return True
        # The broker closes the connection when it receives an ack on a closed channel.
        if self._is_channel_closing or not self._channel.connection.is_opened:
            self._changed.set()  # the session looks at once what was lost
            return False
        return self._connection.write(self._render_acks())

    @property
    def _is_channel_closing(self) -> bool:
        """
        Whether either side has begun to close the channel.

        `is_closed` of the library becomes true only when the close is complete.
        """
        was_closed = self._reader.was_closed(self._channel.number)
        return was_closed or self._has_failed_call or self._channel.is_closed

    def _render_acks(self) -> bytes:
        """Return the acks that wait, and count them as sent."""
        first, last = self._sent_ack_tag + 1, self._acked_tag
        late, self._late_tags = self._late_tags, []
        self._sent_ack_tag = last
        number = self._channel.number
        if not self._held and not late:
            return _render_ack(number, last, multiple=True)
        # One ack covers everything below the first held delivery; the rest needs one each.
        # The broker closes the channel if the tag itself was acked before.
        hole = min(self._held, default=last + 1)
        tags = late + [tag for tag in range(first, last + 1) if tag not in self._held]
        below = max((tag for tag in tags if tag < hole), default=0)
        frames = [_render_ack(number, below, multiple=True)] if below else []
        frames += [_render_ack(number, tag) for tag in tags if tag > hole]
        return b"".join(frames)

    def _stop_ack_timer(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None


def _render_ack(channel_number: int, tag: int, *, multiple: bool = False) -> bytes:
    """Render Basic.Ack; the library's way costs more than a delivery."""
    return _ACK(_METHOD, channel_number, _ACK_BYTES, _BASIC_ACK, tag, multiple, _END)
