"""Merging the answers of several workers."""

from pydantic import BaseModel

from bridge.core.contracts.operator.operation import Page
from bridge.core.contracts.operator.overview import (
    BrokerFacts,
    InboxFacts,
    Overview,
    RefusedOriginFacts,
    Totals,
)
from bridge.core.contracts.operator.queues import QueueFacts, QueueRole, QueueSource
from bridge.metrics import Metrics
from bridge.workers.merged_answers import merge_overviews, merge_queues
from bridge.workers.merged_metrics import MergedMetrics
from bridge.workers.worker_client import WorkerAnswer


def answers(*models: BaseModel) -> list[WorkerAnswer]:
    """Return the answers of workers."""
    return [WorkerAnswer(200, model.model_dump_json().encode()) for model in models]


def queue(unacked: int | None, oldest_s: float | None) -> Page[QueueFacts]:
    """Return a worker's view of the inbound queue."""
    facts = QueueFacts(
        name="bridge.inbound.0",
        role=QueueRole.INBOUND,
        depth=7,
        unacked=unacked,
        consumers=2,
        oldest_s=oldest_s,
        oldest_at_most_s=None,
        rates=None,
        source=QueueSource.AMQP,
        problem=None,
    )
    return Page[QueueFacts](items=[facts], next=None)


def test_deliveries_in_flight_are_summed_for_each_queue() -> None:
    """All workers report the broker's depth, and each its own deliveries in flight."""
    merged = merge_queues(answers(queue(0, None), queue(3, 1.5)))

    (only,) = Page[QueueFacts].model_validate_json(merged.body).items
    assert (only.depth, only.consumers, only.unacked, only.oldest_s) == (7, 2, 3, 1.5)


def overview(*, windows: int, connected: bool, started_s: float) -> Overview:
    """Return a worker's overview."""
    return Overview(
        version="1",
        namespace="bridge",
        started_s=started_s,
        ready=True,
        reasons=[],
        broker=BrokerFacts(connected=connected, version=None, host=None),
        inbox=InboxFacts(store="redis:", problem=None if connected else "away"),
        windows=windows,
        users=windows,
        in_flight=1,
        totals=Totals(
            consumed=0,
            emitted=0,
            replayed=0,
            dead=0,
            retried=0,
            expired=0,
            published=0,
            reconnects=0,
        ),
        age_s=None,
        refused_origins=[
            RefusedOriginFacts(origin="https://evil", count=windows, last_s=started_s)
        ],
    )


def test_an_overview_has_sums_and_the_problem_of_any_worker() -> None:
    """An operator looks for problems, even if only one worker has it."""
    metrics = Metrics()
    metrics.emitted.inc(5)
    merged = MergedMetrics()
    merged.take(0, metrics.render())

    answer = merge_overviews(
        answers(
            overview(windows=2, connected=True, started_s=2.0),
            overview(windows=3, connected=False, started_s=1.0),
        ),
        merged=merged,
        reasons=["worker 1: away"],
        age_s=None,
    )

    found = Overview.model_validate_json(answer.body)
    assert (found.windows, found.in_flight, found.started_s) == (5, 2, 1.0)
    assert (found.ready, found.reasons) == (False, ["worker 1: away"])
    assert not found.broker.connected
    assert found.inbox.problem == "away"
    assert found.totals.emitted == 5
    (refused,) = found.refused_origins
    assert (refused.count, refused.last_s) == (5, 2.0)
