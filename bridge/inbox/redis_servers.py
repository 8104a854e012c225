"""
Which server has which users: one for all, or the masters of a cluster.

A server is found anew each time that a connection is made: Sentinels are asked for the
master of the moment, nodes of a cluster for who has which slots. On each new connection
the epochs of its users are looked at before it is used: see `begin`.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol

import structlog

from bridge.core.redis_address import Host, RedisAddress
from bridge.errors import StoreUnavailableError
from bridge.inbox import redis_scripts as scripts
from bridge.inbox.redis_elements import TAGS, slot_of_tag, tag_names
from bridge.inbox.redis_link import (
    CONNECT_S,
    KeptLink,
    RefusedByRedisError,
    answer_of,
    ask,
)
from bridge.inbox.redis_opening import greeting_lost, open_link
from bridge.inbox.redis_wire import Answer, Link, Pushed, Word

log = structlog.get_logger(__name__)

Tags = frozenset[int]
Greet = Callable[[Link, Tags], Awaitable[None]]

ALL_TAGS: Final[Tags] = frozenset(range(TAGS))
_LOOK_EACH_S: Final = 5.0
_NO_LINE: Final = "0" * 40


class Servers(Protocol):
    """All servers of one store."""

    was_tried: asyncio.Event

    @property
    def problem(self) -> str | None:
        """Why some of them cannot be reached."""

    async def run(self) -> None:
        """Keep connections to all of them, until cancelled."""

    def of(self, tag: int) -> KeptLink:
        """Return the connection to who has `tag`; StoreUnavailableError if nobody has."""

    @property
    def all(self) -> Sequence[KeptLink]:
        """Return each connection."""


class OneServer:
    """A server that has everything, by its address or found by Sentinels."""

    def __init__(self, address: RedisAddress, *, pushed: Pushed, greet: Greet) -> None:
        self._address = address
        self._kept = KeptLink(
            address,
            self._find,
            pushed=pushed,
            greet=lambda link: greet(link, ALL_TAGS),
        )
        self.was_tried = self._kept.was_tried
        self._found: Host | None = None

    @property
    def problem(self) -> str | None:
        """Why it cannot be reached."""
        return self._kept.problem

    @property
    def all(self) -> Sequence[KeptLink]:
        """Return the one."""
        return (self._kept,)

    def of(self, tag: int) -> KeptLink:
        """Return the one."""
        del tag
        return self._kept

    async def run(self) -> None:
        """Keep the connection, until cancelled."""
        if self._address.kind == "server":
            await self._kept.run()
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._kept.run(), name="inbox link")
            tasks.create_task(self._heed_sentinels(), name="inbox sentinels")

    async def _heed_sentinels(self) -> None:
        """
        Leave a master that is one no more, though its connection is well.

        It may be frozen, or cut off from its Sentinels and not from us: what it takes
        then is lost when it comes back, as a replica.
        """
        while True:
            await asyncio.sleep(_LOOK_EACH_S)
            link = self._kept.link
            if link is None:
                continue  # whoever connects asks them
            try:
                host = await find_master(self._address)
            except StoreUnavailableError:
                continue
            if host != self._found and link is self._kept.link:
                link.abort(f"the master is {host} now")

    async def _find(self) -> Host:
        if self._address.kind == "server":
            return self._address.hosts[0]
        self._found = await find_master(self._address)
        return self._found


async def find_master(address: RedisAddress) -> Host:
    """
    Ask the Sentinels, one after the other, where the master is.

    Raises:
        StoreUnavailableError: If none of them answers, or none knows.

    """
    problem = "no Sentinel answers"
    for host in address.hosts:
        try:
            async with asyncio.timeout(CONNECT_S / len(address.hosts)):
                found = await _ask_once(
                    address,
                    host,
                    (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", address.service),
                    user=address.sentinel_user,
                    password=address.sentinel_password,
                )
        except (OSError, TimeoutError, StoreUnavailableError, RefusedByRedisError) as e:
            problem = f"the Sentinel {host}: {_why(e)}"
            continue
        if found:
            return Host(found[0].decode(), int(found[1]))
        problem = f"the Sentinel {host} knows no {address.service!r}"
    raise StoreUnavailableError(str(address), problem)


def _why(exc: Exception) -> str:
    if isinstance(exc, StoreUnavailableError):
        return exc.problem
    return str(exc) or "no answer"


async def _ask_once(
    address: RedisAddress,
    host: Host,
    words: Sequence[Word],
    *,
    user: str | None,
    password: str | None,
) -> Answer:
    link = await open_link(address, host)
    try:
        if password is not None:
            await ask(address, link, b"AUTH", user or "default", password)
        return await ask(address, link, *words)
    except StoreUnavailableError as exc:
        problem = greeting_lost(address, exc.problem)
        raise StoreUnavailableError(str(address), problem) from exc
    finally:
        link.abort("it was asked")


class Cluster:
    """The masters of a cluster, as far as they are known."""

    def __init__(self, address: RedisAddress, *, pushed: Pushed, greet: Greet) -> None:
        self._address = address
        self._pushed = pushed
        self._greet = greet
        self._nodes: dict[Host, tuple[KeptLink, Tags]] = {}
        self._owners: list[KeptLink | None] = [None] * TAGS
        self._unknown: str | None = "its nodes were not asked yet"
        self._running: dict[Host, asyncio.Task[None]] = {}
        self.was_tried = asyncio.Event()

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
                try:
                    found = await _masters(self._address, also=self._nodes)
                except StoreUnavailableError as exc:
                    self._unknown = exc.problem
                else:
                    self._follow(found, tasks)
                    await self._wait_for_first_tries()
                self.was_tried.set()
                await self._wait_until_doubtful()

    async def _wait_for_first_tries(self) -> None:
        for kept in self.all:
            await kept.was_tried.wait()

    async def _wait_until_doubtful(self) -> None:
        """Look soon if anything is wrong, else later."""
        await asyncio.sleep(_LOOK_EACH_S / 10 if self.problem else _LOOK_EACH_S)

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
            await self._greet(link, self._nodes[host][1])

        return KeptLink(self._address, find, pushed=self._pushed, greet=greet)


async def find_servers(address: RedisAddress) -> list[Host]:
    """Return where the masters are now, one at least; StoreUnavailableError if none is."""
    if address.kind == "cluster":
        masters = list(await _masters(address))
        if not masters:
            raise StoreUnavailableError(str(address), "no node has any slots")
        return masters
    if address.kind == "sentinel":
        return [await find_master(address)]
    return [address.hosts[0]]


async def _masters(
    address: RedisAddress, *, also: Iterable[Host] = ()
) -> dict[Host, set[int]]:
    """Ask the nodes, one after the other, who has which tags."""
    problem = "no node answers"
    for host in (*also, *address.hosts):
        try:
            async with asyncio.timeout(CONNECT_S):
                ranges = await _ask_once(
                    address,
                    host,
                    (b"CLUSTER", b"SLOTS"),
                    user=address.user,
                    password=address.password,
                )
        except (OSError, TimeoutError, StoreUnavailableError, RefusedByRedisError) as e:
            problem = f"{host}: {_why(e)}"
            continue
        return _owners(ranges, asked=host)
    raise StoreUnavailableError(str(address), problem)


def _owners(ranges: Answer, *, asked: Host) -> dict[Host, set[int]]:
    """Read CLUSTER SLOTS: which master has which of our tags."""
    slots = [slot_of_tag(name) for name in tag_names()]
    found: dict[Host, set[int]] = {}
    for low, high, master, *_ in ranges:
        # An empty name is that of the node that was asked.
        host = Host((master[0] or b"").decode() or asked.name, int(master[1]))
        tags = {tag for tag, slot in enumerate(slots) if low <= slot <= high}
        if tags:
            found.setdefault(host, set()).update(tags)
    return found


async def begin(
    address: RedisAddress, link: Link, groups: Sequence[Sequence[str]]
) -> Sequence[str]:
    """
    Look at what a server has before it is used: the epochs of its users, new ones if need be.

    An epoch ends when messages may be gone that somebody has seen: then offsets are
    given out twice. That is so when a server that was a replica has become the master
    (it follows the old one with a delay), and when one was started again that does not
    write each command to its disk before it answers (appendfsync always). The server's
    replication id tells: it changes with both, and with nothing else. Who comes first makes
    the new epoch, for all bridges.

    Args:
        address: How to call it in errors.
        link: The new connection.
        groups: The prefixes of its tags; those of a group can be in one script.

    Returns:
        The epoch of each prefix.

    Raises:
        StoreUnavailableError: If it is a replica, or cannot be used now.

    """
    info = parse_info(await ask(address, link, b"INFO", b"replication"))
    if info.get("role") != "master":
        problem = "it is a replica (READONLY)"
        raise StoreUnavailableError(str(address), problem)
    is_promoted = info.get("master_replid2", _NO_LINE) != _NO_LINE
    keeps_all = not is_promoted and await _writes_before_it_answers(address, link)
    words = (secrets.token_hex(5), info["master_replid"], int(keeps_all))
    sent = [
        link.call(b"EVALSHA", scripts.BEGIN.sha, 1, f"{group[0]}h", *words, *group)
        for group in groups
    ]
    answers = [await answer_of(address, link, future) for future in sent]
    return [epoch.decode() for answer in answers for epoch in answer]


async def _writes_before_it_answers(address: RedisAddress, link: Link) -> bool:
    """Say whether each command is on the disk when it is answered; if unknown, no."""
    try:
        answer = await ask(address, link, b"CONFIG", b"GET", b"append*")
    except (RefusedByRedisError, StoreUnavailableError):  # hosted ones do not tell
        return False
    return (answer.get(b"appendonly"), answer.get(b"appendfsync")) == (
        b"yes",
        b"always",
    )


def parse_info(text: bytes) -> dict[str, str]:
    """Read what INFO says."""
    lines = (line.partition(":") for line in text.decode().splitlines())
    return {name: value for name, colon, value in lines if colon}
