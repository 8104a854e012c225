"""
Browse the dead-letter queue: take messages in order from its head and return them.

AMQP cannot read a queue without consuming it. So a session consumes without acking, on a
channel of its own, and returns every message that was not acked when it ends. The effects,
measured on RabbitMQ 3.10.8 and read in the sources of 4.x:

- **Number and content do not change**, even if the process is killed: RabbitMQ returns
  unacked messages when the channel or the connection closes.
- **The order does not change if a session takes at least as many messages as any earlier
  session has returned.** A quorum queue keeps returned messages in a list of their own, in
  front of all others, and appends messages that are returned again to the *end of that
  list*. So a session always takes the whole list, however few messages are wanted. The bridge
  remembers its length; after a restart it recognizes the list by the flag `redelivered`. One
  gap remains: if the process is killed within the first milliseconds of its first session,
  and earlier sessions went deeper than `_FIRST_STEP`, the messages that it held move to the
  end of the list.
- **The way of returning matters.** Up to 3.x, `basic.nack(multiple)` of more than 32
  messages returns them in no order at all (measured; an Erlang map), and closing the channel
  returns them in order. From 4.3 on, a closed channel counts as a failed delivery and a nack
  does not, and a nack keeps the order (read, not run). So the way depends on the version.
- **RabbitMQ's own count** (`x-delivery-count`) grows by one with each session before 4.3.
  Nothing avoids that; the count is hidden from operators. RabbitMQ would drop a message at the
  delivery limit of a million, so browsing is refused long before (delivery_limit.py).

Several consumers on one channel take messages one after the other, because one consumer
takes 65,535 messages at most. Up to 32 consumers return theirs in the order of their tags.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
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
    connected,
    ignore_message,
)
from bridge.amqp.frame_reader import DeliveryReader
from bridge.core.message import Delivery
from bridge.errors import BrokerUnavailableError

log = structlog.get_logger(__name__)

_FIRST_STEP: Final = 1000
_STEP_FACTOR: Final = 8
_PREFETCH_MAX: Final = 65_535  # the largest value of basic.qos
_CONSUMERS_MAX: Final = 32  # more of them return their messages in no order
# If no message arrives for this long, the queue may be empty, or another client has taken the
# rest. Messages may also still be on their way: RabbitMQ reads thousands before it sends the
# first one.
_QUIET_S: Final = 0.5
_QUIETS_MAX: Final = 10
# Reading the whole queue takes longer than one call; its timeout is this many times as long.
_READ_CALLS: Final = 4
_POLL_S: Final = 0.01
# How long a request waits for a job or another request to release the queue.
_LOCK_WITHIN_S: Final = 15.0
# If more messages than this are on their way to us, cutting the connection is cheaper than
# receiving and dropping them.
_DRAIN_MAX: Final = 5_000


class DeadLetterBrowser:
    """
    Opens sessions on the dead-letter queue, one at a time: two would mix up its order.

    Args:
        address: Where the broker is.
        queue: The dead-letter queue.
        returned_count: How many messages at its head earlier sessions have returned; ``None``
            = unknown, as after a start.

    """

    def __init__(
        self, address: BrokerAddress, queue: str, *, returned_count: int | None = None
    ) -> None:
        self._address = address
        self._queue = queue
        self._lock = asyncio.Lock()
        self._session: BrowseSession | None = None
        self.returned_count = returned_count

    @property
    def is_busy(self) -> bool:
        """Whether an operation holds the lock."""
        return self._lock.locked()

    @property
    def depth(self) -> int | None:
        """How many dead letters there are while a session is open; ``None`` otherwise."""
        session = self._session
        return None if session is None else session.depth - session.acked

    @asynccontextmanager
    async def lock(
        self, *, within_s: float | None = _LOCK_WITHIN_S
    ) -> AsyncIterator[None]:
        """
        Wait for the lock and hold it.

        Args:
            within_s: The longest wait; ``None`` = without a limit.

        Raises:
            BrokerUnavailableError: If the lock was not released in time.

        """
        try:
            async with asyncio.timeout(within_s):
                await self._lock.acquire()
        except TimeoutError as exc:
            raise BrokerUnavailableError(
                f"browse {self._queue}", "another operation is using the dead letters"
            ) from exc
        try:
            yield
        finally:
            self._lock.release()

    @asynccontextmanager
    async def session(self) -> AsyncIterator["BrowseSession"]:
        """
        Open a session on a connection of its own; the caller holds the lock.

        At the end the returned messages are ready in the queue again, unless the broker did
        not confirm that within its timeout.

        Raises:
            BrokerUnavailableError: If the broker is unreachable or too slow.

        Cancellation:
            Safe; the connection closes, which returns the messages.

        """
        async with self._connected() as connection:
            async with broker_call(
                f"browse {self._queue}", timeout_s=self._address.timeout_s
            ):
                channel = await connection.open_channel(confirms=False)
                depth = await _ready_count(channel, self._queue)
            self._session = session = BrowseSession(
                connection,
                channel,
                queue=self._queue,
                depth=depth,
                returned_count=self.returned_count,
                timeout_s=self._address.timeout_s,
            )
            try:
                yield session
            finally:
                try:
                    await self._return(session, connection)
                finally:
                    self._session = None

    async def count_ready(self) -> int:
        """
        Return how many messages are ready in the queue, without a session.

        Raises:
            BrokerUnavailableError: If the broker is unreachable or too slow.

        """
        doing = f"count {self._queue}"
        async with (
            self._connected() as connection,
            broker_call(doing, timeout_s=self._address.timeout_s),
        ):
            channel = await connection.open_channel(confirms=False)
            return await _ready_count(channel, self._queue)

    def _connected(
        self,
    ) -> AbstractAsyncContextManager[BrokerConnection[DeliveryReader]]:
        return connected(self._address, purpose=Purpose.OPERATE, reader=DeliveryReader)

    async def _return(
        self, session: "BrowseSession", connection: BrokerConnection[DeliveryReader]
    ) -> None:
        """Return the messages and wait until all are ready: the next session needs them."""
        if session.requested:
            # The requested number, not the received one: messages that arrived since the
            # session began may have been taken too.
            count = max(self.returned_count or 0, session.requested)
            self.returned_count = max(0, count - session.acked)
        try:
            if await session.return_messages():
                await self._wait_until_ready(connection, session)
            else:
                async with self._connected() as other:
                    await self._wait_until_ready(other, session)
        except BrokerUnavailableError as exc:
            # The broker is unreachable or another client takes messages: none are lost.
            log.warning("dead_letters.return_unconfirmed", problem=str(exc))

    async def _wait_until_ready(
        self, connection: BrokerConnection[DeliveryReader], session: "BrowseSession"
    ) -> None:
        count = session.depth - session.acked
        doing = f"wait for {self._queue}"
        async with broker_call(doing, timeout_s=self._address.timeout_s):
            channel = await connection.open_channel(confirms=False)
            while await _ready_count(channel, self._queue) < count:  # noqa: ASYNC110 - AMQP has no event for it
                await asyncio.sleep(_POLL_S)


class BrowseSession:
    """
    One session on the queue, which `DeadLetterBrowser.session` opens and closes.

    Attributes:
        queue: The dead-letter queue.
        depth: How many messages were ready when the session began.
        acked: How many messages it has removed from the queue.
        requested: How many messages its consumers together may take.

    """

    def __init__(
        self,
        connection: BrokerConnection[DeliveryReader],
        channel: aiormq.Channel,
        *,
        queue: str,
        depth: int,
        returned_count: int | None,
        timeout_s: float,
    ) -> None:
        self.queue = queue
        self.depth = depth
        self.acked = 0
        self.requested = 0
        self._connection = connection
        self._channel = channel
        self._returned_count = returned_count or 0
        self._timeout_s = timeout_s
        self._consumers: list[str] = []
        self._received = 0
        # Whether the end of the list of returned messages is known to be taken.
        self._has_whole_head = returned_count is not None
        self._take: Callable[[Delivery], bool] | None = None
        self._is_enough = False
        self._has_news = asyncio.Event()
        connection.reader.subscribe(channel.number, queue, self._on_deliveries)
        channel.closing.add_done_callback(lambda _: self._has_news.set())

    @property
    def outstanding(self) -> int:
        """Messages that the broker has delivered and the bridge has not read."""
        return max(0, min(self.requested, self.depth) - self._received)

    async def read(self, take: Callable[[Delivery], bool], *, at_most: int) -> int:
        """
        Pass messages to `take`, from the head of the queue, until it has enough.

        Call it once per session.

        Args:
            take: Called with each message in order, while bytes are being parsed; returns
                whether it wants another one. It must not keep an unbounded number of bodies.
            at_most: The highest number of messages to pass.

        Returns:
            How many were passed.

        Raises:
            BrokerUnavailableError: If the broker is unreachable or too slow.

        Cancellation:
            Safe; the messages return to the queue when the session ends.

        """
        wanted = min(at_most, self.depth)
        if wanted <= 0:
            return 0
        passed = 0

        def count_and_take(delivery: Delivery) -> bool:
            nonlocal passed
            if passed >= wanted:
                return False
            passed += 1
            return take(delivery) and passed < wanted

        self._take = count_and_take
        timeout_s = self._timeout_s * _READ_CALLS
        async with broker_call(f"read {self.queue}", timeout_s=timeout_s):
            head = min(self._returned_count, self.depth)
            first = max(head, min(wanted, _FIRST_STEP))
            await self._add_consumer(first)
            while first > self.requested and len(self._consumers) < _CONSUMERS_MAX:
                await self._add_consumer_without_reply()
            while not await self._is_done(wanted):
                if len(self._consumers) == _CONSUMERS_MAX:
                    break
                await self._add_consumer(self.requested * (_STEP_FACTOR - 1))
            if self.outstanding <= _DRAIN_MAX:
                # With more outstanding, the reply to basic.cancel would arrive after them.
                await self._cancel_consumers()
        return passed

    async def ack(self, tags: Sequence[int]) -> None:
        """
        Remove messages from the queue; the broker has removed them when this returns.

        Raises:
            BrokerUnavailableError: If the broker is unreachable; it may have removed all
                of them, some, or none.

        """
        async with broker_call(f"ack to {self.queue}", timeout_s=self._timeout_s):
            await self._cancel_consumers()
            for tag in tags:
                await self._channel.basic_ack(tag, wait=False)
            await self._round_trip()
        self.acked += len(tags)

    async def return_messages(self) -> bool:
        """
        Return what was not acked; false if that took cutting the connection.

        Raises:
            BrokerUnavailableError: If the broker is unreachable; it returns them itself.

        """
        self._take = None
        if not self.requested:
            return True
        if self.outstanding > _DRAIN_MAX:
            self._connection.abort()
            return False
        async with broker_call(
            f"return messages to {self.queue}", timeout_s=self._timeout_s
        ):
            if _counts_closed_channels(broker_identity(self._connection).version):
                await self._cancel_consumers()
                if self._received > self.acked:
                    await self._channel.basic_nack(0, multiple=True, requeue=True)
                await self._round_trip()
            await self._channel.close()
        return True

    def _on_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._received += 1
            if not delivery.redelivered:
                self._has_whole_head = True
            if self._take is not None and not self._is_enough:
                self._is_enough = not self._take(delivery)
        self._has_news.set()

    async def _add_consumer(self, count: int) -> None:
        """Consume `count` more; earlier consumers are full, so these are the next ones."""
        count = min(count, _PREFETCH_MAX)
        await self._channel.basic_qos(prefetch_count=count)
        self.requested += count
        tag = self._next_tag()
        await self._channel.basic_consume(self.queue, ignore_message, consumer_tag=tag)
        self._consumers.append(tag)

    async def _add_consumer_without_reply(self) -> None:
        """
        Add a consumer with the same prefetch as the last one.

        A reply would arrive after tens of thousands of messages that may not be wanted.
        """
        tag = self._next_tag()
        consume = Basic.Consume(queue=self.queue, consumer_tag=tag, nowait=True)
        frame = ChannelFrame.marshall(
            channel_number=self._channel.number, frames=[consume]
        )
        await self._channel.write_queue.put(frame)
        self.requested += _PREFETCH_MAX
        self._consumers.append(tag)

    def _next_tag(self) -> str:
        return f"browse.{len(self._consumers):02}"  # sorts in the order of creation

    async def _cancel_consumers(self) -> None:
        """
        Stop consuming, so that an ack does not bring further messages.

        Call it only after everything wanted was read: RabbitMQ drops what is on its way to a
        canceled consumer (measured) until the channel returns it.
        """
        consumers, self._consumers = self._consumers, []
        for tag in consumers:
            await self._channel.basic_cancel(tag)

    async def _round_trip(self) -> None:
        """Wait for any reply: RabbitMQ has then processed all earlier frames of the channel."""
        await self._channel.basic_qos(prefetch_count=1)

    async def _is_done(self, wanted: int) -> bool:
        """Wait for what was requested; false if more must be requested."""
        quiets = 0
        while True:
            is_read = self._is_enough or self._received >= wanted
            if is_read and (self._has_whole_head or self._received >= self.depth):
                return True
            if self._received >= min(self.requested, self.depth):
                return self._received >= self.depth
            if self._channel.is_closed:
                raise BrokerUnavailableError(
                    f"read {self.queue}", "the broker closed the channel"
                )
            self._has_news.clear()
            try:
                async with asyncio.timeout(_QUIET_S):
                    await self._has_news.wait()
                quiets = 0
            except TimeoutError:
                if await _ready_count(self._channel, self.queue) == 0:
                    quiets += 1
                if quiets == _QUIETS_MAX:
                    return True


async def _ready_count(channel: aiormq.Channel, queue: str) -> int:
    """Return how many messages are ready in `queue`. Call it within a `broker_call`."""
    return (await channel.queue_declare(queue, passive=True)).message_count or 0


def _counts_closed_channels(version: str) -> bool:
    """Whether RabbitMQ counts a closed channel as a failed delivery, but no nack (4.3)."""
    parts = version.split(".")
    try:
        return (int(parts[0]), int(parts[1])) >= (4, 3)
    except (ValueError, IndexError):
        return False
