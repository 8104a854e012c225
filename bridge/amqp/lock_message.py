"""
A queue with one message in it, the token: who holds it is known, and lives.

The queue has a single active consumer, which holds the token unacked. So one bridge alone
has it, and when that dies, or the node of its connection does, the broker gives it to the
next in the line. Whoever only wants to know looks whether the token lies in the queue.

Two ways that are less work were tried and are wrong. Consumers can be counted, but those of
a node that is down count until it is back (3.10.8). So does the record of an exclusive
queue outlive its node (4.2 with Khepri).
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import aiormq
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity

from bridge.amqp.connection import (
    BrokerAddress,
    BrokerConnection,
    Purpose,
    broker_call,
    open_connection,
)
from bridge.amqp.frame_reader import DeliveryReader, FrameReader
from bridge.amqp.topology import (
    QUORUM,
    Binding,
    Exchange,
    Queue,
    bind,
    declare_one,
)
from bridge.core.message import Delivery
from bridge.errors import BrokerUnavailableError

_ARGUMENTS: Final = {**QUORUM, "x-single-active-consumer": True}
# The broker gives it as soon as it has heard of the consumer.
_GIVEN_WITHIN_S: Final = 2.0
# Later than that it may be gone.
_GIVEN_BACK_WITHIN_S: Final = 5.0
_LOOK_AGAIN_S: Final = 0.05
_LOOKS_MAX: Final = 20
_LYING: Final = 2
_PERSISTENT: Final = 2


class Token:
    """
    One token, seen and held over one connection.

    All methods raise `BrokerUnavailableError` if the broker is away or too slow.
    Cancelling is safe: what is left half done ends with the connection.

    Args:
        connection: Lives on; the token is held no longer than it does.
        queue: Its queue.
        address: Where the broker is: a token is put there on a connection of its own, since
            a broker that runs short stops reading from one that ever published.

    """

    def __init__(
        self,
        connection: BrokerConnection[FrameReader],
        queue: str,
        *,
        address: BrokerAddress,
    ) -> None:
        self.queue = queue
        self._connection = connection
        self._address = address
        self._timeout_s = address.timeout_s
        self._line: tuple[aiormq.Channel, str | None] | None = None
        self._given = asyncio.Event()
        self._tag = 0
        self._held = 0  # how many were given

    @property
    def is_in_line(self) -> bool:
        """Whether it is ours, or will be when those before us have gone."""
        if self._line is None:
            return False
        channel, consumer_tag = self._line
        return not channel.is_closed and consumer_tag in channel.consumers

    async def is_held(self) -> bool:
        """Say whether somebody has it, us included."""
        seen_lying = 0
        for _ in range(_LOOKS_MAX):
            told = await self._look()
            if told is None:
                return False
            if told.message_count:
                # Consumers of a node that is down are counted, and have nothing. Whoever
                # renews it lays it down for a moment.
                seen_lying += 1
                if seen_lying == _LYING:
                    return False
            elif told.consumer_count:
                return True
            # Else the queue is new, or has no leader now and tells nothing.
            await asyncio.sleep(_LOOK_AGAIN_S)
        return False

    async def stand_in_line(self) -> None:
        """
        Stand in the line for it, until `leave`, or until the connection ends.

        Raises:
            TopologyError: If something else has the queue's name.

        """
        channel = await self._channel()
        queue = Queue(self.queue, _ARGUMENTS)
        await declare_one(channel, queue, timeout_s=self._timeout_s)
        told = await self._look()
        if told is None or not (told.message_count or told.consumer_count):
            await self._put()
        self._given.clear()
        self._held = 0
        reader = self._connection.reader
        if isinstance(reader, DeliveryReader):
            assert channel.number is not None  # noqa: S101 - it is open
            reader.subscribe(channel.number, self.queue, self._take_found)
        async with broker_call(f"consume {self.queue}", timeout_s=self._timeout_s):
            consumer = await channel.basic_consume(self.queue, self._take_message)
        self._line = channel, consumer.consumer_tag

    async def is_given(self, *, within_s: float = _GIVEN_WITHIN_S) -> bool:
        """Wait for it for a moment, and say whether it is ours."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._given.wait()
        return self._given.is_set()

    async def renew(self) -> None:
        """
        Lay it down and take it up again: the broker waits half an hour for an ack.

        Raises:
            BrokerUnavailableError: Also if it is not given back.

        """
        if self._line is None or not self._given.is_set():
            return
        channel, _ = self._line
        self._given.clear()
        last, held, self._held = self._tag, self._held, 0
        async with broker_call(f"renew {self.queue}", timeout_s=self._timeout_s):
            if held > 1:
                await channel.basic_ack(last - 1, multiple=True)  # one is enough
            # To nobody else: we are the active one, and stay it.
            await channel.basic_nack(last, multiple=True, requeue=True)
        if await self.is_given(within_s=_GIVEN_BACK_WITHIN_S):
            return
        if self.is_in_line:
            # A policy may have taken it away, by a TTL or a delivery limit.
            await self._put()
            if await self.is_given(within_s=self._timeout_s):
                return
        raise BrokerUnavailableError(f"renew {self.queue}", "it was not given back")

    async def leave(self) -> None:
        """Leave the line; the next one gets it."""
        if self._line is None:
            return
        (channel, _), self._line = self._line, None
        self._given.clear()
        reader = self._connection.reader
        if isinstance(reader, DeliveryReader):
            # Before it is closed: then its number is free, and another may have it at once.
            reader.unsubscribe(channel.number, self._take_found)
        async with broker_call(f"leave {self.queue}", timeout_s=self._timeout_s):
            await channel.close()

    def _take(self, tag: int) -> None:
        self._tag = tag
        self._held += 1
        self._given.set()

    def _take_found(self, found: Sequence[Delivery]) -> None:
        for delivery in found:
            self._take(delivery.tag)

    async def _take_message(self, message: DeliveredMessage) -> None:
        """As `_take`, where the connection's reader leaves deliveries to the library."""
        self._take(message.delivery_tag or 0)

    async def _look(self) -> aiormq.spec.Queue.DeclareOk | None:
        # A refusal closes its channel, so each look gets one of its own.
        channel = await self._channel()
        async with broker_call(f"look at {self.queue}", timeout_s=self._timeout_s):
            try:
                told = await channel.queue_declare(self.queue, passive=True)
            except ChannelNotFoundEntity:
                return None
            await channel.close()
        return told

    async def _put(self) -> None:
        """Put one into a queue that has none; a second one does no harm."""
        connection = await open_connection(
            self._address, purpose=Purpose.OPERATE, reader=FrameReader
        )
        try:
            async with broker_call(
                f"open a channel for {self.queue}", timeout_s=self._timeout_s
            ):
                channel = await connection.open_channel(confirms=True)
            # The broker's own exchange is nothing that a bridge may need to write to.
            exchange = Exchange(self.queue, "fanout")
            binding = Binding(exchange.name, Queue(self.queue, _ARGUMENTS))
            await declare_one(channel, exchange, timeout_s=self._timeout_s)
            await bind(channel, binding, timeout_s=self._timeout_s)
            async with broker_call(
                f"publish to {self.queue}", timeout_s=self._timeout_s
            ):
                await channel.basic_publish(
                    b"{}",
                    exchange=exchange.name,
                    properties=aiormq.spec.Basic.Properties(delivery_mode=_PERSISTENT),
                )
        finally:
            await connection.leave()

    async def _channel(self) -> aiormq.Channel:
        async with broker_call("open a channel", timeout_s=self._timeout_s):
            return await self._connection.open_channel(confirms=False)
