"""Merging the metrics of several workers."""

import pytest

from bridge.metrics import Metrics, SupervisorMetrics
from bridge.workers.merged_metrics import RULES, MergedMetrics


def gauges(*registries: Metrics | SupervisorMetrics) -> set[str]:
    """Return the names of all gauges; an info is a gauge in Prometheus's text format."""
    return {
        "bridge_info" if metric.type == "info" else metric.name
        for each in registries
        for metric in each.registry.collect()
        if metric.type in {"gauge", "info"}
    }


def sample(merged: MergedMetrics, name: str, **labels: str) -> float | None:
    """Return one value of the merged metrics."""
    for metric in merged.collect():
        for each in metric.samples:
            if each.name == name and each.labels == labels:
                return each.value
    return None


def test_every_gauge_has_a_rule_and_every_rule_a_gauge() -> None:
    """A new gauge needs a decision: a sum is often wrong."""
    assert gauges(Metrics(), SupervisorMetrics()) == set(RULES)


def test_counters_are_summed_by_their_labels() -> None:
    """The result is the same as if one process had counted."""
    merged = MergedMetrics()
    for worker, count in enumerate((3, 4)):
        metrics = Metrics()
        metrics.emitted.inc(count)
        metrics.closed.labels(code="slow").inc(count)
        if worker:
            metrics.closed.labels(code="kicked").inc()
        merged.take(worker, metrics.render())

    assert merged.total("bridge_emitted") == 7
    assert merged.total("bridge_windows_closed") == 8
    assert merged.total("bridge_windows_closed", code="slow") == 7
    assert sample(merged, "bridge_windows_closed_total", code="kicked") == 1


def test_histograms_are_summed_bucket_by_bucket() -> None:
    """Quantiles over all workers can only be computed from merged buckets."""
    merged = MergedMetrics()
    for worker, age_s in enumerate((0.002, 0.2)):
        metrics = Metrics()
        metrics.age.observe(age_s)
        merged.take(worker, metrics.render())

    buckets = dict(merged.age_buckets())
    assert buckets[0.001] == 0
    assert buckets[0.0025] == 1
    assert buckets[0.25] == 2
    assert sample(merged, "bridge_message_age_seconds_sum") == pytest.approx(0.202)


def test_the_counts_of_an_ended_worker_stay() -> None:
    """Prometheus takes a decreasing sum for a restart and counts everything again."""
    merged = MergedMetrics()
    for worker in (0, 1):
        metrics = Metrics()
        metrics.emitted.inc(10)
        metrics.windows.set(5)
        merged.take(worker, metrics.render())

    merged.end(0)
    assert merged.total("bridge_emitted") == 20
    assert sample(merged, "bridge_windows") == 5

    merged.take(0, Metrics().render())
    assert merged.total("bridge_emitted") == 20


def test_a_worker_that_does_not_answer_keeps_its_counters_and_loses_its_gauges() -> (
    None
):
    """Its current state is unknown, but its counts remain true."""
    merged = MergedMetrics()
    metrics = Metrics()
    metrics.emitted.inc(10)
    metrics.windows.set(5)
    merged.take(0, metrics.render())
    merged.no_answer(0)

    assert merged.total("bridge_emitted") == 10
    assert sample(merged, "bridge_windows") is None

    merged.take(0, metrics.render())
    assert sample(merged, "bridge_windows") == 5


@pytest.mark.parametrize(
    ("name", "values", "together"),
    [
        ("bridge_windows", (1, 2), 3),
        ("bridge_ready", (0, 1), 0),
    ],
)
def test_gauges_follow_their_rules(
    name: str, values: tuple[float, float], together: float
) -> None:
    """Gauges differ in their meaning for several processes."""
    merged = MergedMetrics()
    for worker, value in enumerate(values):
        text = f"# TYPE {name} gauge\n{name} {value}\n"
        merged.take(worker, text.encode())

    assert sample(merged, name) == together


def test_merged_metrics_render_like_those_of_one_process() -> None:
    """Dashboards and alerts need the same names, types and help texts."""
    metrics = Metrics()
    metrics.settled.labels(outcome="stored", reason="").inc()
    merged = MergedMetrics()
    merged.take(0, metrics.render())

    def described(text: bytes) -> set[str]:
        # The process metrics change between two readings.
        return {
            line
            for line in text.decode().splitlines()
            if line and not line.startswith("process_")
        }

    assert described(merged.render()) == described(metrics.render())


def test_invalid_text_is_refused() -> None:
    """A partial answer must not become a part of a sum."""
    with pytest.raises(ValueError, match=r"\S"):
        MergedMetrics().take(0, b"bridge_windows {{{")


def test_without_workers_totals_and_ages_are_empty() -> None:
    """This is the state before the first scrape."""
    assert MergedMetrics().total("bridge_emitted") == 0
    assert MergedMetrics().age_buckets() == ()
