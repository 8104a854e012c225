"""
Deliveries: what waits in the inbound queues, in order, in batches, until it is acked.

One supervised connection with a channel and a consumer for each shard. Prefetch is the
bound on what waits here; the broker keeps the rest. A session is whole or gone: when
anything of it fails (connection, channel, consumer, queue) it ends, what it brought is
forgotten, and the broker delivers that again to the next one.
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
from bridge.amqp.consume.consumer import BatchLimits, ConsumerSession
from bridge.amqp.consume.session import Batch, IntakeSession, Work, first_to_end
from bridge.amqp.frame_reader import DeliveryReader
from bridge.amqp.ownership import Neighbours
from bridge.amqp.shards.assignment import ShardAssignment
from bridge.amqp.shards.layout import ShardLayout, ShardPlan, marker_exchange_name
from bridge.amqp.shards.migration import ShardMigration, keep_publishing_end_markers
from bridge.amqp.supervision import supervise
from bridge.amqp.topology import Topology, declare, inbound_queue
from bridge.core.message import Delivery
from bridge.errors import BridgeError, BrokerUnavailableError, TopologyError
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)

# So many at once come from a backlog, and more of it waits in the socket.
_BACKLOG: Final = 50
_FLOOD: Final = 200
_ENOUGH: Final = 1000


class Intake:
    """
    Takes deliveries in. One task takes batches; any may ask how it is.

    Args:
        address: Where the broker is.
        wanted: Declared at each connect, so that what was deleted comes back.
        queue: The queue to consume.
        shards: If given, says what is declared and consumed, in place of these two.
        prefetch_count: Deliveries that may be in flight, 1 to 65535.
        limits: How much one batch may hold, and how much may wait.
        has_own_inbox: Whether nobody shares the inbox that what is taken goes into. Needs
            `shards`.

    Attributes:
        problem: Who is in our way, if nothing is taken for that; see `alone.py`.

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
        shards: ShardPlan | None = None,
        has_own_inbox: bool = False,
    ) -> None:
        self.wanted = wanted  # as of the last session
        self._address = address
        self._queue = queue
        self._shards = shards
        self._has_company = not has_own_inbox
        self._prefetch_count = prefetch_count
        self._limits = limits or BatchLimits()
        self._metrics = metrics
        metrics.in_flight.set_function(lambda: self.in_flight)
        metrics.shards_active.set_function(lambda: self.shards_active)
        self._session: IntakeSession | None = None
        self._seen_marks: list[str] = []
        self._mark_exchange = (
            b"" if shards is None else marker_exchange_name(shards.names).encode()
        )
        self._arrived = asyncio.Event()
        self._settled = asyncio.Event()
        self._stopping = asyncio.Event()
        self._was_consuming = False
        self._is_standing = False
        self.broker: BrokerIdentity | None = None  # of the last session
        self.problem: str | None = None

    @property
    def is_consuming(self) -> bool:
        """Whether the broker has a consumer of ours right now, as far as can be known."""
        return (
            self._is_standing
            and self._session is not None
            and self._session.problem() is None
        )

    @property
    def shards_active(self) -> int:
        """Shards whose deliveries come to us, as far as was seen."""
        consumers = self._session.consumers if self._session is not None else ()
        return sum(consumer.is_active for consumer in consumers)

    @property
    def in_flight(self) -> int:
        """Deliveries that came and are not acked, those that nobody took yet included."""
        return self._session.in_flight if self._session is not None else 0

    def in_flight_of(self, queue: str) -> int | None:
        """As `in_flight`, of one queue; ``None`` if it is not consumed here."""
        consumer = self._consumer_of(queue)
        return None if consumer is None else consumer.in_flight

    def oldest_of(self, queue: str) -> float | None:
        """As `oldest_s`, of one queue."""
        consumer = self._consumer_of(queue)
        return None if consumer is None else consumer.oldest_s

    def _consumer_of(self, queue: str) -> ConsumerSession | None:
        consumers = self._session.consumers if self._session is not None else ()
        return next((one for one in consumers if one.queue == queue), None)

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
            if (
                session is not None
                and not session.has_failed()
                and (waiting := session.waiting)
            ):
                if waiting > _BACKLOG:
                    await _let_gather(session)
                    if session.has_failed():
                        continue  # what it brought comes again: stored now, it is twice
                batch = session.take_out()
                if batch is not None:
                    return batch
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
        if not all(consumer.ack(tag) for consumer, tag in batch.last):
            session.fail("the connection was lost")
            return False
        if self._seen_marks:
            session.pass_marks(self._seen_marks)
            self._seen_marks = []
        return True

    def give_up(self, batch: Batch, problem: str) -> None:
        """End the session that brought `batch`, and begin a new one."""
        batch.session.fail(problem)

    def is_mark(self, delivery: Delivery) -> bool:
        """
        Whether `delivery` is for the intake itself and no user's: ack it with its batch.

        It stands behind all that was in a queue before the number of shards changed.
        """
        if not self._mark_exchange or delivery.exchange != self._mark_exchange:
            return False
        self._seen_marks.append(delivery.routing_key.decode(errors="replace"))
        return True

    async def stop_consuming(self) -> None:
        """
        Settle what the broker has given, and give the queues away; see `settled`.

        Only then may another bridge go on with them. Take and ack until that is done.
        """
        self._stopping.set()
        self._is_standing = False
        if self._session is not None:
            self._session.leave()
        log.info("intake.stopped", in_flight=self.in_flight)

    async def settled(self) -> None:
        """Wait until all is given away. Meant for after `stop_consuming`."""
        while self._session is not None:
            self._settled.clear()
            await self._settled.wait()

    async def set_prefetch(self, count: int) -> None:
        """
        Let up to `count` deliveries be in flight, from now on and after reconnects.

        Each queue is given away and consumed anew, so another bridge may have it then.
        """
        self._prefetch_count = count
        if self._session is not None:
            self._session.prefetch_count = count

    async def _consume(self, connection: BrokerConnection[DeliveryReader]) -> None:
        """Be one session after the other, until something goes wrong."""
        neighbours = await self._have_turn(connection)
        last_queues: Sequence[str] = ()
        while not self._stopping.is_set():
            layout, queues = await self._arrange(connection)
            if queues == last_queues:  # no other number of shards is why it ended
                problem = "the broker cancelled a consumer; was its queue deleted or its leader lost?"
                raise BrokerUnavailableError(f"consume {', '.join(queues)}", problem)
            last_queues = queues
            session = IntakeSession(
                connection,
                queues,
                prefetch_count=self._prefetch_count,
                timeout_s=self._address.timeout_s,
                arrived=self._arrived,
                metrics=self._metrics,
                limits=self._limits,
                may_vanish=self._shards is not None,
            )
            self._session = session
            self._seen_marks = []
            self.broker = broker_identity(connection)
            try:
                await self._run(session, connection, layout, neighbours)
            finally:
                session.tell()
                session.fail("it is over")  # whoever is about to take from it must not
                self._session = None
                self._is_standing = False
                self._settled.set()

    async def _have_turn(
        self, connection: BrokerConnection[DeliveryReader]
    ) -> Neighbours | None:
        """Wait until nobody is in our way, or until we are to stop."""
        if self._shards is None:
            return None
        neighbours = Neighbours(
            connection,
            self._shards.names,
            address=self._address,
            has_own_inbox=not self._has_company,
        )
        try:
            await neighbours.wait_until_gone(
                stopping=self._stopping, tell=partial(setattr, self, "problem")
            )
        except TopologyError as exc:
            raise self._refusal(exc) from exc
        return neighbours

    def _refusal(self, exc: TopologyError) -> BridgeError:
        """Return what becomes of it: the end of a start; later, another try."""
        if not self._was_consuming:
            return exc
        log.error("intake.topology_differs", problem=str(exc))
        return BrokerUnavailableError(f"declare {exc.name}", exc.problem)

    async def _run(
        self,
        session: IntakeSession,
        connection: BrokerConnection[DeliveryReader],
        layout: ShardLayout,
        neighbours: Neighbours | None,
    ) -> None:
        """Consume until something goes wrong, or the queues of before are all gone."""
        await session.start()
        self._was_consuming = True
        self._is_standing = not self._stopping.is_set()
        log.info("intake.consuming", queues=list(session.queues))
        if self._stopping.is_set():  # while we were starting
            session.leave()
        works: list[Work] = [session.watch, session.do_chores]
        if neighbours is not None:
            works.append(neighbours.keep_apart)
        if self._shards is not None and layout.is_migrating:
            works.append(
                partial(
                    keep_publishing_end_markers, self._address, self._shards, layout
                )
            )
        elif self._shards is not None and layout.shards > 1 and self._has_company:
            assignment = await ShardAssignment.open(
                session, connection, self._shards, shards=layout.shards
            )
            works.append(assignment.run)
        await first_to_end(works)

    async def _arrange(
        self, connection: BrokerConnection[DeliveryReader]
    ) -> tuple[ShardLayout, Sequence[str]]:
        """Declare what has to be, and say what is to be consumed now."""
        try:
            if self._shards is None:
                await declare(
                    connection, self.wanted, timeout_s=self._address.timeout_s
                )
                return ShardLayout(), (self._queue,)
            migration = ShardMigration(connection, self._shards)
            layout = await migration.ensure()
            self.wanted = wanted = self._shards.topology(layout)
            left = await migration.records.previous_queues(layout)
            if left:
                names = self._shards.names
                old = [inbound_queue(names, name) for name in left]
                self.wanted = replace(wanted, queues=[*old, *wanted.queues])
                return layout, tuple(left)
            if layout.is_migrating:
                await migration.complete(layout)
                layout = replace(layout, is_migrating=False)
            self._tell_layout(layout, self._shards)
            return layout, self._shards.names.inbound_queues(layout.shards)
        except TopologyError as exc:
            raise self._refusal(exc) from exc

    def _tell_layout(self, layout: ShardLayout, plan: ShardPlan) -> None:
        if layout.shards != plan.shards:
            log.warning(
                "shards.broker_decides",
                shards=layout.shards,
                setting=plan.shards,
                fix=f"BRIDGE_SHARDS={layout.shards}, or: bridge shards set {plan.shards}",
            )


async def _let_gather(session: IntakeSession) -> None:
    """
    Let a large batch grow: what one user gets leaves in one send, and one commit is for all.

    By what is there already, which takes a turn of the loop to receive. And in a flood, by
    what a millisecond brings: nothing waits longer for it than behind so much else.
    """
    count = 0
    while session.waiting > count:
        count = session.waiting
        await asyncio.sleep(0)
        if session.waiting == count and _FLOOD < count < _ENOUGH:
            await asyncio.sleep(0.001)
