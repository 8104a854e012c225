"""Asking the servers of a store: each question goes to where the keys of its tag are."""

from collections.abc import Sequence

from bridge.core.redis_address import RedisAddress
from bridge.inbox.contract import DiskUsage
from bridge.inbox.redis.connection import KeptLink, see_replicas, waits
from bridge.inbox.redis.protocol import Answer, Word
from bridge.inbox.redis.scripts import Script
from bridge.inbox.redis.servers import Servers, parse_info


class Asking:
    """Questions by tag; all raise StoreUnavailableError while a server is away."""

    def __init__(
        self, address: RedisAddress, servers: Servers, prefixes: Sequence[str]
    ) -> None:
        self.prefixes = prefixes
        self._address = address
        self._servers = servers

    def key(self, tag: int) -> str:
        """Return a key of this tag, which tells a cluster where a script belongs."""
        return f"{self.prefixes[tag]}h"

    async def run(self, script: Script, tag: int, *words: Word) -> Answer:
        """Run a script where the keys of this tag are."""
        return await self._servers.of(tag).run_script(script, *words, key=self.key(tag))

    async def each(self, asked: Sequence[tuple[int, Sequence[Word]]]) -> list[Answer]:
        """Send many commands at once, each to where its tag is."""
        by_server: dict[KeptLink, list[int]] = {}
        for place, (tag, _) in enumerate(asked):
            by_server.setdefault(self._servers.of(tag), []).append(place)
        answers: list[Answer] = [None] * len(asked)
        for kept, places in by_server.items():
            found = await kept.ask_all([asked[place][1] for place in places])
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        return answers

    async def check(self) -> None:
        """Write something on each server, and see that its replicas follow."""
        for tag, kept in self._one_tag_each():
            words = (b"SET", f"{self.prefixes[tag]}probe", b"", b"PX", 1000)
            _, *waited = await kept.ask_all([words, *waits(self._address)])
            see_replicas(self._address, waited)

    async def usage(self) -> DiskUsage:
        """Return the memory that the servers take, and what their limits leave."""
        used = free = 0
        for _, kept in self._one_tag_each():
            info = parse_info(await kept.ask(b"INFO", b"memory"))
            limit = int(info["maxmemory"]) or int(info["total_system_memory"])
            used += int(info["used_memory"])
            free += max(0, limit - int(info["used_memory"]))
        return DiskUsage(used, free)

    def _one_tag_each(self) -> list[tuple[int, KeptLink]]:
        found: dict[KeptLink, int] = {}
        for tag in range(len(self.prefixes)):
            found.setdefault(self._servers.of(tag), tag)
        return [(tag, kept) for kept, tag in found.items()]
