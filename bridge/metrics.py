"""
What the bridge counts, declared once: names, labels and help of every metric.

Labels come from the closed lists in names.py, never from users or producers. The
registry is the bridge's own, so two bridges in one process do not mix.

What is counted with each batch, however small, is counted in plain numbers by the event
loop's thread (`Tally`, `Spread`): the library's counters take a lock for each thread that
might come, and those of one small batch took a tenth of its time.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from time import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Info,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import INF, floatToGoString

from bridge import __version__

_AGE_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1, 2.5, 5, 10, 60, 600, 3600, 86400,
)  # fmt: skip


AgeBucket = tuple[float, float]


class Tally(Collector):
    """A counter without labels, for one thread; it may be read in any."""

    def __init__(
        self, name: str, documentation: str, *, registry: CollectorRegistry
    ) -> None:
        self._name, self._documentation = name, documentation
        self._created_s = time()
        self._count = 0
        registry.register(self)

    def inc(self, number: int = 1) -> None:
        """Count `number` more."""
        self._count += number

    def collect(self) -> Iterator[Metric]:
        """Yield what was counted."""
        yield CounterMetricFamily(
            self._name, self._documentation, self._count, created=self._created_s
        )


class Spread(Collector):
    """A histogram without labels, for one thread; it may be read in any."""

    def __init__(
        self,
        name: str,
        documentation: str,
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._documentation = name, documentation
        self._bounds = (*buckets, INF)
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float) -> None:
        """Count `value` in its bucket."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        """Yield what was observed."""
        names = map(floatToGoString, self._bounds)
        counts = accumulate(self._counts)
        yield HistogramMetricFamily(
            self._name,
            self._documentation,
            buckets=list(zip(names, counts, strict=True)),
            sum_value=self._sum,
        )


class Metrics:
    """The metrics of one bridge."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.consumed = Tally(
            "bridge_deliveries_consumed",
            "Deliveries taken from the broker.",
            registry=registry,
        )
        self.settled = Counter(
            "bridge_deliveries_settled",
            "Deliveries settled, by outcome; reason is set for dead letters.",
            ("outcome", "reason"),
            registry=registry,
        )
        self.in_flight = Gauge(
            "bridge_in_flight",
            "Deliveries taken and not yet settled.",
            registry=registry,
        )
        self.handed_over = Counter(
            "bridge_handed_over_batches",
            "Batches that the store refused, because another bridge had the queue by then.",
            registry=registry,
        )
        self.shards_active = Gauge(
            "bridge_shards_active",
            "Shards whose deliveries come to this bridge, as far as one came.",
            registry=registry,
        )
        self.reconnects = Counter(
            "bridge_broker_reconnects",
            "Connections to the broker that were lost and had to be made anew.",
            ("purpose",),
            registry=registry,
        )
        self.published = Counter(
            "bridge_published",
            "Messages that came in over HTTP and were confirmed by the broker.",
            registry=registry,
        )
        self.emitted = Tally(
            "bridge_emitted",
            "Messages written to windows, each window counted.",
            registry=registry,
        )
        self.replayed = Counter(
            "bridge_replayed",
            "Messages written to windows from the inbox, when they connected or fell behind.",
            registry=registry,
        )
        self.fell_behind = Counter(
            "bridge_windows_fell_behind",
            "Times that a window was sent back to the inbox: more was stored than it reads, or a part of the feed was lost.",
            registry=registry,
        )
        self.left_out = Counter(
            "bridge_left_out",
            "Messages in an inbox that were not written because their time was over; "
            "each replay that meets one counts it again.",
            registry=registry,
        )
        self.age = Spread(
            "bridge_message_age_seconds",
            "From taking a message from the broker to writing it to windows; the oldest of each batch.",
            buckets=_AGE_BUCKETS_S,
            registry=registry,
        )
        self.publish_to_page = Spread(
            "bridge_publish_to_page_seconds",
            "From the publish, by its producer's or broker's word, to writing to windows; the oldest of each batch.",
            buckets=_AGE_BUCKETS_S,
            registry=registry,
        )
        self.queue_messages = Gauge(
            "bridge_queue_messages",
            "Messages that wait in a queue of ours, unacked ones aside.",
            ("queue", "role"),
            registry=registry,
        )
        self.queue_consumers = Gauge(
            "bridge_queue_consumers",
            "Consumers of a queue of ours.",
            ("queue", "role"),
            registry=registry,
        )
        self.inbox_bytes = Gauge(
            "bridge_inbox_bytes",
            "What the inbox store takes on its disk.",
            ("store",),
            registry=registry,
        )
        self.inbox_free_bytes = Gauge(
            "bridge_inbox_free_bytes",
            "Room that is left on the disk of the inbox store.",
            ("store",),
            registry=registry,
        )
        self.windows = Gauge("bridge_windows", "Windows connected.", registry=registry)
        self.users = Gauge(
            "bridge_users",
            "Users with a window connected; one with windows at several workers or bridges is counted at each.",
            registry=registry,
        )
        self.connects = Counter(
            "bridge_windows_connected",
            "Windows that were let in; recovered=true missed nothing.",
            ("recovered",),
            registry=registry,
        )
        self.refused = Counter(
            "bridge_windows_refused",
            "Windows that were not let in, by code.",
            ("code",),
            registry=registry,
        )
        self.closed = Counter(
            "bridge_windows_closed",
            "Windows that the bridge closed, by code.",
            ("code",),
            registry=registry,
        )
        self.ignored = Counter(
            "bridge_events_ignored",
            "Events and packets from windows that mean nothing to the bridge.",
            registry=registry,
        )
        self.ready = Gauge(
            "bridge_ready",
            "1 while the bridge is ready for traffic.",
            registry=registry,
        )
        info = Info("bridge", "Which bridge this is.", registry=registry)
        info.info({"version": __version__})
        ProcessCollector(registry=registry)

    def total(self, counter: Counter | Tally, **labels: str) -> int:
        """Return what `counter` has counted, over all labels that are not given."""
        return int(
            sum(
                sample.value
                for metric in counter.collect()
                for sample in metric.samples
                if sample.name.endswith("_total")
                and labels.items() <= sample.labels.items()
            )
        )

    def age_buckets(self) -> tuple[AgeBucket, ...]:
        """Return `age` as pairs of an upper bound in seconds and how many were below."""
        return tuple(
            (float(sample.labels["le"]), sample.value)
            for metric in self.age.collect()
            for sample in metric.samples
            if sample.name.endswith("_bucket")
        )

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)


class SupervisorMetrics:
    """What the supervisor of several workers counts itself."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.workers = Gauge(
            "bridge_workers",
            "Workers that windows can come to.",
            registry=registry,
        )
        self.restarts = Counter(
            "bridge_worker_restarts",
            "Workers that were started because the one before had ended.",
            registry=registry,
        )
        ProcessCollector(registry=registry)

    def render(self) -> bytes:
        """Return them in Prometheus's text format."""
        return generate_latest(self.registry)
