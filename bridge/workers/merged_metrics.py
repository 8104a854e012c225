"""
Merges the metrics of several workers into one set.

Counters and histograms are summed. The counts of workers that have ended stay in the sum,
because Prometheus would take a decreasing counter for a restart. Gauges describe the current
state and are merged by `RULES`.
"""

import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from bridge.metrics import ReadableMetrics

# Merges the values of two workers.
MergeRule = Callable[[float, float], float]

# All gauges; a test compares them with the metrics of the bridge.
RULES: Final[Mapping[str, MergeRule]] = {
    "bridge_in_flight": operator.add,
    "bridge_shard_still_seconds": max,
    "bridge_shards_active": operator.add,
    # All workers measure the same queues and the same store, at different times.
    "bridge_queue_messages": max,
    "bridge_queue_consumers": max,
    "bridge_inbox_bytes": max,
    "bridge_inbox_free_bytes": min,
    "bridge_events_waiting": max,
    "bridge_events_oldest_seconds": max,
    "bridge_windows": operator.add,
    # A user with windows at two workers is counted twice.
    "bridge_users": operator.add,
    "bridge_requests_in_flight": operator.add,
    "bridge_held_deliveries": operator.add,
    "bridge_publishing_blocked": max,
    "bridge_ready": min,
    "bridge_certificate_end_seconds": max,
    "bridge_info": max,
    "bridge_workers": operator.add,
    "process_virtual_memory_bytes": operator.add,
    "process_resident_memory_bytes": operator.add,
    "process_start_time_seconds": min,
    # The limit holds for each process, so the worker nearest to it matters.
    "process_open_fds": max,
    "process_max_fds": min,
}
_SUMMED: Final = frozenset({"counter", "histogram", "summary"})

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
        merge = _rule_of(self.name, self.type)
        for key, value in samples:
            before = self.values.get(key)
            self.values[key] = value if before is None else merge(before, value)

    def as_metric(self) -> Metric:
        metric = Metric(self.name, self.text, self.type)
        for (name, labels), value in self.values.items():
            metric.add_sample(name, dict(labels), value)
        return metric


_Families = dict[str, _Family]


def _rule_of(name: str, kind: str) -> MergeRule:
    if kind in _SUMMED:
        return operator.add
    # prometheus_client exposes the creation time of a counter as a separate gauge.
    return min if name.endswith("_created") else RULES.get(name, operator.add)


class MergedMetrics(ReadableMetrics, Collector):
    """The metrics of all workers, with the counters of workers that have ended."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._latest: dict[Hashable, _Families] = {}
        self._ended: _Families = {}
        self._silent: set[Hashable] = set()

    # --- input

    def take(self, worker: Hashable, text: bytes) -> None:
        """
        Replace the metrics of a worker by `text`, in Prometheus's text format.

        Raises:
            ValueError: If `text` is not in that format.

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
        """Drop the gauges of a worker that does not answer, and keep its counters."""
        self._silent.add(worker)

    def end(self, worker: Hashable) -> None:
        """Keep the last counters of a worker that has ended."""
        _merge(self._ended, self._latest.pop(worker, {}).values(), counted_only=True)
        self._silent.discard(worker)

    # --- output

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, merged."""
        for family in self._merged().values():
            yield family.as_metric()

    def _merged(self) -> _Families:
        merged: _Families = {}
        _merge(merged, self._ended.values(), counted_only=True)
        for worker, families in self._latest.items():
            _merge(merged, families.values(), counted_only=worker in self._silent)
        return merged


def _merge(into: _Families, families: Iterable[_Family], *, counted_only: bool) -> None:
    for family in families:
        if counted_only and family.type not in _SUMMED:
            continue
        there = into.get(family.name)
        if there is None:
            there = into[family.name] = _Family(
                Metric(family.name, family.text, family.type)
            )
        there.add(family.values.items())
