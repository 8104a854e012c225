"""
Which server has which users: one for all, or the masters of a cluster (redis_cluster).

A server is found anew each time that a connection is made: Sentinels are asked for the
master of the moment, nodes of a cluster for who has which slots. On each new connection
the epochs of its users are looked at before it is used: see `begin`.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

import structlog

from bridge.core.redis_address import Host, RedisAddress
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis import scripts
from bridge.inbox.redis.connection import (
    CONNECT_S,
    KeptLink,
    RefusedByRedisError,
    answer_of,
    ask,
)
from bridge.inbox.redis.encoding import TAGS, slot_of_tag, tag_names
from bridge.inbox.redis.opening import greeting_lost, open_link
from bridge.inbox.redis.protocol import Answer, Link, Pushed

log = structlog.get_logger(__name__)

Tags = frozenset[int]
Greet = Callable[[Link, Tags], Awaitable[None]]

ALL_TAGS: Final[Tags] = frozenset(range(TAGS))
LOOK_EACH_S: Final = 5.0
_NO_LINE: Final = "0" * 40


class Servers(Protocol):
    """All servers of one store."""

    was_tried: asyncio.Event

    @property
    def problem(self) -> str | None:
        """Why some of them cannot be reached."""

    async def run(self) -> None:
        """Keep connections to all of them, until cancelled."""

    def doubt(self) -> None:
        """Look soon who has what: something speaks for a change."""

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

    def doubt(self) -> None:
        """Do nothing: there is nobody else."""

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
            await asyncio.sleep(LOOK_EACH_S)
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
            async with (
                asyncio.timeout(CONNECT_S / len(address.hosts)),
                visited(address, host, is_sentinel=True) as link,
            ):
                words = (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", address.service)
                found = await ask(address, link, *words)
        except (OSError, TimeoutError, StoreUnavailableError, RefusedByRedisError) as e:
            problem = f"the Sentinel {host}: {why(e)}"
            continue
        if found:
            return Host(found[0].decode(), int(found[1]))
        problem = f"the Sentinel {host} knows no {address.service!r}"
    raise StoreUnavailableError(str(address), problem)


def why(exc: Exception) -> str:
    """Say what went wrong with one of several servers, which is not all that is known."""
    if isinstance(exc, StoreUnavailableError):
        return exc.problem
    return str(exc) or "no answer"


@asynccontextmanager
async def visited(
    address: RedisAddress, host: Host, *, is_sentinel: bool = False
) -> AsyncIterator[Link]:
    """Open a connection for some questions; errors as `ask`, and OSError."""
    user, password = address.user, address.password
    if is_sentinel:
        user, password = address.sentinel_user, address.sentinel_password
    link = await open_link(address, host)
    try:
        if user is not None or password is not None:
            await ask(address, link, b"AUTH", user or "default", password or "")
        yield link
    except StoreUnavailableError as exc:
        problem = greeting_lost(address, exc.problem)
        raise StoreUnavailableError(str(address), problem) from exc
    finally:
        link.abort("it was asked")


async def find_servers(address: RedisAddress) -> dict[Host, set[int]]:
    """
    Return where the masters are now, and which tags each has.

    Raises:
        StoreUnavailableError: If one is missing, or nobody tells.

    """
    if address.kind == "cluster":
        masters = await masters_of(address)
        missing = TAGS - sum(map(len, masters.values()))
        if missing:
            problem = f"{missing} of {TAGS} tags have no master"
            raise StoreUnavailableError(str(address), problem)
        return masters
    is_sentinel = address.kind == "sentinel"
    host = await find_master(address) if is_sentinel else address.hosts[0]
    return {host: set(ALL_TAGS)}


async def masters_of(
    address: RedisAddress, *, also: Iterable[Host] = ()
) -> dict[Host, set[int]]:
    """
    Ask the nodes, one after the other, who has which tags.

    Raises:
        StoreUnavailableError: If none of them answers.

    """
    problem = "no node answers"
    for host in (*also, *address.hosts):
        try:
            async with asyncio.timeout(CONNECT_S), visited(address, host) as link:
                ranges = await ask(address, link, b"CLUSTER", b"SLOTS")
        except (OSError, TimeoutError, StoreUnavailableError, RefusedByRedisError) as e:
            problem = f"{host}: {why(e)}"
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
