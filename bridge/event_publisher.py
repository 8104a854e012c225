"""
Publishes the events of the store for workers, such as receipts, to `<ns>.events`.

The store keeps each event until the broker has confirmed it, so nothing that happens here can
lose one; a crash between the confirm and its note in the store repeats an event with the same
id. While nothing can be published, messages are delivered as usual. Only when the store holds
as many events as the operator allows, the oldest about presence are dropped; if there are
none, the pipeline waits with messages that add more.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic, time
from typing import Final

import structlog

from bridge.amqp.connection import (
    CONNECTION_LOST,
    NO_CONNECTION,
    BrokerAddress,
    BrokerConnection,
    Purpose,
)
from bridge.amqp.frame_reader import RequestReader
from bridge.amqp.publish.event_channel import (
    DirectReplies,
    EventChannel,
    open_event_channel,
)
from bridge.amqp.supervision import OutageLog, supervise
from bridge.core.broker_names import BrokerNames
from bridge.core.journal import Journal, JournalEntry
from bridge.core.receipts import WorkerEvent
from bridge.enums import PresenceChange, Stage
from bridge.errors import BrokerUnavailableError, TopologyError, TransientError
from bridge.inbox.contract import EventOutbox
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)

_BATCH_MAX: Final = 1000
# The store decides what is due by the time when it is asked for events.
_POLL_S: Final = 1.0
# After a publish: what is decided meanwhile shares the next one, and its commit in the store.
_PAUSE_S: Final = 0.01
# Without a queue, the events of one batch in this time are returned, and the others only dropped.
_CHECK_ROUTES_EVERY_S: Final = 60.0
_BACKOFF_FIRST_S: Final = 0.5
_BACKOFF_MAX_S: Final = 15.0


class EventPublisher:
    """
    Publishes what waits in the store, oldest first, on a connection of its own.

    The connection is opened with the first event: most bridges need none.

    Args:
        address: Where the broker is.
        names: Of the exchange, which is declared before the first publish.
        outbox: Keeps events until they are confirmed.
        max_waiting: How many the store may keep.
        metrics: Counts events and replies.
        journal: Records what was published, for operators.
        outages: Logs why the broker cannot be reached.
        wall_s: Returns Unix time.

    Attributes:
        waiting: How many events the store holds, as of a second ago.
        oldest_s: Age of the oldest of them, in seconds; ``None`` without one.

    """

    def __init__(
        self,
        address: BrokerAddress,
        names: BrokerNames,
        outbox: EventOutbox,
        *,
        max_waiting: int,
        metrics: Metrics,
        journal: Journal,
        outages: OutageLog | None = None,
        wall_s: Callable[[], float] = time,
    ) -> None:
        self.waiting = 0
        self.oldest_s: float | None = None
        self._address = address
        self._names = names
        self._outbox = outbox
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._journal = journal
        self._outages = outages or OutageLog()
        self._wall_s = wall_s
        self._needs_connection = asyncio.Event()
        self._connection: BrokerConnection[RequestReader] | None = None
        self._channel: EventChannel | None = None
        self._direct_replies = DirectReplies()
        self._is_publishing = False
        self._wake = asyncio.Event()
        self._paused = asyncio.Event()  # nothing is left, or nothing can be published
        self._has_events = False
        self._try_at_s = 0.0  # monotonic time of the next publish
        self._backoff_s = _BACKOFF_FIRST_S
        self._problem: str | None = None
        # By routing key: when it was checked last. Those that have a queue are not here.
        self._unrouted: dict[str, float] = {}

    @property
    def problem(self) -> str | None:
        """Why events wait to be published; ``None`` as far as is known."""
        if self._needs_connection.is_set() and self._connection is None:
            return NO_CONNECTION
        return self._problem

    @property
    def unrouted(self) -> str | None:
        """Which events the broker drops, and what to do; ``None`` as far as is known."""
        if not self._unrouted:
            return None
        keys = ", ".join(
            f"{key} (checked {datetime.fromtimestamp(at_s, tz=UTC):%Y-%m-%d %H:%M:%S UTC})"
            for key, at_s in sorted(self._unrouted.items())
        )
        return (
            f"no queue is bound to {self._names.events} for {keys}: RabbitMQ drops these "
            "events; bind a queue, or ignore this if no worker needs them"
        )

    @property
    def full(self) -> str | None:
        """Why no message may be stored that makes more events; ``None`` if there is room."""
        if self.waiting < self._max_waiting:
            return None
        return (
            f"{self.waiting} events for workers wait to be published "
            f"(BRIDGE_EVENTS_MAX_WAITING): {self.problem or 'the broker has not confirmed them'}"
        )

    async def published(self, *, within_s: float) -> None:
        """Wait until no event is left, nothing can be published, or the time is over."""
        self._paused.clear()
        self._wake.set()
        if self.problem is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._paused.wait()

    async def run(self) -> None:
        """
        Publish until canceled.

        Cancellation:
            Safe; what was published and not noted in the store is published again.

        """
        self._outbox.on_events(self._wake.set)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._connect(), name="events connection")
            tasks.create_task(self._publish_all(), name="events")
            tasks.create_task(self._observe(), name="events waiting")

    async def _connect(self) -> None:
        await self._needs_connection.wait()
        await supervise(
            self._serve,
            address=self._address,
            purpose=Purpose.EVENTS,
            reader=RequestReader,
            metrics=self._metrics,
            outages=self._outages,
        )

    async def _serve(self, connection: BrokerConnection[RequestReader]) -> None:
        self._connection = connection
        self._try_at_s = 0.0
        self._wake.set()
        try:
            await asyncio.wait([connection.wire.closing])
            raise BrokerUnavailableError("publish events", CONNECTION_LOST)
        finally:
            self._connection = self._channel = None
            self._paused.set()

    async def _publish_all(self) -> None:
        while True:
            self._wake.clear()
            events: Sequence[WorkerEvent] = ()
            try:
                events = await self._outbox.pending_events(_BATCH_MAX)
                self._has_events = bool(events)
                if events and self._connection is None:
                    self._needs_connection.set()
                elif events and monotonic() >= self._try_at_s:
                    await self._publish(events)
                    if len(events) < _BATCH_MAX:
                        await asyncio.sleep(_PAUSE_S)
                    continue  # there may be more
            except (TransientError, TopologyError) as exc:
                await self._note_failure(str(exc), has_events=bool(events))
            else:
                if not events:
                    self._note_success()
                    self._paused.set()
            await self._until_woken()

    async def _observe(self) -> None:
        """Measure the outbox; while confirms are missing, let it decide what is due."""
        while True:
            await asyncio.sleep(_POLL_S)
            with suppress(TransientError):
                if self._is_publishing:
                    await self._outbox.pending_events(0)
                if self._has_events or self.waiting:
                    await self._measure()

    async def _publish(self, events: Sequence[WorkerEvent]) -> None:
        connection = self._connection
        assert connection is not None  # noqa: S101 - the caller has checked it
        self._is_publishing = True
        try:
            if self._channel is None:
                self._channel = await open_event_channel(
                    connection,
                    self._names,
                    direct=self._direct_replies,
                    timeout_s=self._address.timeout_s,
                    metrics=self._metrics,
                )
            routes = await self._channel.publish(events, unchecked=self._unchecked())
        finally:
            self._is_publishing = False
        self._note_routes(routes)
        await self._outbox.confirm_events(events)
        self._note_success()
        now_s = self._wall_s()
        for event in events:
            if event.is_presence:
                change = PresenceChange(event.routing_key)
                self._journal.presence(event.user, change, at_s=now_s)
                continue
            entry = (now_s, Stage.REPORTED, event.user, event.message_id)
            self._journal.note(JournalEntry(*entry, text=event.routing_key))

    def _unchecked(self) -> Collection[str]:
        """Return the routing keys without a queue whose next check is not due."""
        now_s = self._wall_s()
        return {
            key
            for key, at_s in self._unrouted.items()
            if abs(now_s - at_s) < _CHECK_ROUTES_EVERY_S  # the clock may be set back
        }

    def _note_routes(self, routes: Mapping[str, bool]) -> None:
        for key, has_queue in routes.items():
            if has_queue:
                self._unrouted.pop(key, None)
                continue
            self._metrics.events_unrouted.labels(key).inc()
            is_new = key not in self._unrouted
            self._unrouted[key] = self._wall_s()
            if is_new:  # log it once, not each minute
                log.warning("events.unrouted", problem=self.unrouted)

    async def _measure(self) -> None:
        """
        Note how many events wait, and drop the oldest about presence if they are too many.

        Some of these may be in a publish that RabbitMQ has not confirmed yet.
        """
        waiting, self.oldest_s = await self._outbox.events_depth()
        if waiting >= self._max_waiting:
            # Presence alone must not delay messages, and the newest state counts.
            excess = waiting - self._max_waiting + 1
            dropped = await self._outbox.drop_presence_events(excess)
            self._metrics.presence_dropped.inc(dropped)
            waiting -= dropped
        self.waiting = waiting
        self._metrics.events_waiting.set(self.waiting)
        self._metrics.events_oldest.set(self.oldest_s or 0)

    async def _until_woken(self) -> None:
        if self._problem is not None:
            # The store may wake this task many times a second, which helps nothing now.
            await asyncio.sleep(_POLL_S)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S):
                await self._wake.wait()

    def _note_success(self) -> None:
        self._backoff_s = _BACKOFF_FIRST_S
        if self._problem is not None:
            self._problem = None
            log.info("events.resumed")

    async def _note_failure(self, problem: str, *, has_events: bool) -> None:
        # Without events a part of the store is away, and the rest may have some soon.
        if has_events:
            self._try_at_s = monotonic() + self._backoff_s
            self._backoff_s = min(self._backoff_s * 2, _BACKOFF_MAX_S)
        if problem != self._problem:  # log it once, not at each attempt
            self._problem = problem
            log.warning("events.waiting", problem=problem)
        self._paused.set()
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
