"""One consumer on one channel: what it brought, what is in flight, whether it still lives."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from struct import Struct
from typing import Final

import aiormq
from aiormq.exceptions import ChannelNotFoundEntity

from bridge.amqp.connection import broker_call
from bridge.amqp.frame_reader import DeliveryReader
from bridge.core.fence import Fence
from bridge.core.message import Delivery
from bridge.errors import BrokerUnavailableError
from bridge.metrics import Metrics

# How long an ack may wait for the next one. Each is an entry in the log of a quorum queue, on
# the disks of a majority, before which new messages wait: a bridge that acks each small batch
# by itself slows itself down. Who kills us repeats what was not told, as ever.
_TELL_WITHIN_S: Final = 0.01

# How long all that the broker has given is still taken by one that leaves; see `leave`.
_LEAVE_WITHIN_S: Final = 5.0

# Basic.Ack in its frame: AMQP 0-9-1 sections 4.2.3 and 1.8.3.13.
_ACK: Final = Struct(">BHIIQBB").pack
_METHOD: Final = 1
_ACK_BYTES: Final = 13
_BASIC_ACK: Final = 60 << 16 | 80
_MULTIPLE: Final = 1
_END: Final = 0xCE


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """
    How much one batch may hold; one delivery fits whatever its size.

    Attributes:
        deliveries: In one batch. What is more has to wait, as long as all that takes.
        body_bytes: In one batch.
        waiting_bytes: Of bodies that wait to be taken out of one queue. Prefetch bounds
            them by number alone, which is not enough where messages are large.

    """

    deliveries: int = 2000
    body_bytes: int = 4 << 20
    waiting_bytes: int = 64 << 20


class ConsumerSession:
    """One consumer on one channel, and what it brought and nobody took yet."""

    def __init__(
        self,
        channel: aiormq.Channel,
        *,
        queue: str,
        timeout_s: float,
        arrived: asyncio.Event,
        look: asyncio.Event,
        metrics: Metrics,
        write: Callable[[bytes], bool],
        reader: DeliveryReader,
        waiting_max_bytes: int,
    ) -> None:
        self.queue = queue
        self.parting = asyncio.Lock()  # for whoever closes it
        self._waiting_max_bytes = waiting_max_bytes
        self.fence: Fence | None = None  # kept here for whoever stores what it brings
        self._channel = channel
        self._write = write
        self._reader = reader
        self._timeout_s = timeout_s
        self._arrived = arrived
        self._metrics = metrics
        self._consumer_tag: str | None = None
        self._is_leaving = False
        self._is_deaf = False
        self._deafening: asyncio.TimerHandle | None = None
        self._look = look
        self._settled = asyncio.Event()
        self._waiting: list[Delivery] = []
        self._waiting_bytes = 0
        # Once too many bytes have come: how many deliveries may be in flight with ease.
        self.fitting: int | None = None
        # Tags count from 1 on each channel, so two numbers tell how many are in flight.
        self._last_tag = 0
        self._acked_tag = 0
        self._told_tag = 0
        self._prefetch_count = 1
        self._tell_each = 1
        self._telling: asyncio.TimerHandle | None = None
        # When each chunk of deliveries came, by its last tag, as long as one is in flight.
        self._arrivals: deque[tuple[int, float]] = deque()
        channel.closing.add_done_callback(lambda _: self._look.set())
        channel.on_consumer_cancel_callbacks.add(lambda _: self._look.set())

    @property
    def channel_number(self) -> int:
        """Of its channel; a later consumer has another one."""
        return self._channel.number

    @property
    def in_flight(self) -> int:
        """Deliveries that came and are not acked."""
        return self._last_tag - self._acked_tag

    @property
    def oldest_s(self) -> float | None:
        """Seconds since the oldest delivery in flight came; ``None`` if none is."""
        return time.monotonic() - self._arrivals[0][1] if self._arrivals else None

    @property
    def is_active(self) -> bool:
        """Whether it is the one of its queue that is delivered to, as far as was seen."""
        return self._last_tag > 0

    @property
    def is_leaving(self) -> bool:
        """Whether it is about to go."""
        return self._is_leaving

    @property
    def is_full(self) -> bool:
        """Whether the broker can bring nothing more before it hears of an ack."""
        return self._last_tag - self._told_tag >= self._prefetch_count

    @property
    def waiting(self) -> int:
        """Deliveries that wait to be taken out."""
        return len(self._waiting)

    def problem(self) -> str | None:
        """Say what is wrong with the session, ``None`` if nothing is."""
        if not self._channel.connection.is_opened:
            return "the connection was lost"
        if self._channel.is_closed:
            return "the broker closed the channel"
        if self.was_cancelled:
            return f"the broker cancelled the consumer; was queue {self.queue} deleted or its leader lost?"
        return None

    @property
    def was_cancelled(self) -> bool:
        """Whether the broker says that its queue is gone, for now or for good."""
        tag = self._consumer_tag
        return tag is not None and tag not in self._channel.consumers

    def take_in(self, deliveries: Sequence[Delivery]) -> None:
        """Keep what the reader found; called by it, never blocks."""
        if self._is_deaf:
            return  # never looked at: it goes back as it came
        self._waiting.extend(deliveries)
        self._waiting_bytes += sum([len(delivery.body) for delivery in deliveries])
        if self._waiting_bytes > self._waiting_max_bytes and len(self._waiting) > 1:
            if self.fitting is None:
                # Half of what fits, by the mean size: many may have come at once.
                size_bytes = self._waiting_bytes / len(self._waiting)
                self.fitting = max(1, int(self._waiting_max_bytes / size_bytes / 2))
            self.leave()  # to come back with that as the prefetch
            self._look.set()
            self._reader.pause(self.channel_number)
        self._last_tag = deliveries[-1].tag
        self._arrivals.append((self._last_tag, time.monotonic()))
        self._metrics.consumed.inc(len(deliveries))
        self._arrived.set()

    def take_out(self, limits: BatchLimits) -> Sequence[Delivery]:
        """Hand over the oldest of what waits, within `limits`."""
        size_bytes = 0
        count = 0
        for delivery in islice(self._waiting, limits.deliveries):
            size_bytes += len(delivery.body)
            if size_bytes > limits.body_bytes and count:
                break
            count += 1
        taken = self._waiting[:count]
        del self._waiting[:count]
        self._waiting_bytes -= sum([len(delivery.body) for delivery in taken])
        if self._is_leaving and self._waiting_bytes <= self._waiting_max_bytes:
            self._reader.resume(self.channel_number)
        return taken

    async def start(self, prefetch_count: int) -> None:
        """Consume with this prefetch."""
        self._prefetch_count = prefetch_count
        self._tell_each = prefetch_count // 4
        async with broker_call(f"consume {self.queue}", timeout_s=self._timeout_s):
            await self._channel.basic_qos(prefetch_count=prefetch_count, global_=False)
            # The reader takes all deliveries; the callback is never called.
            reply = await self._channel.basic_consume(self.queue, _never_called)
            self._consumer_tag = reply.consumer_tag

    async def confirm(self) -> None:
        """
        Hear on the channel of the deliveries that the broker has not cut it off.

        Raises:
            BrokerUnavailableError: If it has, or does not say.

        """
        doing = f"ask after {self.queue}"
        async with broker_call(doing, timeout_s=self._timeout_s):
            told = await self._channel.queue_declare(self.queue, passive=True)
        if not told.consumer_count:
            # What a node says that cannot reach the leader of the queue: then that may
            # have given the queue away, and only this channel does not know of it.
            raise BrokerUnavailableError(doing, "its leader does not answer")

    def leave(self) -> None:
        """
        Be about to go: settle what the broker has given, then `close`.

        Acks are held from now on, so that comes to an end: nothing can come any more when
        as much is in flight as may be. Nothing goes back to the queue then, where it would
        stand behind what went back before (docs/measurements.md). The consumer is not
        cancelled before that: the broker would make the next one active while older
        deliveries are in flight here. Whatever comes after five seconds of this is not
        looked at, and goes back.
        """
        if self._is_leaving:
            return
        self._is_leaving = True
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        loop = asyncio.get_running_loop()
        self._deafening = loop.call_later(_LEAVE_WITHIN_S, self._take_no_more)

    def _take_no_more(self) -> None:
        self._is_deaf = True
        if self._deafening is not None:
            self._deafening.cancel()
            self._deafening = None
        self._reader.resume(self.channel_number)

    async def settled(self) -> None:
        """Wait until nothing is in flight."""
        while self.in_flight:
            self._settled.clear()
            await self._settled.wait()

    async def brings_more(self) -> bool:
        """
        Wait for what the broker has for us by now, and say whether anything is in flight.

        Raises:
            BrokerUnavailableError: If the broker is away or too slow.

        """
        if self.is_active and not self._is_deaf and not self.was_cancelled:
            doing = f"stand in line for {self.queue}"
            async with broker_call(doing, timeout_s=self._timeout_s):
                # A second consumer, who gets nothing, goes through the queue's log behind
                # our acks, so what these bring is on its way to the channel when it is
                # answered; and in our hands when its end is.
                try:
                    second = await self._channel.basic_consume(
                        self.queue, _never_called
                    )
                    await self._channel.basic_cancel(second.consumer_tag or "")
                except ChannelNotFoundEntity:
                    # Deleted this moment; that has closed the channel.
                    self._take_no_more()
        return self.in_flight > 0

    async def close(self) -> None:
        """
        Send what was acked, end consumer and channel; what is in flight goes back.

        Raises:
            BrokerUnavailableError: If the broker is away or too slow.

        """
        tag, self._consumer_tag = self._consumer_tag, None
        async with broker_call(f"leave {self.queue}", timeout_s=self._timeout_s):
            if self.is_full and not self.in_flight and tag in self._channel.consumers:
                # An ack before that would bring more. All is stored, so the next consumer,
                # who is made active at once, overtakes nothing.
                await self._channel.basic_cancel(tag)
            self._take_no_more()
            self.tell()
            await self._channel.close()

    def ack(self, tag: int) -> bool:
        """
        Ack all up to `tag`; a second time it does nothing, and the broker never hears.

        The broker hears at once when a quarter of the prefetch was not told, else within
        10 ms, together with what is acked meanwhile; after `leave`, by `close`. What may
        wait to be sent is bounded by prefetch: the broker brings nothing new before it has
        read an ack. So nothing is awaited, and no task is woken.

        Returns:
            False if the connection is gone.

        """
        if tag <= self._acked_tag:
            return True
        self._acked_tag = tag
        if not self._is_leaving and not self._tell_in_time(tag):
            return False
        while self._arrivals and self._arrivals[0][0] <= tag:
            self._arrivals.popleft()
        if self._is_leaving and not self.in_flight:
            self._settled.set()
            self._look.set()
        return True

    def _tell_in_time(self, tag: int) -> bool:
        if tag - self._told_tag >= self._tell_each:
            return self.tell()
        if self._telling is None:
            loop = asyncio.get_running_loop()
            self._telling = loop.call_later(_TELL_WITHIN_S, self.tell)
        return True

    def tell(self) -> bool:
        """Send at once what was acked and not sent yet; false if the channel is gone."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        if self._told_tag == self._acked_tag:
            return True
        # An ack on a channel that is closed would end the connection.
        if self._channel.is_closed or not self._channel.connection.is_opened:
            return False
        self._told_tag = self._acked_tag
        return self._write(_render_ack(self._channel.number, self._acked_tag))


def _render_ack(channel_number: int, tag: int) -> bytes:
    """Basic.Ack with multiple; by hand, because the library's way costs more than a delivery."""
    return _ACK(_METHOD, channel_number, _ACK_BYTES, _BASIC_ACK, tag, _MULTIPLE, _END)


async def _never_called(_message: object) -> None:
    """Stand in where the library wants a callback."""
