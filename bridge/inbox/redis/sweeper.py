"""
Deleting messages and ids of users who receive nothing new, and then these users.

Redis could delete them by times to live, but then a jump of its own clock would delete all
inboxes at once. So each bridge sweeps the users, a part of them at each call.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from bridge.clock import SteadyClock
from bridge.errors import StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.redis.clock_record import store_clock
from bridge.inbox.redis.eviction import check_eviction
from bridge.inbox.redis.protocol import Argument
from bridge.inbox.redis.scripts.upkeep import SWEEP
from bridge.inbox.redis.servers import RedisServers

# Users in one call, which may have to delete all their messages.
_USERS: Final = 50
# Calls in one sweep: 50,000 users. A sweep of all others continues a minute later.
_CALLS_MAX: Final = 1000


class RedisSweeper:
    """The sweeps of one bridge."""

    def __init__(
        self,
        servers: RedisServers,
        clock: SteadyClock,
        *,
        store: str,
        is_cluster: bool,
    ) -> None:
        self._servers = servers
        self._clock = clock
        self._store = store
        self._count_subscribers = "SHARDNUMSUB" if is_cluster else "NUMSUB"
        self._tag = 0
        self._bound = b""

    async def sweep(self, retention: Retention, rules: Sequence[Argument]) -> None:
        """
        Delete old messages and ids of the next users, and forget those who are idle.

        It covers all users if they are few.

        Raises:
            StoreUnavailableError: If a server is away. The next call continues there.

        """
        prefixes = self._servers.prefixes
        first = self._servers.for_tag(0).current()
        with suppress(StoreUnavailableError):  # without memory: what follows frees some
            await store_clock(self._clock, first, prefixes[0])
        await self._check_eviction()
        tags_left = len(prefixes)
        for _ in range(_CALLS_MAX):
            now = self._clock.read()
            self._bound = await self._servers.run_script(
                SWEEP,
                self._tag,
                prefixes[self._tag],
                self._bound,
                retention.max_messages,
                repr(now.ago(retention.max_age_s)),
                repr(now.now_s),
                repr(now.steady_s),
                repr(now.lowest_s),
                _USERS,
                repr(now.ago(retention.dedupe_s)),
                self._count_subscribers,
                *rules,
            )
            if self._bound:
                continue
            self._tag = (self._tag + 1) % len(prefixes)
            tags_left -= 1
            if not tags_left:
                return

    async def _check_eviction(self) -> None:
        """Close connections to servers whose policy was changed while they were open."""
        for server in self._servers.connections:
            connection = server.current()
            try:
                await check_eviction(connection, self._store)
            except StoreUnavailableError as exc:
                connection.abort(exc.problem)
                raise
