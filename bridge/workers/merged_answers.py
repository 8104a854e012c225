"""
Merges the answers of several workers to one request of the operator's API.

The functions take at least one answer, all with the status 200.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Final, TypeVar

from pydantic import BaseModel

from bridge.core.contracts.operator.operation import Page
from bridge.core.contracts.operator.overview import (
    Ages,
    InboxFacts,
    Overview,
    RefusedOriginFacts,
)
from bridge.core.contracts.operator.queues import QueueFacts
from bridge.http.api.overview import totals_of
from bridge.workers.merged_metrics import MergedMetrics
from bridge.workers.worker_client import WorkerAnswer

ModelT = TypeVar("ModelT", bound=BaseModel)

_JSON: Final = {"Content-Type": "application/json; charset=utf-8"}


def _parse(model: type[ModelT], answers: Sequence[WorkerAnswer]) -> list[ModelT]:
    return [model.model_validate_json(answer.body) for answer in answers]


def _answer(model: BaseModel) -> WorkerAnswer:
    return WorkerAnswer(200, model.model_dump_json(by_alias=True).encode(), _JSON)


# --- overview ---------------------------------------------------------------------------


def merge_overviews(
    answers: Sequence[WorkerAnswer],
    *,
    merged: MergedMetrics,
    reasons: list[str],
    age_s: Ages | None,
) -> WorkerAnswer:
    """
    Merge overviews.

    Args:
        answers: One for each worker.
        merged: The totals, which include workers that have ended.
        reasons: Why the bridge is not ready.
        age_s: Quantiles over all workers.

    """
    workers = _parse(Overview, answers)
    first = workers[0]
    # A worker with a problem takes precedence, so that the problem is visible.
    broker = min((w.broker for w in workers), key=lambda facts: facts.connected)
    problem = next((w.inbox.problem for w in workers if w.inbox.problem), None)
    return _answer(
        Overview(
            version=first.version,
            namespace=first.namespace,
            port=first.port,
            started_s=min(worker.started_s for worker in workers),
            ready=not reasons,
            reasons=reasons,
            broker=broker,
            inbox=InboxFacts(store=first.inbox.store, problem=problem),
            windows=sum(worker.windows for worker in workers),
            users=sum(worker.users for worker in workers),
            in_flight=sum(worker.in_flight for worker in workers),
            totals=totals_of(merged),
            age_s=age_s,
            refused_origins=_refused_origins(workers),
        )
    )


def _refused_origins(workers: Sequence[Overview]) -> list[RefusedOriginFacts]:
    found: dict[str | None, RefusedOriginFacts] = {}
    for refused in (each for worker in workers for each in worker.refused_origins):
        known = found.get(refused.origin, refused)
        count = refused.count if known is refused else known.count + refused.count
        last_s = max(known.last_s, refused.last_s)
        merged = refused.model_copy(update={"count": count, "last_s": last_s})
        found[refused.origin] = merged
    return sorted(found.values(), key=lambda refused: -refused.last_s)


# --- queues -----------------------------------------------------------------------------


def merge_queues(answers: Sequence[WorkerAnswer]) -> WorkerAnswer:
    """Merge pages of queues: each worker knows only its own deliveries in flight."""
    pages = _parse(Page[QueueFacts], answers)
    items = []
    for same in zip_longest(*(page.items for page in pages)):
        found = [queue for queue in same if queue is not None]
        best = next((queue for queue in found if queue.problem is None), found[0])
        # RabbitMQ's management API already counts the deliveries of all workers.
        is_counted_here = all(queue.source == "amqp" for queue in found)
        unacked = [queue.unacked for queue in found if queue.unacked is not None]
        ages_s = [queue.oldest_s for queue in found if queue.oldest_s is not None]
        changed: dict[str, object] = {"oldest_s": max(ages_s, default=None)}
        if is_counted_here:
            changed["unacked"] = sum(unacked) if unacked else None
        items.append(best.model_copy(update=changed))
    return _answer(Page[QueueFacts](items=items, next=pages[0].next))
