"""
The servers of one store: which of them holds the keys of a hash tag, and commands to it.

A single server holds everything. A master found by Sentinels (sentinel.py) does, too; in a
cluster (cluster.py) each master holds the tags of its slots.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

from bridge.core.redis_address import Host, RedisAddress
from bridge.inbox.contract import DiskUsage
from bridge.inbox.redis.connection import PersistentConnection
from bridge.inbox.redis.connection_setup import ConnectionSetup
from bridge.inbox.redis.encoding import ALL_TAGS
from bridge.inbox.redis.protocol import Argument, Reply
from bridge.inbox.redis.scripts.script import Script
from bridge.inbox.redis.timing import RedisTiming


class RedisServers(ABC):
    """
    All servers of one store. Commands raise StoreUnavailableError while a server is away.

    Attributes:
        prefixes: The key prefix of each tag.
        was_attempted: Set after each attempt to connect, successful or not.

    """

    was_attempted: asyncio.Event

    def __init__(
        self, address: RedisAddress, setup: ConnectionSetup, timing: RedisTiming
    ) -> None:
        """Keep what new connections need; nothing is connected before `run`."""
        self.prefixes = setup.prefixes
        self._address = address
        self._setup = setup
        self._timing = timing

    @property
    @abstractmethod
    def problem(self) -> str | None:
        """Why some of the servers cannot be reached; ``None`` if all can."""

    @property
    @abstractmethod
    def connections(self) -> Sequence[PersistentConnection]:
        """The connection to each server."""

    def replace_login(self, address: RedisAddress) -> None:
        """Log in as `address` says at each new connect; open connections stay."""
        self._address = address
        for connection in self.connections:
            connection.replace_login(address)

    @abstractmethod
    def for_tag(self, tag: int) -> PersistentConnection:
        """Return the connection for `tag`; StoreUnavailableError if it has no server."""

    @abstractmethod
    async def run(self) -> None:
        """Keep connections to all servers until cancelled."""

    def key(self, tag: int) -> str:
        """Return a key of this tag. A cluster needs one to route a script."""
        return f"{self.prefixes[tag]}h"

    async def run_script(self, script: Script, tag: int, *arguments: Argument) -> Reply:
        """Run a script on the server of this tag."""
        connection = self.for_tag(tag)
        return await connection.run_script(script, *arguments, key=self.key(tag))

    async def ask_each(
        self, commands: Sequence[tuple[int, Sequence[Argument]]]
    ) -> list[Reply]:
        """Send each command to the server of its tag, many at once; replies in order."""
        by_server: dict[PersistentConnection, list[int]] = {}
        for index, (tag, _) in enumerate(commands):
            by_server.setdefault(self.for_tag(tag), []).append(index)
        replies: list[Reply] = [None] * len(commands)
        for connection, indexes in by_server.items():
            found = await connection.ask_all([commands[index][1] for index in indexes])
            for index, reply in zip(indexes, found, strict=True):
                replies[index] = reply
        return replies

    async def check(self) -> None:
        """Write a key on each server, and check that its replicas acknowledge."""
        for connection, tag in self._one_tag_each().items():
            probe = (b"SET", f"{self.prefixes[tag]}probe", b"", b"PX", 1000)
            _, *counts = await connection.ask_all(
                [probe, *connection.replica_commands()]
            )
            connection.check_replicas(counts)

    async def memory_usage(self) -> DiskUsage:
        """Return the memory that the servers use, and the rest up to their limits."""
        used = free = 0
        for connection in self._one_tag_each():
            info = await connection.current().info(b"memory")
            limit = int(info["maxmemory"]) or int(info["total_system_memory"])
            used += int(info["used_memory"])
            free += max(0, limit - int(info["used_memory"]))
        return DiskUsage(used, free)

    def _one_tag_each(self) -> dict[PersistentConnection, int]:
        found: dict[PersistentConnection, int] = {}
        for tag in range(len(self.prefixes)):
            found.setdefault(self.for_tag(tag), tag)
        return found


class SingleServer(RedisServers):
    """One server that holds all tags."""

    def __init__(
        self, address: RedisAddress, setup: ConnectionSetup, timing: RedisTiming
    ) -> None:
        super().__init__(address, setup, timing)
        self.connection = PersistentConnection(
            address,
            self._find_host,
            timing=timing,
            on_push=setup.feed.on_push,
            prepare=lambda connection: setup.prepare(connection, ALL_TAGS),
        )
        self.was_attempted = self.connection.was_attempted

    async def _find_host(self) -> Host:
        return self._address.hosts[0]

    @property
    def problem(self) -> str | None:
        """Why the server cannot be reached."""
        return self.connection.problem

    @property
    def connections(self) -> Sequence[PersistentConnection]:
        """The one connection."""
        return (self.connection,)

    def for_tag(self, tag: int) -> PersistentConnection:  # noqa: ARG002 - it holds all tags
        """Return the one connection."""
        return self.connection

    async def run(self) -> None:
        """Keep the connection until cancelled."""
        await self.connection.run()
