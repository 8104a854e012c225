"""
Revocations in Redis: stored and published in one step, and known to every bridge.

Each tag has a channel for them, which every bridge subscribes to. On a new connection a
bridge subscribes first, then reads all revocations, and only then uses the connection. So
what it knows is complete as of the last reply on that connection: a revocation that was
stored before the reply was pushed before it.

A failover can lose what was not replicated yet. So a bridge that reconnects writes what it
knows and the store lacks.
"""

from collections.abc import Sequence

from bridge.clock import SteadyClock
from bridge.core.revocation import Revocation, RevocationIndex, parse_revocation
from bridge.inbox.redis.connection import PersistentConnection
from bridge.inbox.redis.encoding import Tags, tag_of
from bridge.inbox.redis.protocol import Argument, RedisConnection
from bridge.inbox.redis.scripts.upkeep import REVOKE

# A command for the server of a tag.
TagCommand = tuple[int, Sequence[Argument]]


def store_command(prefixes: Sequence[str], revocation: Revocation) -> TagCommand:
    """Return the command that stores a revocation without publishing it."""
    tag = tag_of(revocation.user)
    return tag, (b"ZADD", f"{prefixes[tag]}r", 0, revocation.render())


class RedisRevocations:
    """
    The revocations that this bridge knows.

    Attributes:
        index: All of them.

    """

    def __init__(
        self, prefixes: Sequence[str], clock: SteadyClock, *, is_cluster: bool
    ) -> None:
        self.index = RevocationIndex()
        self._prefixes = prefixes
        self._clock = clock
        self._is_cluster = is_cluster
        self._channels = [f"{prefix}revoked".encode() for prefix in prefixes]
        self._all_channels = frozenset(self._channels)

    def is_channel(self, channel: bytes) -> bool:
        """Return whether revocations are published to `channel`."""
        return channel in self._all_channels

    async def prepare(self, connection: RedisConnection, tags: Tags) -> None:
        """
        Learn all revocations of `tags` from a new connection, and follow new ones.

        Raises:
            StoreUnavailableError: If the server cannot be used now.

        """
        ordered = sorted(tags)
        subscribe = b"SSUBSCRIBE" if self._is_cluster else b"SUBSCRIBE"
        # In a cluster the channels of one command must be in one slot.
        for group in [[tag] for tag in ordered] if self._is_cluster else [ordered]:
            connection.send(subscribe, *(self._channels[tag] for tag in group))
        commands = [self._read_command(tag) for tag in ordered]
        stored: set[Revocation] = set()
        for texts in await connection.ask_all(commands):
            stored.update(map(parse_revocation, texts))
        now = self._clock.read()
        for revocation in stored:
            if not revocation.is_over(now):
                self.index.add(revocation)
        for revocation in self.index.all(now):
            if revocation not in stored and tag_of(revocation.user) in tags:
                await connection.ask(*self._revoke_command(revocation))

    async def revoke(
        self, server: PersistentConnection, revocation: Revocation
    ) -> None:
        """Store and publish a revocation on the server of its tag; see `RevocationStore`."""
        self.index.check_room()
        command = self._revoke_command(revocation)
        _, *counts = await server.ask_all([command, *server.replica_commands()])
        server.check_replicas(counts)
        self.index.add(revocation)

    def read_commands(self) -> list[TagCommand]:
        """Return commands that read the revocations of each tag."""
        return [(tag, self._read_command(tag)) for tag in range(len(self._prefixes))]

    def drop_over(self, found: Sequence[Sequence[bytes]]) -> list[TagCommand]:
        """Forget what is over; return commands that delete it, given all revocations."""
        now = self._clock.read()
        self.index.drop_over(now)
        return [
            (tag, (b"ZREM", f"{self._prefixes[tag]}r", text))
            for tag, texts in enumerate(found)
            for text in texts
            if parse_revocation(text).is_over(now)
        ]

    def _read_command(self, tag: int) -> Sequence[Argument]:
        return (b"ZRANGEBYLEX", f"{self._prefixes[tag]}r", b"-", b"+")

    def _revoke_command(self, revocation: Revocation) -> Sequence[Argument]:
        prefix = self._prefixes[tag_of(revocation.user)]
        publish = b"SPUBLISH" if self._is_cluster else b"PUBLISH"
        head = (b"EVALSHA", REVOKE.sha, 1, f"{prefix}r")
        return (*head, prefix, revocation.render(), publish)
