"""
The masters of a Redis Cluster, and which of them has which users.

The nodes are asked now and then, and at once when something speaks for a change: a
connection was lost, a node says MOVED, or it has given our channels up because their slot
has gone. While a slot is on its way its users wait (TRYAGAIN, ASK), as if the store was away.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from bridge.core.redis_address import Host, RedisAddress
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis import servers as redis_servers
from bridge.inbox.redis.connection import CONNECT_S, KeptLink, RefusedByRedisError
from bridge.inbox.redis.encoding import TAGS
from bridge.inbox.redis.protocol import Link, Pushed
from bridge.inbox.redis.servers import Greet, Tags, masters_of, visited, why

Admit = Callable[[Link], Awaitable[None]]

# At least so long between two looks.
_LOOK_SOON_S: Final = 0.5


class Cluster:
    """The masters of a cluster, as far as they are known."""

    def __init__(
        self, address: RedisAddress, *, pushed: Pushed, greet: Greet, admit: Admit
    ) -> None:
        """
        Know some of its nodes, and go nowhere yet.

        Args:
            address: Of the nodes.
            pushed: Takes what they push.
            greet: Does what has to be done on a new connection to one of them.
            admit: Raises what keeps us out of all of them, asked of who has the first tag.

        """
        self._address = address
        self._pushed = pushed
        self._greet = greet
        self._admit = admit
        self._nodes: dict[Host, tuple[KeptLink, Tags]] = {}
        self._owners: list[KeptLink | None] = [None] * TAGS
        self._unknown: str | None = "its nodes were not asked yet"
        self._running: dict[Host, asyncio.Task[None]] = {}
        self._is_doubted = asyncio.Event()
        self.was_tried = asyncio.Event()

    def doubt(self) -> None:
        """Look soon who has what: something speaks for a change."""
        self._is_doubted.set()

    @property
    def problem(self) -> str | None:
        """Why some of it cannot be reached."""
        problems = (kept.problem for kept, _ in self._nodes.values())
        return self._unknown or next(filter(None, problems), None)

    @property
    def all(self) -> Sequence[KeptLink]:
        """Return the connection to each master."""
        return [kept for kept, _ in self._nodes.values()]

    def of(self, tag: int) -> KeptLink:
        """Return the connection to who has `tag`."""
        kept = self._owners[tag]
        if kept is None:
            problem = self._unknown or "a part of its slots has no master"
            raise StoreUnavailableError(str(self._address), problem)
        return kept

    async def run(self) -> None:
        """Look now and then who has what, and keep connections to them."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._is_doubted.clear()
                try:
                    found = await masters_of(self._address, also=self._nodes)
                    await self._see_that_we_may(found)
                except StoreUnavailableError as exc:
                    self._unknown = exc.problem
                else:
                    self._follow(found, tasks)
                    await self._wait_for_first_tries()
                self.was_tried.set()
                await self._wait_until_doubtful()

    async def _see_that_we_may(self, found: dict[Host, set[int]]) -> None:
        # The node with the first tag says so for all: before it did, none may be used.
        for host in (host for host, tags in found.items() if 0 in tags):
            try:
                async with (
                    asyncio.timeout(CONNECT_S),
                    visited(self._address, host) as link,
                ):
                    await self._admit(link)
            except (OSError, TimeoutError, RefusedByRedisError) as exc:
                problem = f"{host}: {why(exc)}"
                raise StoreUnavailableError(str(self._address), problem) from exc

    async def _wait_for_first_tries(self) -> None:
        for kept in self.all:
            await kept.was_tried.wait()

    async def _wait_until_doubtful(self) -> None:
        """Look soon if anything is wrong or was moved, else later."""
        await asyncio.sleep(_LOOK_SOON_S)
        if self.problem is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(redis_servers.LOOK_EACH_S):
                    await self._is_doubted.wait()

    def _follow(self, found: dict[Host, set[int]], tasks: asyncio.TaskGroup) -> None:
        for host in set(self._nodes) - set(found):
            del self._nodes[host]
            self._running.pop(host).cancel()
        for host, tags in found.items():
            before = self._nodes.get(host)
            if before is None:
                kept = self._keep(host)
                self._nodes[host] = kept, frozenset(tags)
                self._running[host] = tasks.create_task(
                    kept.run(), name=f"inbox link {host}"
                )
            elif before[1] != tags:
                self._nodes[host] = before[0], frozenset(tags)
                if before[0].link is not None:  # it greets as if it were new
                    before[0].link.abort("it has other slots now")
        self._owners = [None] * TAGS
        for kept, its_tags in self._nodes.values():
            for tag in its_tags:
                self._owners[tag] = kept
        missing = self._owners.count(None)
        self._unknown = f"{missing} of {TAGS} tags have no master" if missing else None

    def _keep(self, host: Host) -> KeptLink:
        async def find() -> Host:
            return host

        async def greet(link: Link) -> None:
            tags = self._nodes[host][1]
            await self._greet(link, tags)
            if self._nodes[host][1] != tags:
                problem = "it was given other slots meanwhile"
                raise StoreUnavailableError(str(self._address), problem)

        return KeptLink(
            self._address, find, pushed=self._pushed, greet=greet, lost=self.doubt
        )
