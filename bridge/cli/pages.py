"""Lists of the operator's API, gathered from as many pages as were asked for."""

import asyncio
from typing import TypeVar

from pydantic import BaseModel

from bridge.cli.operator_client import OperatorAddress, Query, operator_client
from bridge.core.contracts.operator.operation import PAGE_MAX, Page

ItemT = TypeVar("ItemT", bound=BaseModel)


def gather(
    address: OperatorAddress,
    path: str,
    page: type[Page[ItemT]],
    *,
    query: Query,
    limit: int,
    cursor: str | None,
) -> Page[ItemT]:
    """Return up to `limit` items from `cursor` on, and where the rest begins."""

    async def ask() -> Page[ItemT]:
        items: list[ItemT] = []
        after = cursor
        async with operator_client(address) as client:
            while True:
                size = min(PAGE_MAX, limit - len(items))
                part = await client.get(
                    path, page, query={**query, "limit": size, "cursor": after}
                )
                items += part.items
                after = part.next
                if after is None or len(items) >= limit:
                    return page(items=items, next=after)

    return asyncio.run(ask())
