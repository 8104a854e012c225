"""
One set of metrics out of those of several workers.

Counters and histograms are summed, and what a worker counted that has ended stays in the
sum: a counter that went back would look to Prometheus like a start anew of all of them.
Gauges say what is now, each in its own way: see `RULES`.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from bridge.metrics import AgeBucket


class Rule(Enum):
    """How the values of several workers become one."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"


# Every gauge there is; a test sees to that.
RULES: Final[Mapping[str, Rule]] = {
    "bridge_in_flight": Rule.SUM,
    "bridge_shards_active": Rule.SUM,
    # All look at the same queues and the same store, one after the other.
    "bridge_queue_messages": Rule.MAX,
    "bridge_queue_consumers": Rule.MAX,
    "bridge_inbox_bytes": Rule.MAX,
    "bridge_inbox_free_bytes": Rule.MIN,
    "bridge_windows": Rule.SUM,
    # Who has windows at two workers is counted at both.
    "bridge_users": Rule.SUM,
    "bridge_ready": Rule.MIN,
    "bridge_info": Rule.MAX,
    "bridge_workers": Rule.SUM,
    "process_virtual_memory_bytes": Rule.SUM,
    "process_resident_memory_bytes": Rule.SUM,
    "process_start_time_seconds": Rule.MIN,
    # A limit is one process's: what counts is the fullest of them.
    "process_open_fds": Rule.MAX,
    "process_max_fds": Rule.MIN,
}
_ADDED_UP: Final = frozenset({"counter", "histogram", "summary"})
_AGE_BUCKET: Final = "bridge_message_age_seconds_bucket"

_Labels = tuple[tuple[str, str], ...]


class _Family:
    """The samples of one metric, by name and labels."""

    def __init__(self, metric: Metric) -> None:
        self.name, self.text, self.type = (
            metric.name,
            metric.documentation,
            metric.type,
        )
        self.values: dict[tuple[str, _Labels], float] = {}

    def add(self, samples: Iterable[tuple[tuple[str, _Labels], float]]) -> None:
        rule = _rule_of(self.name, self.type)
        for key, value in samples:
            before = self.values.get(key)
            if before is None:
                self.values[key] = value
            elif rule is Rule.SUM:
                self.values[key] = before + value
            else:
                self.values[key] = (max if rule is Rule.MAX else min)(before, value)

    def as_metric(self) -> Metric:
        metric = Metric(self.name, self.text, self.type)
        for (name, labels), value in self.values.items():
            metric.add_sample(name, dict(labels), value)
        return metric


_Families = dict[str, _Family]


def _rule_of(name: str, kind: str) -> Rule:
    if kind in _ADDED_UP:
        return Rule.SUM
    # When a counter was made: the library tells it as a gauge of its own.
    return Rule.MIN if name.endswith("_created") else RULES.get(name, Rule.SUM)


class MergedMetrics(Collector):
    """What all workers tell, and what those told that have ended."""

    def __init__(self) -> None:
        self._latest: dict[Hashable, _Families] = {}
        self._ended: _Families = {}
        self._silent: set[Hashable] = set()

    # --- what workers tell

    def take(self, worker: Hashable, text: bytes) -> None:
        """
        Take what a worker tells of itself now, in Prometheus's text format.

        Raises:
            ValueError: If it is not that.

        """
        families: _Families = {}
        for metric in text_string_to_metric_families(text.decode()):
            family = families.setdefault(metric.name, _Family(metric))
            family.add(
                ((sample.name, tuple(sorted(sample.labels.items()))), sample.value)
                for sample in metric.samples
            )
        self._latest[worker] = families
        self._silent.discard(worker)

    def no_answer(self, worker: Hashable) -> None:
        """Note that a worker does not tell: its counters stay, its gauges are not known."""
        self._silent.add(worker)

    def end(self, worker: Hashable) -> None:
        """Keep the counters of a worker that has ended, as it told them last."""
        _merge(self._ended, self._latest.pop(worker, {}).values(), counted_only=True)
        self._silent.discard(worker)

    # --- what they are together

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, merged."""
        for family in self._merged().values():
            yield family.as_metric()

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def total(self, name: str, **labels: str) -> int:
        """Return what counter `name` has counted, over all labels that are not given."""
        family = self._merged().get(name)
        return int(
            sum(
                value
                for (sample, its), value in (family.values if family else {}).items()
                if sample.endswith("_total") and labels.items() <= dict(its).items()
            )
        )

    def age_buckets(self) -> tuple[AgeBucket, ...]:
        """Return the ages as pairs of an upper bound in seconds and how many were below."""
        family = self._merged().get(_AGE_BUCKET.removesuffix("_bucket"))
        return tuple(
            (float(dict(labels)["le"]), value)
            for (sample, labels), value in (family.values if family else {}).items()
            if sample == _AGE_BUCKET
        )

    def _merged(self) -> _Families:
        merged: _Families = {}
        _merge(merged, self._ended.values(), counted_only=True)
        for worker, families in self._latest.items():
            _merge(merged, families.values(), counted_only=worker in self._silent)
        return merged


def _merge(into: _Families, families: Iterable[_Family], *, counted_only: bool) -> None:
    for family in families:
        if counted_only and family.type not in _ADDED_UP:
            continue
        there = into.get(family.name)
        if there is None:
            there = into[family.name] = _Family(
                Metric(family.name, family.text, family.type)
            )
        there.add(family.values.items())
