"""
The masters of a Redis Cluster, and which of them holds which hash tags.

The nodes are asked periodically, and at once after a connection was lost: a node whose slots
changed answers MOVED or ends our subscriptions, and both end the connection. While a slot
moves between nodes, its users wait (TRYAGAIN, ASK) as if the store was unavailable.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

from bridge.core.redis_address import Host, RedisAddress
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.connection import PersistentConnection, temporary_connection
from bridge.inbox.redis.connection_setup import ConnectionSetup
from bridge.inbox.redis.encoding import TAG_COUNT, Tags, slot_of_tag, tag_names
from bridge.inbox.redis.protocol import RedisConnection, Reply
from bridge.inbox.redis.servers import RedisServers
from bridge.inbox.redis.timing import RedisTiming

# The least time between two discoveries.
_DISCOVERY_MIN_S: Final = 0.5


class RedisCluster(RedisServers):
    """The masters of a cluster, as far as they are known."""

    def __init__(
        self, address: RedisAddress, setup: ConnectionSetup, timing: RedisTiming
    ) -> None:
        super().__init__(address, setup, timing)
        self._nodes: dict[Host, tuple[PersistentConnection, Tags]] = {}
        self._owners: list[PersistentConnection | None] = [None] * TAG_COUNT
        self._discovery_problem: str | None = "the nodes were not asked yet"
        self._tasks: dict[Host, asyncio.Task[None]] = {}
        self._may_have_changed = asyncio.Event()
        self.was_attempted = asyncio.Event()

    @property
    def problem(self) -> str | None:
        """Why some of the masters cannot be reached."""
        problems = (connection.problem for connection, _ in self._nodes.values())
        return self._discovery_problem or next(filter(None, problems), None)

    @property
    def connections(self) -> Sequence[PersistentConnection]:
        """The connection to each master."""
        return [connection for connection, _ in self._nodes.values()]

    def for_tag(self, tag: int) -> PersistentConnection:
        """Return the connection to the master of `tag`."""
        connection = self._owners[tag]
        if connection is None:
            problem = self._discovery_problem or "some slots have no master"
            raise StoreUnavailableError(str(self._address), problem)
        return connection

    async def run(self) -> None:
        """Discover the masters periodically, and keep connections to them."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._may_have_changed.clear()
                try:
                    found = await find_masters(
                        self._address, self._timing, known=self._nodes
                    )
                    await self._check_admission(found)
                except StoreUnavailableError as exc:
                    self._discovery_problem = exc.problem
                else:
                    self._update(found, tasks)
                    for connection in self.connections:
                        await connection.was_attempted.wait()
                self.was_attempted.set()
                await self._wait_until_due()

    async def _check_admission(self, found: dict[Host, set[int]]) -> None:
        # The node of the first tag decides for all nodes, so it is asked first.
        for host in (host for host, tags in found.items() if 0 in tags):
            async with temporary_connection(
                self._address, host, self._timing
            ) as connection:
                await self._setup.admit(connection)

    async def _wait_until_due(self) -> None:
        """Wait for the next discovery: shortly if there is a problem or a change."""
        await asyncio.sleep(_DISCOVERY_MIN_S)
        if self.problem is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timing.discovery_interval_s):
                    await self._may_have_changed.wait()

    def _update(self, found: dict[Host, set[int]], tasks: asyncio.TaskGroup) -> None:
        for host in set(self._nodes) - set(found):
            del self._nodes[host]
            self._tasks.pop(host).cancel()
        for host, tags in found.items():
            before = self._nodes.get(host)
            if before is None:
                connection = self._connection_to(host)
                self._nodes[host] = connection, frozenset(tags)
                self._tasks[host] = tasks.create_task(
                    connection.run(), name=f"inbox connection {host}"
                )
            elif before[1] != tags:
                self._nodes[host] = before[0], frozenset(tags)
                if before[0].connection is not None:
                    # The reconnect prepares the new tags like those of a new node.
                    before[0].connection.abort("it has other slots now")
        self._owners = [None] * TAG_COUNT
        for connection, its_tags in self._nodes.values():
            for tag in its_tags:
                self._owners[tag] = connection
        missing = self._owners.count(None)
        self._discovery_problem = _missing_text(missing) if missing else None

    def _connection_to(self, host: Host) -> PersistentConnection:
        async def find_host() -> Host:
            return host

        async def prepare(connection: RedisConnection) -> None:
            tags = self._nodes[host][1]
            await self._setup.prepare(connection, tags)
            # A discovery may have changed the tags meanwhile. Nothing has subscribed to
            # channels of the new ones.
            if self._nodes[host][1] != tags:
                problem = "its slots changed while it was prepared"
                raise StoreUnavailableError(str(self._address), problem)

        return PersistentConnection(
            self._address,
            find_host,
            timing=self._timing,
            on_push=self._setup.feed.on_push,
            prepare=prepare,
            on_lost=self._may_have_changed.set,
        )


async def find_all_masters(
    address: RedisAddress, timing: RedisTiming
) -> dict[Host, set[int]]:
    """Return the tags of each master; StoreUnavailableError if a tag has none."""
    masters = await find_masters(address, timing)
    missing = TAG_COUNT - sum(map(len, masters.values()))
    if missing:
        raise StoreUnavailableError(str(address), _missing_text(missing))
    return masters


async def find_masters(
    address: RedisAddress, timing: RedisTiming, *, known: Iterable[Host] = ()
) -> dict[Host, set[int]]:
    """
    Ask the nodes in order, `known` ones first, which master holds which tags.

    Raises:
        StoreUnavailableError: If no node answers.

    """
    problem = "no node answers"
    for host in (*known, *address.hosts):
        try:
            async with temporary_connection(address, host, timing) as connection:
                ranges = await connection.ask(b"CLUSTER", b"SLOTS")
        except StoreUnavailableError as exc:
            problem = f"{host}: {exc.problem}"
            continue
        return _tags_by_master(ranges, asked=host)
    raise StoreUnavailableError(str(address), problem)


def _tags_by_master(ranges: Reply, *, asked: Host) -> dict[Host, set[int]]:
    """Read the reply to CLUSTER SLOTS."""
    slots = [slot_of_tag(name) for name in tag_names()]
    found: dict[Host, set[int]] = {}
    for low, high, master, *_ in ranges:
        # A node that does not know its own host name reports an empty one.
        host = Host((master[0] or b"").decode() or asked.name, int(master[1]))
        tags = {tag for tag, slot in enumerate(slots) if low <= slot <= high}
        if tags:
            found.setdefault(host, set()).update(tags)
    return found


def _missing_text(count: int) -> str:
    return f"{count} of {TAG_COUNT} tags have no master"
