"""
The intake: keeps consuming the inbound queues, and hands out their deliveries in batches.

One supervised connection has a channel and a consumer for each shard. Prefetch bounds the
deliveries that wait here; the broker keeps the rest. When the connection or a queue is
lost, the session ends, its deliveries are dropped, and the broker redelivers them to the
next session. A consumer that is lost is replaced alone.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from bridge.amqp.connection import (
    BrokerAddress,
    BrokerConnection,
    BrokerIdentity,
    Purpose,
    broker_identity,
)
from bridge.amqp.consume.consumer import Consumer, IntakeLimits
from bridge.amqp.consume.control import ControlConsumer
from bridge.amqp.consume.session import Batch, IntakeSession, SessionState
from bridge.amqp.frame_reader import DeliveryReader
from bridge.amqp.ownership import NamespaceOwnership
from bridge.amqp.shards.assignment import ShardAssignment
from bridge.amqp.shards.layout import ShardLayout, ShardPlan, marker_exchange_name
from bridge.amqp.shards.migration import (
    MARKER_TYPE,
    ShardMigration,
    keep_publishing_end_markers,
)
from bridge.amqp.supervision import OutageLog, Work, first_to_end, supervise
from bridge.amqp.topology import inbound_queue, topology
from bridge.core.message import Delivery
from bridge.errors import BridgeError, BrokerUnavailableError, TopologyError
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)

# More waiting deliveries than this come from a backlog, and more are in the socket.
_BACKLOG: Final = 50
_FLOOD: Final = 200
_ENOUGH: Final = 1000


class Intake:
    """
    Supervises the consuming session. One task takes batches; any task may read the facts.

    Args:
        address: The broker.
        plan: Decides what is declared at each connect and consumed.
        prefetch_count: Deliveries that may be in flight, 1 to 65535.
        limits: How large batches are, and how much may wait.
        has_own_inbox: Whether the inbox that takes the deliveries is not shared with other
            bridges.
        control: Carries out the commands of the back end while this bridge consumes; a bridge
            that waits for another one would store revocations in an inbox that is not used.

    """

    def __init__(
        self,
        address: BrokerAddress,
        plan: ShardPlan,
        *,
        prefetch_count: int,
        metrics: Metrics,
        limits: IntakeLimits | None = None,
        has_own_inbox: bool = False,
        control: ControlConsumer | None = None,
        outages: OutageLog | None = None,
    ) -> None:
        self.wanted = topology(plan.names, plan.retry_delays_s, plan.shards)
        self.broker: BrokerIdentity | None = None  # of the last session
        self._address = address
        self._plan = plan
        self._has_own_inbox = has_own_inbox
        self._control = control
        self._prefetch_count = prefetch_count
        self._limits = limits or IntakeLimits()
        self._metrics = metrics
        self._outages = outages or OutageLog()
        self._marker_exchange = marker_exchange_name(plan.names).encode()
        self._ownership: NamespaceOwnership | None = None  # of this connection
        self._session: IntakeSession | None = None
        self._session_ended = asyncio.Event()
        self._arrived = asyncio.Event()
        self._stopping = asyncio.Event()
        self._has_consumed = False
        metrics.in_flight.set_function(lambda: self.in_flight)
        metrics.shard_still.set_function(
            lambda: self._session.still_s if self._session is not None else {}
        )
        metrics.shards_active.set_function(lambda: self.shards_active)

    # --- facts

    @property
    def is_consuming(self) -> bool:
        """Whether this bridge has a consumer for each queue, be it the active one or not."""
        session = self._session
        return (
            session is not None
            and session.state is SessionState.ACTIVE
            and session.is_alive()
        )

    @property
    def problem(self) -> str | None:
        """Which other bridges keep this one from consuming; ``None`` if none does."""
        return None if self._ownership is None else self._ownership.problem

    @property
    def control_problem(self) -> str | None:
        """Why commands of the back end are not consumed; ``None`` if nothing is known."""
        return None if self._control is None else self._control.problem

    def stalls(self) -> list[str]:
        """Return one sentence for each queue that stands still although messages wait."""
        return self._session.stalls() if self._session is not None else []

    @property
    def shards_active(self) -> int:
        """Shards that the broker delivers to this bridge, as far as is known."""
        return sum(consumer.is_single_active for consumer in self._consumers)

    @property
    def in_flight(self) -> int:
        """Deliveries that arrived and are not acked, including those that still wait."""
        return self._session.in_flight if self._session is not None else 0

    def in_flight_of(self, queue: str) -> int | None:
        """Return `in_flight` of one queue; ``None`` if it is not consumed here."""
        consumer = self._consumer_of(queue)
        return None if consumer is None else consumer.in_flight

    def oldest_of(self, queue: str) -> float | None:
        """Return `oldest_s` of the consumer of `queue`; ``None`` if there is none."""
        consumer = self._consumer_of(queue)
        return None if consumer is None else consumer.oldest_s

    @property
    def _consumers(self) -> Sequence[Consumer]:
        return self._session.consumers if self._session is not None else ()

    def _consumer_of(self, queue: str) -> Consumer | None:
        return next((one for one in self._consumers if one.queue == queue), None)

    # --- deliveries

    async def next_batch(self) -> Batch:
        """
        Wait for deliveries and return the oldest, in order.

        Cancellation:
            Safe; nothing is taken.

        """
        while True:
            session = self._session
            if session is not None and (waiting := session.waiting):
                if waiting > _BACKLOG:
                    await _let_batch_grow(session)
                # None if the session has ended, also while the batch was growing: its
                # deliveries would be stored now and again when they are redelivered.
                batch = session.take_batch()
                if batch is not None:
                    return batch
            self._arrived.clear()
            await self._arrived.wait()

    async def collect(self, seconds: float) -> None:
        """
        Let deliveries collect for `seconds`, or less if the prefetch is small.

        Does not wait if enough of them for a large batch wait already.

        Cancellation:
            Safe.

        """
        session = self._session
        if session is not None and session.waiting < _FLOOD:
            await session.collect(seconds)

    def is_current(self, batch: Batch) -> bool:
        """Whether `batch` can still be acked; if not, the broker redelivers it."""
        return batch.session.is_current(batch)

    def put_back(self, batch: Batch) -> int:
        """
        Hand out again what can still be acked of a batch that is not current.

        Returns:
            The number of deliveries that the broker does not redeliver.

        """
        return batch.session.put_back(batch)

    async def ack(self, batch: Batch) -> bool:
        """
        Tell the broker that `batch` and everything before it is settled, except what is held.

        Returns:
            False if the broker redelivers some of it, because its session or a consumer
            was lost.

        """
        return batch.session.ack(batch)

    def is_end_marker(self, delivery: Delivery) -> bool:
        """
        Whether `delivery` marks the end of a queue of the old layout, and is for no user.

        It comes after everything else in that queue. Its queue belongs into
        `ended_queues` of its batch: the session deletes it after the batch is acked.
        """
        return (
            delivery.exchange == self._marker_exchange
            and delivery.properties.type == MARKER_TYPE
        )

    # --- supervision

    async def run(self) -> None:
        """
        Keep consuming until cancelled, whatever happens to the broker.

        Raises:
            TopologyError: If the broker holds something else under our names, before the
                first session has consumed. Later it is logged and tried again, because
                windows are connected and an operator may be working on the broker.

        Cancellation:
            Closes the connection; the broker redelivers what is in flight.

        """
        await supervise(
            self._consume,
            address=self._address,
            purpose=Purpose.CONSUME,
            reader=DeliveryReader,
            metrics=self._metrics,
            outages=self._outages,
        )

    async def stop_consuming(self) -> None:
        """
        Begin to hand all queues over to other bridges, in order; see `settled`.

        Batches have to be taken and acked until that is done.
        """
        self._stopping.set()
        if self._session is not None:
            self._session.drain()
        log.info("intake.stopped", in_flight=self.in_flight)

    async def settled(self) -> None:
        """Wait until no session is left. Meant for after `stop_consuming`."""
        while self._session is not None:
            self._session_ended.clear()
            await self._session_ended.wait()

    async def set_prefetch(self, count: int) -> None:
        """
        Let up to `count` deliveries be in flight, now and after reconnects.

        Each queue is released and consumed again, so another bridge may receive it.
        """
        self._prefetch_count = count
        if self._session is not None:
            self._session.set_prefetch(count)

    async def _consume(self, connection: BrokerConnection[DeliveryReader]) -> None:
        """Run one session after another on this connection, until something fails."""
        ownership = await self._acquire_ownership(connection)
        last_queues: Sequence[str] = ()
        while not self._stopping.is_set():
            layout, queues = await self._declare(connection)
            if queues == last_queues:  # the session did not end for another layout
                problem = "a queue was deleted while it was consumed"
                raise BrokerUnavailableError(f"consume {', '.join(queues)}", problem)
            last_queues = queues
            self.broker = broker_identity(connection)
            session = self._session = IntakeSession(
                connection,
                queues,
                prefetch_count=self._prefetch_count,
                arrived=self._arrived,
                metrics=self._metrics,
                limits=self._limits,
            )
            try:
                await self._run(session, connection, layout, ownership)
            finally:
                session.flush_acks()
                session.fail("the session has ended")
                self._session = None
                self._session_ended.set()

    async def _run(
        self,
        session: IntakeSession,
        connection: BrokerConnection[DeliveryReader],
        layout: ShardLayout,
        ownership: NamespaceOwnership,
    ) -> None:
        """Consume until something fails, or the queues of the old layout are gone."""
        if self._stopping.is_set():  # while the topology was declared
            session.drain()
        await session.start()
        self._has_consumed = True
        log.info("intake.consuming", queues=list(session.queues))
        works: list[Work] = [
            session.watch,
            session.maintain,
            session.observe,
            ownership.keep,
        ]
        if self._control is not None:
            works.append(partial(self._control.run, connection))
        if layout.is_migrating:
            works.append(
                partial(keep_publishing_end_markers, self._address, self._plan, layout)
            )
        elif layout.shards > 1 and not self._has_own_inbox:
            assignment = ShardAssignment(
                session, connection, self._plan, shards=layout.shards
            )
            works.append(assignment.run)
        await first_to_end(works)

    async def _acquire_ownership(
        self, connection: BrokerConnection[DeliveryReader]
    ) -> NamespaceOwnership:
        """Wait until this bridge may consume, or until consuming is stopped."""
        ownership = self._ownership = NamespaceOwnership(
            connection,
            self._plan.names,
            address=self._address,
            has_own_inbox=self._has_own_inbox,
        )
        try:
            await ownership.acquire(stopping=self._stopping)
        except TopologyError as exc:
            raise self._refusal(exc) from exc
        return ownership

    async def _declare(
        self, connection: BrokerConnection[DeliveryReader]
    ) -> tuple[ShardLayout, Sequence[str]]:
        """Declare the topology; return the layout and the queues to consume now."""
        try:
            migration = ShardMigration(connection, self._plan)
            layout = await migration.ensure()
            self.wanted = wanted = self._plan.topology(layout)
            left = await migration.records.previous_queues(layout)
            if left:
                names = self._plan.names
                old = [inbound_queue(names, name) for name in left]
                self.wanted = replace(wanted, queues=[*old, *wanted.queues])
                return layout, tuple(left)
            if layout.is_migrating:
                await migration.complete(layout)
                layout = replace(layout, is_migrating=False)
            self._log_layout(layout)
            return layout, self._plan.names.inbound_queues(layout.shards)
        except TopologyError as exc:
            raise self._refusal(exc) from exc

    def _refusal(self, exc: TopologyError) -> BridgeError:
        """Return the error to raise: `exc` ends a start; later, consuming is retried."""
        if not self._has_consumed:
            return exc
        log.error("intake.topology_differs", problem=str(exc))
        return BrokerUnavailableError(f"declare {exc.name}", exc.problem)

    def _log_layout(self, layout: ShardLayout) -> None:
        shards = self._plan.shards
        if layout.shards != shards:
            log.warning(
                "shards.broker_decides",
                shards=layout.shards,
                setting=shards,
                fix=f"BRIDGE_SHARDS={layout.shards}, or: bridge shards set {shards}",
            )


async def _let_batch_grow(session: IntakeSession) -> None:
    """
    Wait while more deliveries arrive: one commit and one send then serve more messages.

    Deliveries that are in the socket already need one turn of the loop. In a flood, wait
    a millisecond for more: that is short compared to the wait behind so many others.
    """
    count = 0
    while session.waiting > count:
        count = session.waiting
        await asyncio.sleep(0)
        if session.waiting == count and _FLOOD < count < _ENOUGH:
            await asyncio.sleep(0.001)
