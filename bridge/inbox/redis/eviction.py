"""
Whether a server may evict inboxes when its memory is full.

Policies that evict any key (allkeys-*) would delete messages that were acked to the broker.
Those for keys with a time to live (volatile-*) cannot, because inboxes have none.
"""

from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.protocol import RedisConnection


async def check_eviction(connection: RedisConnection, store: str) -> None:
    """Raise StoreUnavailableError, for the store of this name, if the server evicts inboxes."""
    info = await connection.info(b"memory")
    policy = info.get("maxmemory_policy", "")
    if policy.startswith("allkeys") and info.get("maxmemory") != "0":
        problem = (
            f"maxmemory-policy {policy} deletes inboxes when memory is short: "
            "CONFIG SET maxmemory-policy noeviction"
        )
        raise StoreUnavailableError(store, problem)
