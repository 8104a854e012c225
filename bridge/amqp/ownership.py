"""
Which bridges may consume a namespace.

Two inboxes on one namespace would split each user's messages: a window at one bridge would
never see what the other one stored. So a bridge with an inbox of its own (`sqlite:`,
`memory:`) consumes only while no other bridge does, and bridges that share an inbox
consume only while none with its own inbox does. The bridge that came first continues. The
others are not ready, report why, and take over when it has gone, as during a restart.

There are two lock messages. A bridge with its own inbox holds the one in `<ns>.alone`
while it consumes. Of the bridges that share an inbox, one holds the one in `<ns>.shared`,
and the others wait for it. Each bridge requests its own lock message first and then looks
at the other one. So of two that start at the same moment, at least one sees the other.

Bridges of versions before this lock hold no lock message and look at none.
"""

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import aiormq
import structlog
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity

from bridge.amqp.connection import (
    BrokerAddress,
    BrokerConnection,
    Purpose,
    close_reason,
    open_connection,
)
from bridge.amqp.frame_reader import DeliveryReader, FrameReader
from bridge.amqp.topology import QUORUM, Binding, Exchange, Queue, bind, declare_one
from bridge.core.broker_names import BrokerNames
from bridge.core.message import Delivery
from bridge.errors import BrokerUnavailableError

log = structlog.get_logger(__name__)

ALONE: Final = "alone"
SHARED: Final = "shared"
_LOCK_ARGUMENTS: Final = {**QUORUM, "x-single-active-consumer": True}
_PERSISTENT: Final = 2
_PROBE_PAUSE_S: Final = 0.05
_PROBES_MAX: Final = 20
_READY_PROBES: Final = 4
_NOT_DELIVERED: Final = (
    "the broker does not deliver the message of queue {} to this bridge: is it overloaded, "
    "or does a policy remove messages from that queue?"
)
_OWN_INBOX: Final = (
    "another bridge with an inbox of its own consumes the messages of {}; this bridge waits "
    "until it has stopped"
)
_SHARED_INBOX: Final = (
    "bridges with a shared inbox consume the messages of {}, and this bridge has an inbox of "
    "its own: it waits until they have stopped; BRIDGE_INBOX=redis://... is shared"
)


@dataclass(frozen=True, slots=True)
class OwnershipTiming:
    """
    Intervals and limits of the lock messages.

    Attributes:
        poll_s: The mean time between two looks at the other bridges.
        renew_s: How often a lock message is returned and received again. It must be well
            below the broker's ack timeout, which is half an hour by default. A bridge
            cannot read the node's `consumer_timeout`, so this suits even a few seconds;
            it costs the broker one entry in the log of a queue.
        deliver_s: How long the broker may take to deliver a lock message that is ready.
        redeliver_s: How long it may take to redeliver one; later it may be gone.
        failed_claims: After how many failed claims in a row the problem is reported. Two
            bridges that start at the same moment give way to each other and try again.

    """

    poll_s: float = 0.5
    renew_s: float = 2.0
    deliver_s: float = 2.0
    redeliver_s: float = 5.0
    failed_claims: int = 4


class LockMessage:
    """
    The one message of a queue with a single active consumer, which holds it unacked.

    One bridge at most holds it. When that bridge or the node of its connection dies, the
    broker delivers it to the next consumer. Other bridges see that it is held because it
    is not ready in the queue.

    Two simpler ways do not work. The number of consumers includes those of a node that is
    down, until it is up again (RabbitMQ 3.10.8). The record of an exclusive queue also
    outlives its node (RabbitMQ 4.2 with Khepri).

    All methods raise BrokerUnavailableError if the broker is away or too slow. Cancelling
    is safe: incomplete steps end with the connection.

    Args:
        connection: Stays open; the message is held no longer than it lives.
        queue: The queue of the message.
        address: The broker. The message is published on a connection of its own, because
            a broker that runs short of memory or disk stops reading from connections that
            ever published.
        timing: Intervals and limits.

    """

    def __init__(
        self,
        connection: BrokerConnection[FrameReader],
        queue: str,
        *,
        address: BrokerAddress,
        timing: OwnershipTiming,
    ) -> None:
        self.queue = queue
        self._connection = connection
        self._address = address
        self._timeout_s = address.timeout_s
        self._timing = timing
        self._consumer: tuple[aiormq.Channel, str | None] | None = None
        self._delivered = asyncio.Event()
        self._last_tag = 0
        self._count = 0  # of lock messages held

    @property
    def is_requested(self) -> bool:
        """Whether this bridge holds it, or waits for the bridges that requested it before."""
        if self._consumer is None:
            return False
        channel, consumer_tag = self._consumer
        return not channel.is_closed and consumer_tag in channel.consumers

    @property
    def loss(self) -> str | None:
        """Why the broker closed the channel of the consumer; ``None`` if it did not."""
        return None if self._consumer is None else close_reason(self._consumer[0])

    async def is_held(self) -> bool:
        """Return whether a bridge holds it, this one included."""
        ready_probes = 0
        for _ in range(_PROBES_MAX):
            reply = await self._probe()
            if reply is None:
                return False
            if reply.message_count:
                # Consumers may be counted whose node is down. But a bridge that renews
                # the message returns it for a moment, which a slow broker makes longer.
                ready_probes += 1
                if ready_probes == _READY_PROBES:
                    return False
            elif reply.consumer_count:
                return True
            # Otherwise the queue is new, or has no leader and reports nothing.
            await asyncio.sleep(_PROBE_PAUSE_S)
        return False

    async def request(self) -> None:
        """
        Consume the queue until `release`, or until the connection ends.

        Raises:
            TopologyError: If a queue of that name exists with other properties.

        """
        channel = await self._connection.open_channel(confirms=False)
        queue = Queue(self.queue, _LOCK_ARGUMENTS)
        await declare_one(channel, queue, timeout_s=self._timeout_s)
        reply = await self._probe()
        if reply is None or not (reply.message_count or reply.consumer_count):
            await self._publish()
        self._delivered.clear()
        self._count = 0
        reader = self._connection.reader
        if isinstance(reader, DeliveryReader):
            reader.subscribe(channel.number, self.queue, self._on_deliveries)
        async with self._connection.call(f"consume {self.queue}"):
            consumer = await channel.basic_consume(self.queue, self._on_message)
        self._consumer = channel, consumer.consumer_tag

    async def wait_until_delivered(self, *, within_s: float) -> bool:
        """Return whether this bridge holds it within that time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._delivered.wait()
        return self._delivered.is_set()

    async def renew(self) -> None:
        """
        Return the message and receive it again, if this bridge holds it.

        The broker closes the channel of a delivery that is not acked for half an hour.

        Raises:
            BrokerUnavailableError: Also if the message is not redelivered.

        """
        if self._consumer is None or not self._delivered.is_set():
            return
        channel, _ = self._consumer
        self._delivered.clear()
        last_tag, count, self._count = self._last_tag, self._count, 0
        async with self._connection.call(f"renew {self.queue}"):
            if count > 1:  # two bridges may have published one each
                await channel.basic_ack(last_tag - 1, multiple=True)
            # The message returns to this bridge, which remains the active consumer.
            await channel.basic_nack(last_tag, multiple=True, requeue=True)
        if await self.wait_until_delivered(within_s=self._timing.redeliver_s):
            return
        if self.is_requested:
            # A policy may have removed it, by a TTL or a delivery limit.
            await self._publish()
            if await self.wait_until_delivered(within_s=self._timeout_s):
                return
        raise BrokerUnavailableError(f"renew {self.queue}", "it was not redelivered")

    async def release(self) -> None:
        """Stop consuming the queue; the next bridge receives the message."""
        if self._consumer is None:
            return
        (channel, _), self._consumer = self._consumer, None
        self._delivered.clear()
        reader = self._connection.reader
        if isinstance(reader, DeliveryReader):
            reader.unsubscribe(channel.number, self._on_deliveries)
        async with self._connection.call(f"release {self.queue}"):
            await channel.close()

    def _on_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        self._last_tag = deliveries[-1].tag
        self._count += len(deliveries)
        self._delivered.set()

    async def _on_message(self, message: DeliveredMessage) -> None:
        """Receive it from the library, if the reader of the connection passes it on."""
        self._last_tag = message.delivery_tag or 0
        self._count += 1
        self._delivered.set()

    async def _probe(self) -> aiormq.spec.Queue.DeclareOk | None:
        # A refusal closes its channel, so each probe uses a channel of its own.
        channel = await self._connection.open_channel(confirms=False)
        async with self._connection.call(f"look up {self.queue}"):
            try:
                reply = await channel.queue_declare(self.queue, passive=True)
            except ChannelNotFoundEntity:
                return None
            await channel.close()
        return reply

    async def _publish(self) -> None:
        """Publish the lock message; a second one in the queue is harmless."""
        connection = await open_connection(
            self._address, purpose=Purpose.OPERATE, reader=FrameReader
        )
        try:
            channel = await connection.open_channel(confirms=True)
            # The user may lack the permission to write to the broker's default exchange.
            exchange = Exchange(self.queue, "fanout")
            binding = Binding(exchange.name, Queue(self.queue, _LOCK_ARGUMENTS))
            await declare_one(channel, exchange, timeout_s=self._timeout_s)
            await bind(channel, binding, timeout_s=self._timeout_s)
            doing = f"publish to {self.queue}"
            async with connection.call(doing):
                await channel.basic_publish(
                    b"{}",
                    exchange=exchange.name,
                    properties=aiormq.spec.Basic.Properties(delivery_mode=_PERSISTENT),
                )
        finally:
            await connection.disconnect()


class NamespaceOwnership:
    """
    The right of a bridge to consume its namespace, bound to one connection.

    All methods raise BrokerUnavailableError if the broker is away or too slow. Cancelling
    is safe.

    Args:
        connection: Stays open; an acquired right ends with it.
        names: The names of the namespace.
        address: The broker.
        has_own_inbox: Whether the inbox of the bridge is not shared.
        timing: Intervals and limits.

    """

    def __init__(
        self,
        connection: BrokerConnection[FrameReader],
        names: BrokerNames,
        *,
        address: BrokerAddress,
        has_own_inbox: bool,
        timing: OwnershipTiming | None = None,
    ) -> None:
        self.problem: str | None = None  # what keeps `acquire` waiting
        self._names = names
        self._has_own_inbox = has_own_inbox
        self._timing = timing = timing or OwnershipTiming()
        self._alone, self._shared = (
            LockMessage(
                connection, names.lock_queue(kind), address=address, timing=timing
            )
            for kind in (ALONE, SHARED)
        )

    @property
    def _lock(self) -> LockMessage:
        return self._alone if self._has_own_inbox else self._shared

    async def acquire(self, *, stopping: asyncio.Event) -> None:
        """
        Wait until this bridge may consume, or until `stopping` is set.

        Raises:
            TopologyError: If the queue of a lock message exists with other properties.

        """
        has_waited = False
        failed_claims = 0
        try:
            while not stopping.is_set():
                problem = await self.find_conflict()
                if problem is None and await self._claim():
                    break
                failed_claims += problem is None
                if failed_claims == self._timing.failed_claims:
                    problem = _NOT_DELIVERED.format(self._lock.queue)
                if problem not in (None, self.problem):
                    self.problem = problem
                    has_waited = True
                    log.warning("ownership.waiting", problem=problem)
                # With jitter, or two bridges that saw each other would do so again.
                pause_s = self._timing.poll_s * (0.5 + random.random())  # noqa: S311 - no secret
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await stopping.wait()
        finally:
            self.problem = None
        if has_waited and not stopping.is_set():
            log.info("ownership.acquired")

    async def find_conflict(self) -> str | None:
        """Return which other bridges keep this one, which does not consume, from consuming."""
        if await self._alone.is_held():
            return _OWN_INBOX.format(self._names.namespace)
        if self._has_own_inbox and await self._shared.is_held():
            return _SHARED_INBOX.format(self._names.namespace)
        return None

    async def is_exclusive(self) -> bool:
        """Return whether a bridge with its own inbox consumes; it may be this one."""
        return await self._alone.is_held()

    async def _claim(self) -> bool:
        """Request the lock message; withdraw and return False if there is a conflict."""
        await self._lock.request()
        deliver_s = self._timing.deliver_s
        if self._has_own_inbox:
            is_visible = await self._alone.wait_until_delivered(within_s=deliver_s)
            other = self._shared
        else:
            # It does not matter which of the bridges that share an inbox holds it.
            is_visible = (
                await self._shared.is_held()
                or await self._shared.wait_until_delivered(within_s=deliver_s)
            )
            other = self._alone
        # Only after this bridge is visible: of two that claim at the same moment, at
        # least one sees the other here.
        if is_visible and not await other.is_held():
            return True
        await self._lock.release()
        return False

    async def keep(self) -> None:
        """
        Renew the lock message, forever.

        Raises:
            BrokerUnavailableError: If it is lost, for example because its queue was
                deleted. The session must end then, and acquire it again.

        """
        while True:
            try:
                async with asyncio.timeout(self._timing.renew_s):
                    await self._watch()
            except TimeoutError:
                await self._lock.renew()

    async def _watch(self) -> None:
        while self._lock.is_requested:  # noqa: ASYNC110 - the library reports no change
            await asyncio.sleep(self._timing.poll_s)
        raise BrokerUnavailableError(
            f"consume {self._lock.queue}", self._lock.loss or "is the queue deleted?"
        )
