"""Which servers an address means: one, the master behind Sentinels, or a cluster."""

from bridge.core.redis_address import Host, RedisAddress
from bridge.inbox.redis.cluster import RedisCluster, find_all_masters
from bridge.inbox.redis.connection_setup import ConnectionSetup
from bridge.inbox.redis.encoding import ALL_TAGS
from bridge.inbox.redis.sentinel import SentinelMaster, find_master
from bridge.inbox.redis.servers import RedisServers, SingleServer
from bridge.inbox.redis.timing import DEFAULT_TIMING, RedisTiming

_KINDS = {
    "server": SingleServer,
    "sentinel": SentinelMaster,
    "cluster": RedisCluster,
}


def create_servers(
    address: RedisAddress, setup: ConnectionSetup, timing: RedisTiming
) -> RedisServers:
    """Return the servers at `address`, not connected yet."""
    return _KINDS[address.kind](address, setup, timing)


async def find_servers(
    address: RedisAddress, timing: RedisTiming = DEFAULT_TIMING
) -> dict[Host, set[int]]:
    """
    Return where the masters are now, and which tags each of them holds.

    Raises:
        StoreUnavailableError: If a tag has no master, or no server answers.

    """
    if address.kind == "cluster":
        return await find_all_masters(address, timing)
    if address.kind == "sentinel":
        return {await find_master(address, timing): set(ALL_TAGS)}
    return {address.hosts[0]: set(ALL_TAGS)}
