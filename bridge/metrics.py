"""
The metrics of bridge: name, labels and help of each, declared once.

The values of labels come from closed lists, never from users or producers. Each bridge has
its own registry, so that two bridges in one process count separately.

Metrics that every batch updates are plain numbers (`FastCounter`, `FastHistogram`), which
only the thread of the event loop changes. The counters of prometheus_client take a lock at
each update, which cost a tenth of the time of a small batch.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from time import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import INF, floatToGoString

from bridge import __version__

_AGE_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1, 2.5, 5, 10, 60, 600, 3600, 86400,
)  # fmt: skip

AGE_METRIC = "bridge_message_age_seconds"
AgeBucket = tuple[float, float]


class FastCounter(Collector):
    """A counter without labels and locks. One thread counts, any thread may read."""

    def __init__(
        self, name: str, documentation: str, *, registry: CollectorRegistry
    ) -> None:
        self._name, self._documentation = name, documentation
        self._created_s = time()
        self._count = 0
        self._read: Callable[[], int] = lambda: self._count
        registry.register(self)

    def inc(self, number: int = 1) -> None:
        """Add `number`."""
        self._count += number

    def set_function(self, function: Callable[[], int]) -> None:
        """Read the count from `function` at each scrape, in place of `inc`."""
        self._read = function

    def collect(self) -> Iterator[Metric]:
        """Yield the current count for the registry."""
        yield CounterMetricFamily(
            self._name, self._documentation, self._read(), created=self._created_s
        )


class FastHistogram(Collector):
    """A histogram without labels and locks. One thread counts, any thread may read."""

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
        """Add `value` to its bucket."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        """Yield the current buckets for the registry."""
        names = map(floatToGoString, self._bounds)
        counts = accumulate(self._counts)
        yield HistogramMetricFamily(
            self._name,
            self._documentation,
            buckets=list(zip(names, counts, strict=True)),
            sum_value=self._sum,
        )


class QueueGauge(Collector):
    """A gauge with one label, `queue`, whose values are read at each scrape."""

    def __init__(
        self, name: str, documentation: str, *, registry: CollectorRegistry
    ) -> None:
        self._name, self._documentation = name, documentation
        self._read: Callable[[], Mapping[str, float]] = dict
        registry.register(self)

    def set_function(self, function: Callable[[], Mapping[str, float]]) -> None:
        """Read the value of each queue from `function`."""
        self._read = function

    def collect(self) -> Iterator[Metric]:
        """Yield the current values for the registry."""
        family = GaugeMetricFamily(self._name, self._documentation, labels=("queue",))
        for queue, value in self._read().items():
            family.add_metric((queue,), value)
        yield family


class ReadableMetrics:
    """Metrics that can be rendered, and read by name."""

    registry: CollectorRegistry

    def total(self, name: str, **labels: str) -> int:
        """Return the counter `name`, summed over all labels that are not given."""
        return int(
            sum(
                sample.value
                for sample in self._samples(f"{name}_total")
                if labels.items() <= sample.labels.items()
            )
        )

    def age_buckets(self) -> tuple[AgeBucket, ...]:
        """Return the cumulative buckets of message ages: upper bounds in seconds, counts."""
        return tuple(
            (float(sample.labels["le"]), sample.value)
            for sample in self._samples(f"{AGE_METRIC}_bucket")
        )

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    def _samples(self, name: str) -> Iterator[Sample]:
        for metric in self.registry.collect():
            for sample in metric.samples:
                if sample.name == name:
                    yield sample


class Metrics(ReadableMetrics):
    """The metrics of one bridge."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        fast_counter = partial(FastCounter, registry=registry)
        ages = partial(FastHistogram, buckets=_AGE_BUCKETS_S, registry=registry)
        self.consumed = fast_counter(
            "bridge_deliveries_consumed", "Deliveries consumed from the broker."
        )
        self.settled = counter(
            "bridge_deliveries_settled",
            "Deliveries settled, by outcome; dead letters have a reason.",
            ("outcome", "reason"),
        )
        self.in_flight = gauge(
            "bridge_in_flight", "Deliveries consumed and not yet settled."
        )
        self.held = gauge(
            "bridge_held_deliveries",
            "Deliveries that are unacked until their dead letter or retry is published.",
            ("outcome",),
        )
        self.publishing_blocked = gauge(
            "bridge_publishing_blocked",
            "1 while the broker blocks publishers: a memory or disk alarm.",
        )
        self.handed_over = counter(
            "bridge_handed_over_batches",
            "Batches that the store refused, because another bridge consumes the queue now.",
        )
        self.suspects = counter(
            "bridge_suspects",
            "Deliveries settled that were in flight when several connections or processes ended: together with others, or alone after a crash.",
            ("mode",),
        )
        self.shard_still = QueueGauge(
            "bridge_shard_still_seconds",
            "Time since deliveries of a queue were settled, while deliveries wait in this bridge, or in the queue that it consumes.",
            registry=registry,
        )
        self.shards_active = gauge(
            "bridge_shards_active",
            "Shards that this bridge consumes, of those that have delivered a message.",
        )
        self.reconnects = counter(
            "bridge_broker_reconnects",
            "Connections to the broker that were lost and opened again.",
            ("purpose",),
        )
        self.clock_jumps = fast_counter(
            "bridge_clock_jumps",
            "Jumps of the wall clock by more than a minute, ahead or back.",
        )
        self.log_lines_dropped = FastCounter(
            "bridge_log_lines_dropped",
            "Log lines that were not written: nothing reads standard error, or the disk is full.",
            registry=registry,
        )
        self.published = counter(
            "bridge_published",
            "Messages that were published over HTTP and confirmed by the broker.",
        )
        self.emitted = fast_counter(
            "bridge_emitted", "Messages written to windows; each window counts."
        )
        self.replayed = counter(
            "bridge_replayed",
            "Messages written to windows from the inbox, after a connect or when a window fell behind.",
        )
        self.fell_behind = counter(
            "bridge_windows_fell_behind",
            "Times that a window fell back to reading from the inbox: it reads too slowly, or a part of the feed was lost.",
        )
        self.throttled = counter(
            "bridge_throttled",
            "Messages with x-bridge-throttle that were not written, because a newer one of their key replaced them.",
        )
        self.left_out = counter(
            "bridge_left_out",
            "Messages in an inbox that were not written because they had expired; each replay counts them again.",
        )
        self.trimmed = fast_counter(
            "bridge_inbox_trimmed",
            "Messages that were deleted because the inbox of their user was full.",
        )
        self.age = ages(
            AGE_METRIC,
            "Time from consuming a message to writing it to windows; the oldest message of each batch.",
        )
        self.publish_to_page = ages(
            "bridge_publish_to_page_seconds",
            "Time from the publish, as its producer or the broker reports it, to writing to windows; the oldest message of each batch.",
        )
        self.queue_messages = gauge(
            "bridge_queue_messages",
            "Messages that are ready in a queue of the bridge, without unacked ones.",
            ("queue", "role"),
        )
        self.queue_consumers = gauge(
            "bridge_queue_consumers",
            "Consumers of a queue of the bridge.",
            ("queue", "role"),
        )
        self.inbox_bytes = gauge(
            "bridge_inbox_bytes",
            "Bytes that the inbox store uses on its disk.",
            ("store",),
        )
        self.inbox_free_bytes = gauge(
            "bridge_inbox_free_bytes",
            "Bytes that are free on the disk of the inbox store.",
            ("store",),
        )
        self.windows = gauge("bridge_windows", "Windows connected.")
        self.users = gauge(
            "bridge_users",
            "Users with a connected window; a user with windows at several workers or bridges counts at each.",
        )
        self.connects = counter(
            "bridge_windows_connected",
            "Windows that were admitted; recovered=true missed no message.",
            ("recovered",),
        )
        self.refused = counter(
            "bridge_windows_refused", "Windows that were refused, by code.", ("code",)
        )
        self.closed = counter(
            "bridge_windows_closed",
            "Windows that the bridge closed, by code.",
            ("code",),
        )
        self.control_commands = counter(
            "bridge_control_commands",
            "Commands from the control queue, by outcome.",
            ("outcome",),
        )
        self.connections_refused = _connections_refused(registry)
        self.unsupported = counter(
            "bridge_clients_unsupported",
            "Requests of clients that speak another version of Engine.IO, by version.",
            ("version",),
        )
        self.ignored = counter(
            "bridge_events_ignored",
            "Events and packets from windows that the bridge does not know.",
        )
        self.keys_refused = _keys_refused(registry)
        self.forwarded_unreadable = _forwarded_unreadable(registry)
        self.certificate_end = gauge(
            "bridge_certificate_end_seconds",
            "End of the certificate of the public port, in Unix time; 0 without TLS.",
        )
        self.ready = gauge("bridge_ready", "1 while the bridge is ready for traffic.")
        info = Info("bridge", "Version of the bridge.", registry=registry)
        info.info({"version": __version__})
        ProcessCollector(registry=registry)
        self._declare_back_end(registry)

    def _declare_back_end(self, registry: CollectorRegistry) -> None:
        """Declare what counts messages between bridge and workers, besides those for pages."""
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        self.requests = counter(
            "bridge_requests",
            "Requests from pages to workers, by outcome.",
            ("outcome",),
        )
        self.request_seconds = FastHistogram(
            "bridge_request_seconds",
            "Time from a request of a page to the reply of the worker.",
            buckets=_AGE_BUCKETS_S,
            registry=registry,
        )
        self.requests_in_flight = gauge(
            "bridge_requests_in_flight",
            "Requests from pages that wait for the reply of a worker.",
        )
        self.late_replies = counter(
            "bridge_request_late_replies",
            "Replies of workers that were dropped: their request had ended, by its timeout in most cases.",
        )
        self.events_published = counter(
            "bridge_events_published",
            "Events for workers that the broker has confirmed, by routing key; repeats count.",
            ("routing_key",),
        )
        self.events_unrouted = counter(
            "bridge_events_unrouted",
            "Checks that found no queue for events for workers, by routing key; at most one of each in a minute.",
            ("routing_key",),
        )
        self.events_waiting = gauge(
            "bridge_events_waiting",
            "Events for workers that wait to be published.",
        )
        self.events_oldest = gauge(
            "bridge_events_oldest_seconds",
            "Age of the oldest event for workers that waits to be published; 0 without one.",
        )
        self.presence_dropped = counter(
            "bridge_presence_events_dropped",
            "Events user.online and user.offline that were dropped to make room for receipts.",
        )
        self.event_replies = counter(
            "bridge_event_replies",
            "Receipts for the reply_to of a message, by outcome.",
            ("outcome",),
        )


class SupervisorMetrics(ReadableMetrics):
    """The metrics of the supervisor of several workers."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.workers = Gauge(
            "bridge_workers", "Workers that accept windows.", registry=registry
        )
        self.restarts = Counter(
            "bridge_worker_restarts",
            "Workers that were started to replace one that ended.",
            registry=registry,
        )
        self.connections_refused = _connections_refused(registry)
        self.keys_refused = _keys_refused(registry)
        self.forwarded_unreadable = _forwarded_unreadable(registry)
        ProcessCollector(registry=registry)


# The supervisor and each worker have a listener of their own.


def _connections_refused(registry: CollectorRegistry) -> Counter:
    return Counter(
        "bridge_connections_refused",
        "TCP connections that were closed before they were served, by reason.",
        ("reason",),
        registry=registry,
    )


def _keys_refused(registry: CollectorRegistry) -> Counter:
    return Counter(
        "bridge_keys_refused",
        "Requests with a wrong key (wrong), or whose key was not compared because of earlier wrong ones (paused).",
        ("outcome",),
        registry=registry,
    )


def _forwarded_unreadable(registry: CollectorRegistry) -> FastCounter:
    return FastCounter(
        "bridge_forwarded_unreadable",
        "Requests of trusted proxies whose X-Forwarded-For could not be read; their clients count under the address of the proxy.",
        registry=registry,
    )
