"""A master that Sentinels find, and find again after a failover."""

import asyncio
from dataclasses import replace

from bridge.core.redis_address import Host, RedisAddress
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.connection import temporary_connection
from bridge.inbox.redis.servers import SingleServer
from bridge.inbox.redis.timing import RedisTiming


class SentinelMaster(SingleServer):
    """The master of one service. It may move to another host at any time."""

    _master: Host | None = None

    async def run(self) -> None:
        """Keep the connection, and watch for failovers, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.connection.run(), name="inbox connection")
            tasks.create_task(self._follow_failovers(), name="inbox sentinels")

    async def _follow_failovers(self) -> None:
        """
        Leave a master that was demoted, even while the connection to it works.

        It may be frozen, or cut off from its Sentinels but not from us. Everything it
        accepts then is lost when it rejoins as a replica.
        """
        while True:
            await asyncio.sleep(self._timing.discovery_interval_s)
            connection = self.connection.connection
            if connection is None:
                continue  # the reconnect asks the Sentinels
            try:
                host = await find_master(self._address, self._timing)
            except StoreUnavailableError:
                continue
            if host != self._master and connection is self.connection.connection:
                connection.abort(f"the master is {host} now")

    async def _find_host(self) -> Host:
        self._master = await find_master(self._address, self._timing)
        return self._master


async def find_master(address: RedisAddress, timing: RedisTiming) -> Host:
    """
    Ask the Sentinels in order until one knows the master.

    Raises:
        StoreUnavailableError: If no Sentinel answers, or none knows the service.

    """
    problem = "no Sentinel answers"
    # All of them together get the time for one connection.
    share = replace(timing, connect_s=timing.connect_s / len(address.hosts))
    for host in address.hosts:
        try:
            async with temporary_connection(
                address, host, share, is_sentinel=True
            ) as connection:
                found = await connection.ask(
                    b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", address.service
                )
        except StoreUnavailableError as exc:
            problem = f"the Sentinel {host}: {exc.problem}"
            continue
        if found:
            return Host(found[0].decode(), int(found[1]))
        problem = f"the Sentinel {host} does not know {address.service!r}"
    raise StoreUnavailableError(str(address), problem)
