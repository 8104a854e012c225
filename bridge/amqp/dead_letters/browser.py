"""
One visit to the dead letter queue: letters come in order from its head, and go back.

AMQP has no way to look without taking. So a visit takes letters without acking them, as a
consumer on a channel of its own, and gives all of them back at its end that were not
acked. What that changes, measured on RabbitMQ 3.10.8 and read in the sources of 4.x:

- **Number and content: nothing**, also when the process is killed: what was not acked comes
  back with the channel, or with the connection.
- **Order: nothing, if a visit takes at least as many letters as any visit before has given
  back.** A quorum queue keeps what was given back in a line of its own, in front of the rest,
  and what is given back again joins the *end of that line*. So a visit always takes the whole
  line, however little of it is wanted. How long it is, the bridge remembers; after a
  restart it sees it: what was given back before says `redelivered`. The one gap: a
  process that is killed within the first milliseconds of its first visit, when earlier
  visits went deeper than `_FIRST_STEP`, leaves the letters it had at the end of the line.
- **How they are given back matters.** Up to 3.x `basic.nack(multiple)` of more than 32
  letters gives them back in no order at all (measured; an Erlang map), closing the channel
  gives them back in order. From 4.3 on a closed channel counts as a failed delivery and a
  nack does not, and a nack keeps the order (read, not run). So it depends on the version.
- **The broker's own count** (`x-delivery-count`) grows by one at each visit before 4.3, and
  nothing avoids that; it is hidden from operators. At the queue's limit of a million the
  broker would drop the letter, so looking is refused long before (dead_letters.py).

Several consumers on one channel take one after the other, because one consumer takes 65,535
letters at most. They come back in the order of their tags, up to 32 of them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import aiormq
import structlog
from aiormq.abc import ChannelFrame
from pamqp.commands import Basic

from bridge.amqp.connection import (
    BrokerAddress,
    BrokerConnection,
    Purpose,
    broker_call,
    broker_identity,
    open_connection,
)
from bridge.amqp.frame_reader import DeliveryReader
from bridge.core.message import Delivery
from bridge.errors import BrokerUnavailableError

log = structlog.get_logger(__name__)

_FIRST_STEP: Final = 1000
_STEP_GROWS: Final = 8
_CONSUMER_MAX: Final = 65_535  # what basic.qos can say
_CONSUMERS_MAX: Final = 32  # beyond, they come back in no order
# Nothing came for so long: is the queue empty? If so, what it handed out may still be on
# its way (the broker reads thousands before it sends the first); or somebody else has it.
_QUIET_S: Final = 0.5
_QUIETS_MAX: Final = 10
# A whole scan takes longer than one call; it is given so many times as long.
_READ_TAKES: Final = 4
_POLL_S: Final = 0.01
# More than this on its way to us is cut off instead of being received and dropped.
_RECEIVED_TO_THE_END: Final = 5_000


class ReturnedLine:
    """How many letters at the head of the queue were given back before, as far as known."""

    def __init__(self) -> None:
        self.length: int | None = None  # nobody has looked since the bridge started

    def grew_to(self, length: int) -> None:
        """So many were taken in one visit and will be given back."""
        self.length = max(self.length or 0, length)

    def lost(self, count: int) -> None:
        """So many of them were acked."""
        if self.length is not None:
            self.length = max(0, self.length - count)


class LetterSession:
    """
    One visit. Open it with `visit`; its letters go back when that ends.

    Attributes:
        queue: Where the letters are.
        depth: How many were ready when the visit began.
        acked: How many were taken off for good.

    """

    def __init__(
        self,
        connection: BrokerConnection[DeliveryReader],
        channel: aiormq.Channel,
        *,
        queue: str,
        line: ReturnedLine,
        depth: int,
        timeout_s: float,
    ) -> None:
        self.depth = depth
        self._connection = connection
        self._channel = channel
        self.queue = queue
        self._line = line
        self._timeout_s = timeout_s
        self._consumers: list[str] = []
        self._asked = 0  # letters that the consumers may take, together
        self._came = 0
        self.acked = 0
        self._line_ends = line.length is not None
        self._take: Callable[[Delivery], bool] | None = None
        self._is_enough = False
        self._news = asyncio.Event()
        connection.reader.subscribe(channel.number, queue, self._on_deliveries)
        channel.closing.add_done_callback(lambda _: self._news.set())

    @property
    def outstanding(self) -> int:
        """Letters that the broker has handed to us and we have not read."""
        return max(0, min(self._asked, self.depth) - self._came)

    async def read(self, take: Callable[[Delivery], bool], *, at_most: int) -> int:
        """
        Hand letters to `take`, from the head of the queue, until it has enough.

        Args:
            take: Called with each letter in order, within the reading of bytes; returns
                whether it wants another one. It must not keep bodies without a bound.
            at_most: No more than so many are handed over. Once for each session.

        Returns:
            How many were handed over.

        Raises:
            BrokerUnavailableError: If the broker is away or too slow.

        Cancellation:
            Safe; the letters go back when the visit ends.

        """
        wanted = min(at_most, self.depth)
        if wanted <= 0:
            return 0
        given = 0

        def count_and_take(delivery: Delivery) -> bool:
            nonlocal given
            if given >= wanted:
                return False
            given += 1
            return take(delivery) and given < wanted

        self._take = count_and_take
        timeout_s = self._timeout_s * _READ_TAKES
        async with broker_call(f"read {self.queue}", timeout_s=timeout_s):
            line = min(self._line.length or 0, self.depth)
            first = max(line, min(wanted, _FIRST_STEP))
            await self._take_more(first)
            while first > self._asked and len(self._consumers) < _CONSUMERS_MAX:
                await self._take_more_at_once()
            while not await self._is_done(wanted):
                if len(self._consumers) == _CONSUMERS_MAX:
                    break
                await self._take_more(self._asked * (_STEP_GROWS - 1))
            if self.outstanding <= _RECEIVED_TO_THE_END:
                await self._stop()  # or it would have to be waited for
        return given

    async def ack(self, tags: Sequence[int]) -> None:
        """
        Take letters off the queue for good; the broker has them off when it returns.

        Raises:
            BrokerUnavailableError: If the broker is away; some may be off, or none.

        """
        async with broker_call(f"ack to {self.queue}", timeout_s=self._timeout_s):
            await self._stop()
            for tag in tags:
                await self._channel.basic_ack(tag, wait=False)
            # An answer to anything says that all before it was done.
            await self._channel.basic_qos(prefetch_count=1)
        self.acked += len(tags)

    async def give_back(self) -> bool:
        """
        Give back what was not acked. False if the connection had to be cut for that.

        Raises:
            BrokerUnavailableError: If the broker is away; it gives back by itself.

        """
        self._take = None
        if not self._asked:
            return True
        # As many as were asked for, not as came: new letters may have been taken too.
        self._line.grew_to(self._asked)
        self._line.lost(self.acked)
        if self.outstanding > _RECEIVED_TO_THE_END:
            self._connection.abort()
            return False
        async with broker_call(f"give back to {self.queue}", timeout_s=self._timeout_s):
            if _counts_closing(broker_identity(self._connection).version):
                await self._stop()
                if self._came > self.acked:
                    await self._channel.basic_nack(0, multiple=True, requeue=True)
                await self._channel.basic_qos(prefetch_count=1)
            await self._channel.close()
        return True

    # --- taking

    def _on_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._came += 1
            if not delivery.redelivered:
                self._line_ends = True
            if self._take is not None and not self._is_enough:
                self._is_enough = not self._take(delivery)
        self._news.set()

    async def _take_more(self, count: int) -> None:
        """Add a consumer; those before have all they may take, so it takes what follows."""
        count = min(count, _CONSUMER_MAX)
        await self._channel.basic_qos(prefetch_count=count)
        tag = f"look.{len(self._consumers):02}"  # sorts as it counts
        self._asked += count
        await self._channel.basic_consume(self.queue, _never_called, consumer_tag=tag)
        self._consumers.append(tag)

    async def _take_more_at_once(self) -> None:
        """
        Add a consumer like the one before, without waiting for an answer.

        The answer would stand behind tens of thousands of letters that nobody may want.
        """
        tag = f"look.{len(self._consumers):02}"
        consume = Basic.Consume(queue=self.queue, consumer_tag=tag, nowait=True)
        frame = ChannelFrame.marshall(
            channel_number=self._channel.number, frames=[consume]
        )
        await self._channel.write_queue.put(frame)
        self._asked += _CONSUMER_MAX
        self._consumers.append(tag)

    async def _stop(self) -> None:
        """
        Take no more, also in place of what will be acked.

        Not before everything that is wanted was read: the broker forgets what is on its
        way to a cancelled consumer (measured), until the channel gives it back.
        """
        consumers, self._consumers = self._consumers, []
        for tag in consumers:
            await self._channel.basic_cancel(tag)

    async def _is_done(self, wanted: int) -> bool:
        """Wait for what was asked for; false if more has to be."""
        quiets = 0
        while True:
            is_read = self._is_enough or self._came >= wanted
            if is_read and (self._line_ends or self._came >= self.depth):
                return True
            if self._came >= min(self._asked, self.depth):
                return self._came >= self.depth
            if self._channel.is_closed:
                raise BrokerUnavailableError(
                    f"read {self.queue}", "the broker closed the channel"
                )
            self._news.clear()
            try:
                async with asyncio.timeout(_QUIET_S):
                    await self._news.wait()
                quiets = 0
            except TimeoutError:
                if await ready_count(self._channel, self.queue) == 0:
                    quiets += 1
                if quiets == _QUIETS_MAX:
                    return True


@asynccontextmanager
async def visit(
    address: BrokerAddress, queue: str, line: ReturnedLine
) -> AsyncIterator[LetterSession]:
    """
    Open a session on a connection of its own; its letters go back at the end.

    One at a time for each queue: the caller sees to that. When it ends, what was given
    back is in the queue again, or the broker did not say so within its timeout.

    Raises:
        BrokerUnavailableError: If the broker is away or too slow.

    Cancellation:
        Safe; the connection is closed, and with it the letters go back.

    """
    connection = await open_connection(
        address, purpose=Purpose.OPERATE, reader=DeliveryReader
    )
    try:
        async with broker_call(f"look at {queue}", timeout_s=address.timeout_s):
            channel = await connection.open_channel(confirms=False)
            depth = await ready_count(channel, queue)
        session = LetterSession(
            connection,
            channel,
            queue=queue,
            line=line,
            depth=depth,
            timeout_s=address.timeout_s,
        )
        try:
            yield session
        finally:
            await _end(session, connection, address)
    finally:
        await connection.leave()


async def _end(
    session: LetterSession,
    connection: BrokerConnection[DeliveryReader],
    address: BrokerAddress,
) -> None:
    """Give back, and wait until all of it is ready: the next visit must find it."""
    try:
        if not await session.give_back():
            connection = await open_connection(
                address, purpose=Purpose.OPERATE, reader=DeliveryReader
            )
        queue, count = session.queue, session.depth - session.acked
        async with broker_call(f"wait for {queue}", timeout_s=address.timeout_s):
            channel = await connection.open_channel(confirms=False)
            while await ready_count(channel, queue) < count:  # noqa: ASYNC110 - AMQP tells nobody
                await asyncio.sleep(_POLL_S)
    except BrokerUnavailableError as exc:
        # The broker went away, or somebody else takes letters: they are not lost.
        log.warning("dead_letters.not_seen_back", problem=str(exc))
    finally:
        await connection.leave()


async def count_ready(address: BrokerAddress, queue: str) -> int:
    """
    Return how many messages are ready in `queue`, over a connection of its own.

    Raises:
        BrokerUnavailableError: If the broker is away or too slow.

    """
    connection = await open_connection(
        address, purpose=Purpose.OPERATE, reader=DeliveryReader
    )
    try:
        async with broker_call(f"look at {queue}", timeout_s=address.timeout_s):
            channel = await connection.open_channel(confirms=False)
            return await ready_count(channel, queue)
    finally:
        await connection.leave()


async def ready_count(channel: aiormq.Channel, queue: str) -> int:
    """Return how many messages are ready in `queue`. Call it within a `broker_call`."""
    return (await channel.queue_declare(queue, passive=True)).message_count or 0


def _counts_closing(version: str) -> bool:
    """Whether this RabbitMQ counts a closed channel as a failure, and a nack not (4.3)."""
    parts = version.split(".")
    try:
        return (int(parts[0]), int(parts[1])) >= (4, 3)
    except (ValueError, IndexError):
        return False


async def _never_called(_message: object) -> None:
    """Stand in where the library wants a callback."""
