"""`GET /api/queues`."""

from bridge.amqp.queues import QueueInspector
from bridge.core.broker_names import BrokerNames
from bridge.core.contracts.operator.operation import Page, PageQuery
from bridge.core.contracts.operator.queues import (
    GET_QUEUES,
    QueueFacts,
    QueueRole,
    QueueSource,
)
from bridge.event_publisher import EventPublisher
from bridge.http.api.endpoint import Api, ApiRequest
from bridge.http.api.paging import page_by_key


def add_queue_routes(
    api: Api, inspector: QueueInspector, events: EventPublisher, names: BrokerNames
) -> None:
    """Serve the list of queues, and of the events that wait in the store."""

    async def list_queues(request: ApiRequest[PageQuery]) -> Page[QueueFacts]:
        waiting = QueueFacts(
            name=names.events,
            role=QueueRole.EVENTS,
            depth=events.waiting,
            unacked=None,
            consumers=None,
            oldest_s=events.oldest_s,
            oldest_at_most_s=None,
            rates=None,
            source=QueueSource.STORE,
            problem=events.problem if events.waiting else None,
        )
        found = [*await inspector.inspect(), waiting]
        items, following = page_by_key(
            sorted(found, key=lambda queue: queue.name),
            key=lambda queue: queue.name,
            after=request.query.cursor,
            limit=request.query.limit,
        )
        return Page[QueueFacts](items=items, next=following)

    api.add(GET_QUEUES, list_queues)
