"""
Inboxes in Redis or Valkey, shared by many bridges.

What stands where, and what happens in one step, is told in redis_scripts; how a message is
written, in redis_elements; the live feed is redis_feed, connections are redis_link and
redis_servers.

Layout. A list of packed messages for each user; offsets are known by place. Measured with
200 bytes of data and ids of 36, list against stream: 641 and 4,480 bytes for a user with one
message, 341 and 450 a message with ten, 271 and 281 with a thousand; CPU of the server for
an append with its publication 5 and 6-10 us.

Client. CPU of the bridge on uvloop for a script with 100 messages of 250 bytes, and for one
message of the live feed: redis-py 192 and 7.0 us, coredis 278 and 15.8, valkey-glide 316 and
4.7, hiredis under a protocol of our own (redis_wire) 69 and 0.4. The hop is paid for each
message on each bridge with a window of its user, so it decides.

Costs, CPU for a message of 200 bytes with an id, 1,000 users, on a machine that was
loaded ten times over, so as upper bounds: the bridge that appends 7 us in batches of 100 and
21 in batches of 10, the server 25 (15 without ids), a bridge that has the user's windows 4,
up to its listener, one that has not nothing. Memory of the server: 640 bytes for a user with
one message, some 270 for each further one, and about 110 for an id while it is remembered.

Acked means: written as the server's `appendfsync` says, and had by as many replicas as
`?replicas=N` asks for. A batch without an answer is tried again under the same number, and a
server that has stored it says what it said before: nothing is stored twice and nothing
changes places, with ids or without. In a cluster a batch is one step for each hash tag;
where it fails in between, the same repetition completes it. A bridge that wakes up with
messages of a queue that another one has by now is fenced off: see redis_appending.
"""

import asyncio
from collections.abc import Callable, Sequence
from time import time
from typing import Final

import structlog

from bridge.core.fence import Fence
from bridge.core.message import Message, Stored
from bridge.core.redis_address import RedisAddress
from bridge.core.replay import InboxState, Page
from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox.contract import DiskUsage, EpochListener, Retention, StoredListener
from bridge.inbox.redis import scripts
from bridge.inbox.redis.admin_queries import RedisAdminQueries
from bridge.inbox.redis.append import Appending
from bridge.inbox.redis.background_writes import Errands
from bridge.inbox.redis.cluster import Cluster
from bridge.inbox.redis.connection import ANSWER_S, CONNECT_S
from bridge.inbox.redis.encoding import tag_names, tag_of, unpack
from bridge.inbox.redis.feed import Feed
from bridge.inbox.redis.greeting import greet
from bridge.inbox.redis.migration_target import refuse_while_carried
from bridge.inbox.redis.permissions import see_rights
from bridge.inbox.redis.protocol import MISSING, Answer, Link, Word
from bridge.inbox.redis.queries import Asking
from bridge.inbox.redis.servers import OneServer, Servers, Tags

log = structlog.get_logger(__name__)

_PROBE_S: Final = 1.0


class RedisInbox:
    """All users' inboxes on one server or cluster, which any number of bridges share."""

    def __init__(
        self,
        address: RedisAddress,
        retention: Retention,
        *,
        namespace: str = "bridge",
        now: Callable[[], float] = time,
    ) -> None:
        """
        Know where the server is, and touch nothing yet.

        Args:
            address: Of the server.
            retention: How much is kept.
            namespace: What all keys begin with.
            now: Unix time.

        """
        self.retention = retention  # may be replaced while running
        self.description: Final = str(address)
        self._address = address
        self._now = now
        # Databases keep keys apart, but not channels.
        self.prefixes = [
            f"{namespace}/{address.db}:{{{name}}}:" for name in tag_names()
        ]
        self._servers: Servers
        self._feed = Feed(
            self.description,
            self._channel,
            is_sharded=address.kind == "cluster",
            doubt=self._doubt,
        )
        pushed, greeted = self._feed.pushed, self._greet
        self._servers = (
            Cluster(address, pushed=pushed, greet=greeted, admit=self._admit)
            if address.kind == "cluster"
            else OneServer(address, pushed=pushed, greet=greeted)
        )
        self._asking = Asking(address, self._servers, self.prefixes)
        self._errands = Errands(self._servers, self.prefixes.__getitem__)
        self._appending = Appending(address, self._servers, self.prefixes)
        self.admin = RedisAdminQueries(self, self._asking)
        self._upkeep: asyncio.Task[None] | None = None

    def _doubt(self) -> None:
        self._servers.doubt()

    def _channel(self, user: str) -> bytes:
        return f"{self.prefixes[tag_of(user)]}c:{user}".encode()

    @property
    def problem(self) -> str | None:
        """What keeps the store from being written, as far as is known."""
        if self._upkeep is not None and self._upkeep.done():
            return "its connections are not kept any more"  # a bug, and logged
        return self._servers.problem or self._appending.problem

    # --- opening and closing

    async def exists(self) -> bool:
        """Return true: a server needs no preparation."""
        return True

    async def open(self) -> None:
        """
        Connect, and stay connected until `close`.

        Raises:
            ConfigError: If the extra `redis` is not installed.
            StoreUnavailableError: If the server cannot be had now. May be called again.

        """
        if MISSING is not None:
            text = f"BRIDGE_INBOX: {self.description} needs pip install 'bridge[redis]'"
            raise ConfigError((text,)) from MISSING
        tried = self._servers.was_tried
        tried.clear()
        if self._upkeep is None:
            loop = asyncio.get_running_loop()
            self._upkeep = loop.create_task(self._keep_up(), name="inbox upkeep")
            self._upkeep.add_done_callback(_tell_end)
        if self._servers.problem is not None:
            try:
                async with asyncio.timeout(CONNECT_S + ANSWER_S):
                    await tried.wait()
            except TimeoutError as exc:
                problem = "it did not answer"
                raise StoreUnavailableError(self.description, problem) from exc
        if self._servers.problem is not None:
            raise StoreUnavailableError(self.description, self._servers.problem)

    async def close(self) -> None:
        """Write what is left to write, and hang up."""
        upkeep, self._upkeep = self._upkeep, None
        if upkeep is None:
            return
        try:
            await self._errands.finish()
        except StoreUnavailableError as exc:  # then some messages are repeated
            log.warning("inbox.marks_lost", error=str(exc))
        finally:
            upkeep.cancel()
            await asyncio.wait({upkeep})

    async def _keep_up(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._servers.run(), name="inbox servers")
            tasks.create_task(self._errands.run(), name="inbox errands")
            tasks.create_task(self._probe_while_refused(), name="inbox probe")

    async def _probe_while_refused(self) -> None:
        """Find out when a server that stores nothing does it again."""
        while True:
            await self._appending.is_refused.wait()
            await asyncio.sleep(_PROBE_S)
            try:
                await self.check()
            except StoreUnavailableError:
                continue
            self._appending.is_mended()

    async def _greet(self, link: Link, tags: Tags) -> None:
        """Begin on a new connection: rights, epochs, and all subscriptions anew."""
        self._feed.lost(tags)
        order = sorted(tags)
        await see_rights(self._address, link, self.prefixes[order[0]])
        if 0 in tags:
            await self._admit(link)
        await greet(self._address, link, order, self.prefixes, self._feed)

    async def _admit(self, link: Link) -> None:
        await refuse_while_carried(self._address, link, self.prefixes[0])

    async def check(self) -> None:
        """
        Write something on each server.

        Raises:
            StoreUnavailableError: If nothing can be stored now.

        """
        await self._asking.check()

    async def usage(self) -> DiskUsage | None:
        """Return the memory that the servers take, and what their limits leave."""
        return await self._asking.usage()

    # --- the live feed

    def subscribe(
        self,
        on_stored: StoredListener,
        on_epoch_changed: EpochListener | None = None,
    ) -> None:
        """Publish what is stored for followed users, and changes of their epochs."""
        self._feed.subscribe(on_stored, on_epoch_changed)

    async def follow(self, user: str) -> None:
        """
        Let the listener hear of `user`. What is stored after this returns, it hears.

        Raises:
            StoreUnavailableError: If the server is away, or does not confirm it.

        """
        await self._feed.follow(user, self._servers.of(tag_of(user)).current())

    def unfollow(self, user: str) -> None:
        """Let the listener hear of `user` no more."""
        self._feed.unfollow(user, self._link_of(user))

    def _link_of(self, user: str) -> Link | None:
        try:
            return self._servers.of(tag_of(user)).link
        except StoreUnavailableError:
            return None

    # --- writing

    async def claim(self, queue: str) -> Fence:
        """Give out a token for `queue`, larger than all before; errors as `append`."""
        return await self._appending.claim(queue, now_s=self._now())

    async def append(
        self, messages: Sequence[Message], *, fences: Sequence[Fence] = ()
    ) -> list[int | None]:
        """
        Store `messages` in order, all or none; on the server when it returns.

        Whether a batch that got no answer was stored, nobody knows. Called again with the
        same sequence it has the same number, and the server stores it only if it has not.

        Returns:
            The offset of each; ``None`` for one whose id its user has had within the
            dedupe window.

        Raises:
            StoreUnavailableError: If the server is away or cannot store it now.
            RefusedByRedisError: If it refuses this batch.
            OwnershipLostError: If something was stored under a larger token than one of
                `fences`. In a cluster some of the messages may have been stored.

        Cancellation: the messages may or may not have been stored.

        """
        if not messages:
            return []
        return await self._appending.append(
            messages, fences=fences, retention=self.retention, now_s=self._now()
        )

    async def sweep(self) -> None:
        """
        Do nothing: what is too old goes with the next append, or its key expires.

        Readers go by the rules of the moment, whatever is still there.
        """

    # --- reading

    async def state(self, user: str) -> InboxState:
        """Return where the inbox of `user` begins and ends; errors as `read`."""
        return self.state_of(user, await self._read(scripts.READ, user, 0, 0, 0))

    def state_of(self, user: str, found: Sequence[Answer]) -> InboxState:
        """Read the state from the beginning of what the script READ has found."""
        epoch, first, last, delivered, reason = found[:5]
        epoch = epoch.decode()
        self._feed.note_epoch(tag_of(user), epoch)
        mark = self._errands.unwritten_mark(user, epoch)
        return InboxState(
            epoch,
            first,
            last,
            min(max(delivered, mark), last),
            scripts.REASONS[reason],
        )

    async def read(
        self, user: str, *, after: int, max_messages: int, max_bytes: int
    ) -> Page:
        """
        Read on behind the offset `after`.

        At least one message comes if there is any, however large it is.

        Raises:
            StoreUnavailableError: If the server is away.

        """
        found = await self._read(scripts.READ, user, after, max_messages, max_bytes)
        _, first, last, _, _, next_after, expired, *rest = found
        messages = [
            Stored(unpack(user, rest[place + 1]), rest[place])
            for place in range(0, len(rest), 2)
        ]
        return Page(
            messages,
            next_after,
            expired=expired,
            gone=max(0, first - 1 - after),
            last=last,
        )

    async def count_expired(self, user: str, *, after: int) -> int:
        """Count what is past its deadline behind the offset `after`; errors as `read`."""
        return int(await self._read(scripts.COUNT_EXPIRED, user, after))

    async def _read(self, script: scripts.Script, user: str, *words: Word) -> Answer:
        tag = tag_of(user)
        found = await self._asking.run(script, tag, *self.reading_words(user), *words)
        if script is scripts.READ and not found[0]:
            # Somebody emptied it while it ran: begin as on a new connection.
            problem = "its data are gone"
            self._servers.of(tag).current().abort(problem)
            raise StoreUnavailableError(self.description, problem)
        return found

    def reading_words(self, user: str) -> tuple[Word, ...]:
        """Return what every script that reads is told first."""
        now_s = self._now()
        return (
            self.prefixes[tag_of(user)],
            user,
            self.retention.max_messages,
            repr(now_s - self.retention.max_age_s),
            repr(now_s),
        )

    # --- errands

    def mark_delivered(self, user: str, offset: int) -> None:
        """
        Move the delivered mark of `user` forward to `offset`; backwards is ignored.

        It counts here at once and is written a little later: a crash takes up to a
        second of marks back.
        """
        self._errands.mark(user, self._feed.epochs[tag_of(user)], offset)

    async def note_trial(self, key: bytes) -> int:
        """
        Note that the message with this key is in hand alone; returns which trial this is.

        Any bridge that gets the message counts on.

        Raises:
            StoreUnavailableError: If it cannot be noted now.

        """
        return await self._errands.note_trial(key)

    def forget_trial(self, key: bytes) -> None:
        """Forget it: the message was settled, or the process lives."""
        self._errands.forget_trial(key)


def _tell_end(upkeep: asyncio.Task[None]) -> None:
    if not upkeep.cancelled() and upkeep.exception() is not None:
        log.error("inbox.upkeep_failed", exc_info=upkeep.exception())
