"""
Deliveries: what waits in the inbound queue, in order, in batches, until it is acked.

One supervised connection with one channel and one consumer. Prefetch is the bound on
what waits here; the broker keeps the rest. A session is whole or gone: when anything of
it fails (connection, channel, consumer, queue) it ends, what it brought is forgotten,
and the broker delivers that again to the next one.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from bridge.broker.connection import (
    BrokerAddress,
    BrokerConnection,
    BrokerIdentity,
    Purpose,
    broker_call,
    broker_identity,
)
from bridge.broker.consumer import BatchLimits, ConsumerSession
from bridge.broker.frame_reader import DeliveryReader
from bridge.broker.supervision import supervise
from bridge.broker.topology import Topology, declare
from bridge.core.message import Delivery
from bridge.errors import BrokerUnavailableError, TopologyError
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """
    Deliveries that are settled together, oldest first.

    Its session is known to `Intake` only: tags mean nothing on another one.
    """

    deliveries: Sequence[Delivery]
    session: ConsumerSession = field(repr=False, compare=False)


class Intake:
    """
    Takes deliveries in from one queue. One task takes batches; any may ask how it is.

    Args:
        address: Where the broker is.
        wanted: Declared at each connect, so that what was deleted comes back.
        queue: The queue to consume.
        prefetch_count: Deliveries that may be in flight, 1 to 65535.
        limits: How much one batch may hold.

    """

    def __init__(
        self,
        address: BrokerAddress,
        wanted: Topology,
        *,
        queue: str,
        prefetch_count: int,
        metrics: Metrics,
        limits: BatchLimits | None = None,
    ) -> None:
        self._address = address
        self._wanted = wanted
        self._queue = queue
        self._prefetch_count = prefetch_count
        self._limits = limits or BatchLimits()
        self._metrics = metrics
        metrics.in_flight.set_function(lambda: self.in_flight)
        self._session: ConsumerSession | None = None
        self._arrived = asyncio.Event()
        self._settled = asyncio.Event()
        self._stopping = asyncio.Event()
        self._was_consuming = False
        self.broker: BrokerIdentity | None = None  # of the last session

    @property
    def is_consuming(self) -> bool:
        """Whether the broker has a consumer of ours right now, as far as can be known."""
        return self._session is not None and self._session.is_consuming

    @property
    def in_flight(self) -> int:
        """Deliveries that came and are not acked, those that nobody took yet included."""
        return self._session.in_flight if self._session is not None else 0

    @property
    def oldest_s(self) -> float | None:
        """Seconds since the oldest delivery in flight came; ``None`` if none is."""
        return self._session.oldest_s if self._session is not None else None

    async def run(self) -> None:
        """
        Keep consuming until cancelled, whatever happens to the broker.

        Raises:
            TopologyError: If something else has our names on the broker, before the
                first consumer stood. Later it is logged and tried again: windows are
                being served, and an operator may be at it.

        Cancellation:
            Closes the connection; what is in flight comes again.

        """
        await supervise(
            self._consume,
            address=self._address,
            purpose=Purpose.CONSUME,
            reader=DeliveryReader,
            metrics=self._metrics,
        )

    async def next_batch(self) -> Batch:
        """
        Wait for deliveries, and hand over what waits, in order.

        Cancellation:
            Safe; nothing is taken.

        """
        while True:
            session = self._session
            if session is not None and session.has_waiting:
                return Batch(session.take_out(self._limits), session)
            self._arrived.clear()
            await self._arrived.wait()

    def is_current(self, batch: Batch) -> bool:
        """Whether `batch` can still be acked; if not, it is delivered again."""
        session = batch.session
        return session is self._session and session.problem() is None

    async def ack(self, batch: Batch) -> bool:
        """
        Tell the broker that all of `batch`, and all before it, is safe.

        Returns:
            False if the session that brought it is gone: the broker delivers it again.

        """
        if not self.is_current(batch):
            return False
        session = batch.session
        if not session.ack(batch.deliveries[-1].tag):
            session.fail("the connection was lost")
            return False
        self._settled.set()
        return True

    async def stop_consuming(self) -> None:
        """
        Take no more deliveries; those in flight can still be taken and acked.

        Returns within the broker timeout, also when the broker does not answer.
        """
        self._stopping.set()
        session = self._session
        if session is not None:
            try:
                await session.stop_consumer()
            except BrokerUnavailableError as exc:
                session.fail(exc.problem)
        log.info("intake.stopped", in_flight=self.in_flight)

    async def settled(self) -> None:
        """Wait until nothing is in flight. Meant for after `stop_consuming`."""
        while self.in_flight:
            self._settled.clear()
            await self._settled.wait()

    async def set_prefetch(self, count: int) -> None:
        """Let up to `count` deliveries be in flight, from now on and after reconnects."""
        if count == self._prefetch_count:
            return
        self._prefetch_count = count
        session = self._session
        if session is None or self._stopping.is_set():
            return
        try:
            await session.start_consumer(count)
            if self._stopping.is_set():  # meanwhile
                await session.stop_consumer()
        except BrokerUnavailableError as exc:
            session.fail(exc.problem)

    async def _consume(self, connection: BrokerConnection[DeliveryReader]) -> None:
        """Be one session: from declaring to the first thing that goes wrong."""
        if self._stopping.is_set():
            return
        await self._declare(connection)
        async with broker_call("open a channel", timeout_s=self._address.timeout_s):
            channel = await connection.open_channel(confirms=False)
        session = ConsumerSession(
            channel,
            queue=self._queue,
            timeout_s=self._address.timeout_s,
            arrived=self._arrived,
            metrics=self._metrics,
            write=connection.write,
        )
        connection.reader.on_deliveries = session.take_in
        self._session = session
        self.broker = broker_identity(connection)
        try:
            await session.start_consumer(self._prefetch_count)
            self._was_consuming = True
            log.info("intake.consuming", queue=self._queue)
            if self._stopping.is_set():  # while we were starting
                await session.stop_consumer()
            await session.watch()
        finally:
            self._session = None
            self._settled.set()

    async def _declare(self, connection: BrokerConnection[DeliveryReader]) -> None:
        try:
            await declare(connection, self._wanted, timeout_s=self._address.timeout_s)
        except TopologyError as exc:
            if not self._was_consuming:
                raise
            log.error(  # noqa: TRY400 - its sentence says all, a traceback nothing
                "intake.topology_differs", problem=str(exc)
            )
            raise BrokerUnavailableError(f"declare {exc.name}", exc.problem) from exc
