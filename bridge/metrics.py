"""
What the bridge counts, declared once: names, labels and help of every metric.

Labels come from the closed lists in names.py, never from users or producers. The
registry is the bridge's own, so two bridges in one process do not mix.
"""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
)
from prometheus_client.exposition import generate_latest

from bridge import __version__

_AGE_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1, 2.5, 5, 10, 60, 600, 3600, 86400,
)  # fmt: skip


AgeBucket = tuple[float, float]


class Metrics:
    """The metrics of one bridge."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.consumed = Counter(
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
        self.emitted = Counter(
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
        self.age = Histogram(
            "bridge_message_age_seconds",
            "From taking a message from the broker to writing it to windows; the oldest of each batch.",
            buckets=_AGE_BUCKETS_S,
            registry=registry,
        )
        self.publish_to_page = Histogram(
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
            "bridge_users", "Users with a window connected.", registry=registry
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

    def total(self, counter: Counter, **labels: str) -> int:
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
