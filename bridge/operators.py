"""
What operators see and may do, gathered from the rooms and mounted on the operator door.

Between the rooms, which know nothing of each other, and the API, which knows no library.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Final, Protocol

from bridge import __version__
from bridge.amqp.connection import BrokerAddress
from bridge.amqp.consume.intake import Intake
from bridge.amqp.dead_letters.operations import DeadLetters
from bridge.amqp.publish.publisher import Publisher
from bridge.amqp.queues import QueueWatch
from bridge.core.broker_names import BrokerNames
from bridge.core.contracts.operator.overview import (
    Ages,
    BrokerFacts,
    InboxFacts,
    Overview,
    RefusedOriginFacts,
    Totals,
)
from bridge.core.journal import Journal
from bridge.core.quantiles import quantile
from bridge.enums import Outcome
from bridge.errors import BrokerUnavailableError, StoreUnavailableError
from bridge.http.api.dead_letters import add_dead_letter_routes
from bridge.http.api.endpoint import Api
from bridge.http.api.jobs import add_job_routes
from bridge.http.api.overview import add_overview_routes
from bridge.http.api.queues import add_queue_routes
from bridge.http.api.trace import Tracer
from bridge.http.api.users import add_user_routes
from bridge.http.jobs import JobBoard
from bridge.http.journals import Memories
from bridge.http.online import Fleet, Online
from bridge.inbox.contract import Inbox
from bridge.metrics import AgeBucket, Metrics
from bridge.settings.model import Settings
from bridge.sockets.rooms import Rooms
from bridge.sockets.server import BridgeServer
from bridge.wiring import management_of

_MEASURE_FIRST_S: Final = 5.0
_MEASURE_EVERY_S: Final = 30.0
# Ages are told of the last one to two of these.
_AGES_OF_S: Final = 60.0


class Ready(Protocol):
    """The bridge as a whole."""

    def unready_reasons(self) -> list[str]:
        """Say what keeps it from being ready."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one bridge that operators look into."""

    bridge: Ready
    settings: Settings
    address: BrokerAddress
    metrics: Metrics
    intake: Intake
    publisher: Publisher
    inbox: Inbox
    sockets: BridgeServer
    journal: Journal
    fleet: Fleet | None = None

    @property
    def rooms(self) -> Rooms:
        """Who is where."""
        return self.sockets.rooms


class Operators:
    """The operators' side of one bridge."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._names = BrokerNames(parts.settings.namespace)
        self._started_s = time.time()
        self._measured: set[tuple[str, str]] = set()
        self._ages = RecentAges(parts.metrics)
        self.dead_letters = DeadLetters(
            parts.address,
            self._names,
            publisher=parts.publisher,
            journal=parts.journal,
        )
        self.queues = QueueWatch(
            parts.address,
            self._names,
            intake=parts.intake,
            dead=self.dead_letters,
            management=management_of(parts.settings),
        )
        self.jobs = JobBoard()

    def add_api(self, api: Api) -> None:
        """Add every group of the API."""
        add_overview_routes(api, self)
        add_queue_routes(api, self.queues)
        add_dead_letter_routes(api, self.dead_letters, self.jobs)
        add_job_routes(api, self.jobs)
        parts = self._parts
        online = Online(
            parts.sockets, parts.journal, name=parts.settings.name, fleet=parts.fleet
        )
        add_user_routes(api, parts.inbox.admin, online)
        tracer = Tracer(
            inboxes=parts.inbox.admin,
            dead=self.dead_letters,
            windows=online,
            memories=Memories(parts.journal, online),
        )
        tracer.add_routes(api)

    async def run(self) -> None:
        """Measure, every now and then, what is not counted as it happens; for ever."""
        await asyncio.sleep(_MEASURE_FIRST_S)  # a start has more important things to do
        while True:
            await self.measure()
            await asyncio.sleep(_MEASURE_EVERY_S)

    async def measure(self) -> None:
        """Set the gauges of queues and disk as they are now; what is away has none."""
        await self._measure_queues()
        await self._measure_inbox()

    async def _measure_queues(self) -> None:
        metrics = self._parts.metrics
        gauges = (metrics.queue_messages, metrics.queue_consumers)
        try:
            queues = await self.queues.look_anew()
        except BrokerUnavailableError:
            # What is not known is not told: an old number would look like a new one.
            for gauge in gauges:
                gauge.clear()
            return
        named = {(queue.name, str(queue.role)) for queue in queues}
        for name, role in self._measured - named:  # of an earlier number of shards
            for gauge in gauges:
                gauge.remove_by_labels({"queue": name, "role": role})
        self._measured = named
        for queue in queues:
            labels = {"queue": queue.name, "role": queue.role}
            for gauge, value in zip(
                gauges, (queue.depth, queue.consumers), strict=True
            ):
                if value is None:
                    gauge.remove_by_labels(labels)
                else:
                    gauge.labels(**labels).set(value)

    async def _measure_inbox(self) -> None:
        metrics = self._parts.metrics
        try:
            usage = await self._parts.inbox.usage()
        except StoreUnavailableError:  # readiness tells of it, and the log
            return
        if usage is not None:
            kind = self._parts.settings.inbox.partition(":")[0]
            metrics.inbox_bytes.labels(store=kind).set(usage.used_bytes)
            metrics.inbox_free_bytes.labels(store=kind).set(usage.free_bytes)

    def overview(self) -> Overview:
        """Say how the bridge is now."""
        parts = self._parts
        broker = parts.intake.broker
        reasons = parts.bridge.unready_reasons()
        return Overview(
            version=__version__,
            namespace=self._names.namespace,
            started_s=self._started_s,
            ready=not reasons,
            reasons=reasons,
            broker=BrokerFacts(
                connected=parts.intake.is_consuming,
                version=f"{broker.product} {broker.version}" if broker else None,
                host=broker.host if broker else None,
            ),
            inbox=InboxFacts(
                store=parts.inbox.description, problem=parts.inbox.problem
            ),
            windows=len(parts.rooms),
            users=len(parts.rooms.users),
            in_flight=parts.intake.in_flight,
            totals=_totals(parts.metrics),
            age_s=self._ages.look(),
            refused_origins=[
                RefusedOriginFacts(
                    origin=refused.origin, count=refused.count, last_s=refused.last_s
                )
                for refused in parts.sockets.refused_origins.newest_first()
            ],
        )


def _totals(metrics: Metrics) -> Totals:
    return Totals(
        consumed=metrics.total(metrics.consumed),
        emitted=metrics.total(metrics.emitted),
        replayed=metrics.total(metrics.replayed),
        dead=metrics.total(metrics.settled, outcome=Outcome.DEAD_LETTER),
        retried=metrics.total(metrics.settled, outcome=Outcome.RETRY),
        expired=metrics.total(metrics.settled, outcome=Outcome.EXPIRED)
        + metrics.total(metrics.left_out),
        published=metrics.total(metrics.published),
        reconnects=metrics.total(metrics.reconnects),
    )


class Aged(Protocol):
    """What counts the ages of messages."""

    def age_buckets(self) -> tuple[AgeBucket, ...]:
        """Return pairs of an upper bound in seconds and how many were below."""


class RecentAges:
    """Ages since one to two minutes ago, or since the look before if that is longer ago."""

    def __init__(self, metrics: Aged) -> None:
        self._metrics = metrics
        now_s = time.monotonic()
        start: tuple[AgeBucket, ...] = metrics.age_buckets()
        self._older = self._newer = (now_s, start)

    def look(self) -> Ages | None:
        """Return them; ``None`` while there is nothing to tell of."""
        now_s = time.monotonic()
        buckets = self._metrics.age_buckets()
        if now_s - self._newer[0] >= _AGES_OF_S:
            self._older, self._newer = self._newer, (now_s, buckets)
        # Workers tell their ages later than they are asked for the first time.
        before = [count for _, count in self._older[1]] or [0.0] * len(buckets)
        recent = [
            (bound_s, count - old)
            for (bound_s, count), old in zip(buckets, before, strict=True)
        ]
        p50, p99 = quantile(recent, 0.5), quantile(recent, 0.99)
        return None if p50 is None or p99 is None else Ages(p50=p50, p99=p99)
