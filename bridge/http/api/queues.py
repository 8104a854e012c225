"""`GET /api/queues`."""

from bridge.amqp.queues import QueueInspector
from bridge.core.contracts.operator.operation import Page, PageQuery
from bridge.core.contracts.operator.queues import GET_QUEUES, QueueFacts
from bridge.http.api.endpoint import Api, ApiRequest
from bridge.http.api.paging import page_by_key


def add_queue_routes(api: Api, inspector: QueueInspector) -> None:
    """Serve the list of queues."""

    async def list_queues(request: ApiRequest[PageQuery]) -> Page[QueueFacts]:
        found = sorted(await inspector.inspect(), key=lambda queue: queue.name)
        items, following = page_by_key(
            found,
            key=lambda queue: queue.name,
            after=request.query.cursor,
            limit=request.query.limit,
        )
        return Page[QueueFacts](items=items, next=following)

    api.add(GET_QUEUES, list_queues)
