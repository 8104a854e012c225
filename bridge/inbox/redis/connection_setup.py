"""
What happens on each new connection before the store uses it.

The permissions of our user are tried, a migration in progress keeps the bridge out, the
clock is compared with the store, a server that evicts inboxes is refused, all revocations are
read, the epochs of the users are established, and all followed users are subscribed to again.
"""

import secrets
from collections.abc import Sequence
from typing import Final

from bridge.clock import SteadyClock
from bridge.core.redis_address import RedisAddress
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.clock_record import resume_clock
from bridge.inbox.redis.encoding import Tags, migration_key
from bridge.inbox.redis.errors import RefusedByRedisError
from bridge.inbox.redis.eviction import check_eviction
from bridge.inbox.redis.feed import Feed
from bridge.inbox.redis.permissions import check_permissions
from bridge.inbox.redis.protocol import Argument, RedisConnection
from bridge.inbox.redis.revocations import RedisRevocations
from bridge.inbox.redis.scripts.upkeep import BEGIN

_NO_REPLICATION_ID: Final = "0" * 40


class ConnectionSetup:
    """
    The checks and subscriptions of new connections to the servers of one store.

    Attributes:
        prefixes: The key prefix of each tag.
        feed: Receives the pushes of all connections.

    """

    def __init__(
        self,
        address: RedisAddress,
        prefixes: Sequence[str],
        feed: Feed,
        revocations: RedisRevocations,
        clock: SteadyClock,
    ) -> None:
        self.prefixes = prefixes
        self.feed = feed
        self._address = address
        self._revocations = revocations
        self._clock = clock
        self._has_resumed_clock = False
        self._was_in_use = False  # by a bridge, before this process
        # Each tag of a cluster is in its own slot, and a script must stay within one slot.
        self._is_cluster = address.kind == "cluster"

    async def admit(self, connection: RedisConnection) -> None:
        """
        Keep bridges out until a migration into the store is complete.

        Raises:
            StoreUnavailableError: If a migration was begun and has not ended.

        """
        key = migration_key(self.prefixes)
        epoch, done = await connection.ask(b"HMGET", key, b"epoch", b"done")
        if epoch is not None and done is None:
            problem = "inboxes are being migrated into it; `bridge inbox migrate` must finish first"
            raise StoreUnavailableError(str(self._address), problem)

    async def prepare(self, connection: RedisConnection, tags: Tags) -> None:
        """
        Make a new connection to the server of `tags` ready for use.

        Raises:
            StoreUnavailableError: If the server cannot be used now.

        """
        self.feed.mark_unconfirmed(tags)
        ordered = sorted(tags)
        prefixes = [self.prefixes[tag] for tag in ordered]
        await check_permissions(self._address, connection, prefixes[0])
        await check_eviction(connection, str(self._address))
        if 0 in tags:
            await self.admit(connection)
            if not self._has_resumed_clock:
                self._was_in_use = await resume_clock(
                    self._clock, connection, self.prefixes[0]
                )
                self._has_resumed_clock = True
        # Before the feed: a window that is revoked meanwhile receives nothing of it.
        await self._revocations.prepare(connection, tags)
        epochs = await self._establish_epochs(connection, ordered)
        # Subscribe first and read the newest messages second: a message stored between
        # the two then arrives twice, and none is missed.
        subscriptions = self.feed.resubscribe(connection, tags)
        for tag, epoch in zip(ordered, epochs, strict=True):
            self.feed.note_epoch(tag, epoch)
        for part, command in self.feed.newest_queries(subscriptions):
            self.feed.take_newest(part, await connection.ask(*command))

    async def _establish_epochs(
        self, connection: RedisConnection, tags: Sequence[int]
    ) -> Sequence[str]:
        """
        Return the epoch of each of `tags`, after starting new ones where messages may be lost.

        An epoch ends when messages that a client has seen may be gone, because their
        offsets are then assigned again. That happens when a replica becomes the master
        (replication is asynchronous), and when a server restarts that does not write each
        command to disk before it replies (appendfsync always). The server's replication
        id changes in both cases, and in no other. The first bridge that notices starts
        the new epoch for all bridges.

        A tag that had an epoch and has none was evicted or emptied. That is recorded, because
        new windows of its users must learn of it, too.
        """
        info = await connection.info(b"replication")
        if info.get("role") != "master":
            problem = "it is a replica (READONLY)"
            raise StoreUnavailableError(str(self._address), problem)
        was_replica = (
            info.get("master_replid2", _NO_REPLICATION_ID) != _NO_REPLICATION_ID
        )
        loses_nothing = not was_replica and await self._is_durable(connection)
        head: tuple[Argument, ...] = (
            secrets.token_hex(5),
            info["master_replid"],
            int(loses_nothing),
            repr(self._clock.read().now_s),
        )
        commands = []
        for group in [[tag] for tag in tags] if self._is_cluster else [tags]:
            arguments: list[Argument] = [
                b"EVALSHA",
                BEGIN.sha,
                1,
                f"{self.prefixes[group[0]]}h",
            ]
            arguments += head
            for tag in group:
                had_epoch = self._was_in_use or bool(self.feed.epochs[tag])
                arguments += (self.prefixes[tag], int(had_epoch))
            commands.append(arguments)
        replies = await connection.ask_all(commands)
        return [epoch.decode() for reply in replies for epoch in reply]

    async def _is_durable(self, connection: RedisConnection) -> bool:
        """Say whether each command is on disk before its reply; false if unknown."""
        try:
            found = await connection.ask(b"CONFIG", b"GET", b"append*")
        except (RefusedByRedisError, StoreUnavailableError):
            return False  # hosted servers often forbid CONFIG
        policy = found.get(b"appendonly"), found.get(b"appendfsync")
        return policy == (b"yes", b"always")
