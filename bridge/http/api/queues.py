"""`GET /api/queues`."""

from collections.abc import Sequence
from typing import Protocol

from bridge.core.contracts.operator.operation import NoBody, Page, PageQuery
from bridge.core.contracts.operator.queues import GET_QUEUES, QueueFacts
from bridge.http.api.endpoint import Api, ApiRequest
from bridge.http.api.paging import page_by_key


class Queues(Protocol):
    """Who can look at the queues (broker/queues.py)."""

    async def look(self) -> Sequence[QueueFacts]:
        """Look at each queue of this bridge."""


def add_queue_routes(api: Api, queues: Queues) -> None:
    """Serve the list of queues."""

    async def list_queues(request: ApiRequest[PageQuery, NoBody]) -> Page[QueueFacts]:
        found = sorted(await queues.look(), key=lambda queue: queue.name)
        items, following = page_by_key(
            found,
            key=lambda queue: queue.name,
            after=request.query.cursor,
            limit=request.query.limit,
        )
        return Page[QueueFacts](items=items, next=following)

    api.add(GET_QUEUES, list_queues)
