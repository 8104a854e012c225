"""`GET /api/overview`: the state of the bridge and its totals."""

import time
from collections.abc import Callable
from typing import Final

from bridge import __version__
from bridge.amqp.consume.intake import Intake
from bridge.core.contracts.operator.overview import (
    GET_OVERVIEW,
    Ages,
    BrokerFacts,
    InboxFacts,
    Overview,
    RefusedOriginFacts,
    Totals,
)
from bridge.core.quantiles import quantile
from bridge.enums import Outcome
from bridge.http.api.endpoint import Api, ApiRequest
from bridge.inbox.contract import Inbox
from bridge.metrics import AgeBucket, Metrics, ReadableMetrics
from bridge.readiness import BridgeReadiness
from bridge.sockets.server import SocketIOServer

_AGES_WINDOW_S: Final = 60.0


class RecentAges:
    """Quantiles of the message ages of the last one to two minutes."""

    def __init__(self, age_buckets: Callable[[], tuple[AgeBucket, ...]]) -> None:
        """Take a function that returns the cumulative buckets of all ages so far."""
        self._age_buckets = age_buckets
        # Two earlier samples: the difference to the older one covers at least a minute.
        self._older = self._newer = (time.monotonic(), age_buckets())

    def quantiles(self) -> Ages | None:
        """Return the quantiles; ``None`` if no message was written in that time."""
        now_s = time.monotonic()
        buckets = self._age_buckets()
        if now_s - self._newer[0] >= _AGES_WINDOW_S:
            self._older, self._newer = self._newer, (now_s, buckets)
        # The supervisor has no buckets before the first scrape of its workers.
        before = [count for _, count in self._older[1]] or [0.0] * len(buckets)
        recent = [
            (bound_s, count - old)
            for (bound_s, count), old in zip(buckets, before, strict=True)
        ]
        p50, p99 = quantile(recent, 0.5), quantile(recent, 0.99)
        return None if p50 is None or p99 is None else Ages(p50=p50, p99=p99)


class OverviewEndpoint:
    """Answers with the current state of one bridge."""

    def __init__(
        self,
        *,
        namespace: str,
        port: int,
        readiness: BridgeReadiness,
        intake: Intake,
        inbox: Inbox,
        sockets: SocketIOServer,
        metrics: Metrics,
    ) -> None:
        self._namespace = namespace
        self._port = port
        self._readiness = readiness
        self._intake = intake
        self._inbox = inbox
        self._sockets = sockets
        self._metrics = metrics
        self._ages = RecentAges(metrics.age_buckets)
        self._started_s = time.time()

    def add_routes(self, api: Api) -> None:
        """Serve the overview."""
        api.add(GET_OVERVIEW, self._overview)

    async def _overview(self, _request: ApiRequest) -> Overview:
        broker = self._intake.broker
        reasons = self._readiness.operator_reasons()
        rooms = self._sockets.rooms
        return Overview(
            version=__version__,
            namespace=self._namespace,
            port=self._port,
            started_s=self._started_s,
            ready=not reasons,
            reasons=reasons,
            broker=BrokerFacts(
                connected=self._intake.is_consuming,
                version=f"{broker.product} {broker.version}" if broker else None,
                host=broker.host if broker else None,
            ),
            inbox=InboxFacts(
                store=self._inbox.description, problem=self._inbox.problem
            ),
            windows=len(rooms),
            users=rooms.user_count,
            in_flight=self._intake.in_flight,
            totals=totals_of(self._metrics),
            age_s=self._ages.quantiles(),
            refused_origins=[
                RefusedOriginFacts.model_validate(refused, from_attributes=True)
                for refused in self._sockets.refused_origins.newest_first()
            ],
        )


def totals_of(metrics: ReadableMetrics) -> Totals:
    """Return the totals of one bridge, or of several workers together."""
    settled = "bridge_deliveries_settled"
    return Totals(
        consumed=metrics.total("bridge_deliveries_consumed"),
        emitted=metrics.total("bridge_emitted"),
        replayed=metrics.total("bridge_replayed"),
        dead=metrics.total(settled, outcome=Outcome.DEAD_LETTER),
        retried=metrics.total(settled, outcome=Outcome.RETRY),
        expired=metrics.total(settled, outcome=Outcome.EXPIRED)
        + metrics.total("bridge_left_out"),
        published=metrics.total("bridge_published"),
        reconnects=metrics.total("bridge_broker_reconnects"),
    )
