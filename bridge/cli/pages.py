"""Lists of the operator's API, gathered from as many pages as were asked for."""

import asyncio
from typing import Any, TypeVar

from bridge.cli.operator_client import OperatorAddress, Query, operator_client
from bridge.core.contracts.operator.operation import PAGE_MAX, Page

PageT = TypeVar("PageT", bound=Page[Any])


def gather(
    address: OperatorAddress,
    path: str,
    page: type[PageT],
    *,
    query: Query,
    limit: int,
    cursor: str | None,
) -> PageT:
    """Return up to `limit` items from `cursor` on, and where the rest begins."""

    async def ask() -> PageT:
        items: list[Any] = []
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
                    return part.model_copy(update={"items": items})

    return asyncio.run(ask())
