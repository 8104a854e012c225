"""The metrics in Prometheus's text format."""

from prometheus_client.parser import text_string_to_metric_families

from bridge.enums import Closing, DeadLetterReason, Outcome
from bridge.metrics import Metrics


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = metrics.render().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_have_the_published_names_and_labels() -> None:
    """Dashboards and alerts depend on them."""
    metrics = Metrics()
    metrics.consumed.inc(3)
    metrics.settled.labels(Outcome.DEAD_LETTER, DeadLetterReason.BAD_USER).inc()
    metrics.in_flight.set(2)
    metrics.closed.labels(Closing.SLOW).inc()
    metrics.age.observe(0.003)
    metrics.ready.set(1)

    found = samples(metrics)

    dead = frozenset({("outcome", "dead_letter"), ("reason", "bad_user")})
    assert found["bridge_deliveries_consumed_total", frozenset()] == 3
    assert found["bridge_deliveries_settled_total", dead] == 1
    assert found["bridge_in_flight", frozenset()] == 2
    assert found["bridge_windows_closed_total", frozenset({("code", "slow")})] == 1
    assert found["bridge_message_age_seconds_count", frozenset()] == 1
    assert found["bridge_ready", frozenset()] == 1


def test_all_metrics_have_the_prefix_a_help_text_and_bounded_labels() -> None:
    """A label with values of users or producers would grow without limit."""
    allowed = {
        "outcome",
        "reason",
        "purpose",
        "recovered",
        "code",
        "queue",
        "role",
        "mode",
        "store",
        "version",
        "routing_key",
    }

    metrics = Metrics()
    for name, metric in vars(metrics).items():
        if name == "registry":
            continue
        assert metric._name.startswith("bridge_"), name
        assert metric._documentation.endswith("."), name
        assert set(getattr(metric, "_labelnames", ())) <= allowed, name


def test_two_bridges_in_one_process_count_separately() -> None:
    """Tests run more than one."""
    one, other = Metrics(), Metrics()
    one.consumed.inc()

    assert samples(other)["bridge_deliveries_consumed_total", frozenset()] == 0
