"""One answer out of those of several workers."""

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
from bridge.workers.merged_metrics import MergedMetrics
from bridge.workers.merging import (
    merge_overviews,
    merge_queues,
)
from bridge.workers.worker_client import Answer, Question


def answers(*models: BaseModel) -> list[Answer]:
    """Return what workers would answer."""
    return [Answer(200, model.model_dump_json().encode()) for model in models]


def question(target: str = "/api/queues") -> Question:
    """Return what was asked."""
    return Question("GET", target)


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


def test_a_queue_is_told_once_and_what_is_in_flight_is_added_up() -> None:
    """Depth is the broker's word and the same for all; who has what in hand is not."""
    merged = merge_queues(answers(queue(0, None), queue(3, 1.5)), question())

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


def test_the_overview_adds_up_and_shows_the_problem_of_the_one_that_has_one() -> None:
    """What is wrong at one worker is what somebody looks for."""
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

    told = Overview.model_validate_json(answer.body)
    assert (told.windows, told.in_flight, told.started_s) == (5, 2, 1.0)
    assert (told.ready, told.reasons) == (False, ["worker 1: away"])
    assert not told.broker.connected
    assert told.inbox.problem == "away"
    assert told.totals.emitted == 5
    (refused,) = told.refused_origins
    assert (refused.count, refused.last_s) == (5, 2.0)
