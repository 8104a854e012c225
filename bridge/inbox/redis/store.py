"""
Inboxes in Redis or Valkey, shared by many bridges.

scripts/ describes the keys and what happens in one step, encoding.py how a message is
encoded, feed.py the live feed, and servers.py the connections.

Layout: one list of packed messages for each user; an offset is a position in the list.
Measured with 200 bytes of data and ids of 36 bytes, list against stream: 641 and 4,480 bytes
for a user with one message, 341 and 450 bytes a message with ten, 271 and 281 with a
thousand. An append with its publication costs the server 5 and 6-10 us of CPU.

Client: CPU of the bridge on uvloop for a script with 100 messages of 250 bytes, and for one
message of the live feed: redis-py 192 and 7.0 us, coredis 278 and 15.8, valkey-glide 316 and
4.7, hiredis with the protocol class of protocol.py 69 and 0.4. The second figure counts for
each message on each bridge with a window of its user, so it decides.

Costs: CPU for a message of 200 bytes with an id and 1,000 users, measured on an overloaded
machine, so these are upper bounds. The bridge that appends needs 7 us in batches of 100 and
21 in batches of 10, the server 25 (15 without ids), and a bridge that has the user's windows
4 up to its listener. Memory of the server: 640 bytes for a user with one message, about 270
for each further one, and about 110 for each remembered id.

An append that returns is written as the server's `appendfsync` says, and acknowledged by as
many replicas as `?replicas=N` demands. A batch without a reply is retried under the same
number, and a server that has stored it repeats the earlier result: no message is stored twice
or out of order, with or without ids. In a cluster a batch is one step for each hash tag, and
a retry completes the steps that failed. A bridge that resumes with messages of a queue that
another bridge consumes by now is fenced off (append.py).
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final

import structlog

from bridge.clock import SteadyClock
from bridge.core.distribution import install_command
from bridge.core.fencing_token import FencingToken
from bridge.core.identity import Identity
from bridge.core.message import Message, Stored
from bridge.core.receipts import WorkerEvent, fit_events
from bridge.core.redis_address import RedisAddress
from bridge.core.replay import InboxPage, InboxState, count_gone
from bridge.core.revocation import Revocation
from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox.contract import (
    EVENT_BYTES,
    AnnouncedListener,
    DiskUsage,
    EpochListener,
    Retention,
    RevokedListener,
    StoredListener,
)
from bridge.inbox.redis.admin_queries import RedisAdminQueries
from bridge.inbox.redis.append import BatchAppender
from bridge.inbox.redis.background_writes import BackgroundWrites
from bridge.inbox.redis.connection_setup import ConnectionSetup
from bridge.inbox.redis.encoding import key_prefixes, tag_of, unpack
from bridge.inbox.redis.errors import RefusedByRedisError
from bridge.inbox.redis.feed import Feed
from bridge.inbox.redis.presence import RedisPresence
from bridge.inbox.redis.protocol import MISSING, Argument, RedisConnection, Reply
from bridge.inbox.redis.receipts import RedisReceipts
from bridge.inbox.redis.revocations import RedisRevocations
from bridge.inbox.redis.scripts.heads import REASONS
from bridge.inbox.redis.scripts.reading import COUNT_EXPIRED, READ, RETAINED
from bridge.inbox.redis.scripts.script import Script
from bridge.inbox.redis.sweeper import RedisSweeper
from bridge.inbox.redis.timing import DEFAULT_TIMING, RedisTiming
from bridge.inbox.redis.topology import create_servers

log = structlog.get_logger(__name__)


class RedisInbox:
    """All users' inboxes on one server or cluster, which any number of bridges share."""

    def __init__(
        self,
        address: RedisAddress,
        retention: Retention,
        *,
        namespace: str = "bridge",
        clock: SteadyClock | None = None,
        timing: RedisTiming = DEFAULT_TIMING,
    ) -> None:
        """
        Create the store without connecting.

        Args:
            address: The server, Sentinels or cluster.
            retention: How many messages are kept, and for how long.
            namespace: The first part of all names of keys and channels.
            clock: Measures the age of messages.
            timing: Timeouts and intervals.

        """
        self.retention = retention  # a reload of the settings replaces it
        self.description: Final = str(address)
        self.prefixes = key_prefixes(namespace, address.db)
        self._clock = clock or SteadyClock()
        self._timing = timing
        is_cluster = address.kind == "cluster"
        self._revocations = RedisRevocations(
            self.prefixes, self._clock, is_cluster=is_cluster
        )
        self._feed = Feed(
            self.description,
            self.prefixes,
            self._revocations,
            is_cluster=is_cluster,
            subscribe_s=timing.subscribe_s,
        )
        setup = ConnectionSetup(
            address, self.prefixes, self._feed, self._revocations, self._clock
        )
        self._servers = create_servers(address, setup, timing)
        real_s = self._clock.real_s
        self._receipts = RedisReceipts(
            self._servers,
            rules=self._rules,
            real_s=real_s,
            is_cluster=is_cluster,
            gone_s=timing.gone_s,
        )
        self._presence = RedisPresence(
            self._servers,
            self._clock,
            timing,
            on_event=self._receipts.notify,
            is_cluster=is_cluster,
        )
        self._background = BackgroundWrites(
            self._servers, self._receipts, rules=self._rules, real_s=real_s
        )
        self._sweeper = RedisSweeper(
            self._servers, self._clock, store=self.description, is_cluster=is_cluster
        )
        self._appender = BatchAppender(self._servers, is_cluster=is_cluster)
        self.admin = RedisAdminQueries(
            self._servers, arguments=self._read_arguments, state_of=self._state_of
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def trimmed(self) -> int:
        """Messages that were deleted because their inbox was full."""
        return self._appender.trimmed

    @property
    def problem(self) -> str | None:
        """Why messages cannot be stored, as far as is known; ``None`` if they can."""
        if self._task is not None and self._task.done():
            return "its connections are no longer maintained"  # a bug, and logged
        return self._servers.problem or self._appender.problem

    def replace_login(self, address: RedisAddress) -> None:
        """Use the login and the TLS files of `address` for new connections."""
        self._servers.replace_login(address)

    # --- opening and closing

    async def exists(self) -> bool:
        """Return true: the first write creates all keys."""
        return True

    async def open(self) -> None:
        """
        Connect, and reconnect until `close`.

        Raises:
            ConfigError: If the extra `redis` is not installed.
            StoreUnavailableError: If the servers cannot be used now. May be called again.

        """
        if MISSING is not None:
            text = f"BRIDGE_INBOX: {self.description} needs {install_command('redis')}"
            raise ConfigError((text,)) from MISSING
        attempted = self._servers.was_attempted
        attempted.clear()
        if self._task is None:
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._run(), name="inbox redis")
            self._task.add_done_callback(_log_failure)
        if self._servers.problem is not None:
            try:
                async with asyncio.timeout(
                    self._timing.connect_s + self._timing.reply_s
                ):
                    await attempted.wait()
            except TimeoutError as exc:
                problem = "no reply in time"
                raise StoreUnavailableError(self.description, problem) from exc
        if self._servers.problem is not None:
            raise StoreUnavailableError(self.description, self._servers.problem)

    async def close(self) -> None:
        """Write the delivered marks that are left, and close all connections."""
        task, self._task = self._task, None
        if task is None:
            return
        try:
            await self._background.flush()
            await self._receipts.release()
        except StoreUnavailableError as exc:
            # The cost is that clients receive some messages again.
            log.warning("inbox.marks_lost", error=str(exc))
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._servers.run(), name="inbox servers")
            tasks.create_task(self._background.run(), name="inbox background writes")
            tasks.create_task(self._probe_while_refused(), name="inbox probe")

    async def _probe_while_refused(self) -> None:
        """Write to servers that refused a batch until they store again."""
        while True:
            await self._appender.was_refused.wait()
            await asyncio.sleep(self._timing.probe_interval_s)
            try:
                await self.check()
            except StoreUnavailableError:
                continue
            self._appender.clear_problem()

    async def check(self) -> None:
        """
        Write something on each server.

        Raises:
            StoreUnavailableError: If messages cannot be stored now.

        """
        await self._servers.check()

    async def usage(self) -> DiskUsage | None:
        """Return the memory that the servers use, and the rest up to their limits."""
        return await self._servers.memory_usage()

    # --- the live feed

    def subscribe(
        self,
        on_stored: StoredListener,
        on_epoch_changed: EpochListener | None = None,
        on_announced: AnnouncedListener | None = None,
        on_revoked: RevokedListener | None = None,
    ) -> None:
        """Publish what is stored for followed users, their epochs, and revocations."""

        def on_fed(messages: Sequence[Stored]) -> None:
            self._note_received(messages)
            on_stored(messages)

        self._feed.subscribe(on_fed, on_epoch_changed, on_announced)
        self._revocations.index.subscribe(on_revoked)

    async def follow(self, user: str) -> None:
        """
        Include `user` in the feed: messages stored after this returns are published.

        Raises:
            StoreUnavailableError: If the server is away, or does not confirm it.

        """
        await self._feed.follow(user, self._servers.for_tag(tag_of(user)).current())

    def unfollow(self, user: str) -> None:
        """Undo `follow`."""
        connection: RedisConnection | None = None
        with suppress(StoreUnavailableError):  # the tag may have no master now
            connection = self._servers.for_tag(tag_of(user)).connection
        self._feed.unfollow(user, connection)
        self._receipts.users.pop(user, None)

    def _note_received(self, messages: Sequence[Stored]) -> None:
        for stored in messages:
            options = stored.message.options
            if options is not None and options.tracking is not None:
                self._receipts.note_received(stored.message)

    # --- writing

    async def claim(self, queue: str) -> FencingToken:
        """Give out a token for `queue`, larger than all before; errors as `append`."""
        return await self._appender.claim(queue, now_s=self._clock.read().now_s)

    async def append(
        self, messages: Sequence[Message], *, tokens: Sequence[FencingToken] = ()
    ) -> list[int | None]:
        """
        Store `messages` in order, all or none; they are on the server when it returns.

        Without a reply it is unknown whether a batch was stored. A retry must pass the
        same sequence object: it then has the same number, and the server stores it only
        if it has not done so before.

        Returns:
            The offset of each message; ``None`` for a duplicate, whose id its user has
            had within the dedupe window.

        Raises:
            StoreUnavailableError: If the server is away or cannot store it now.
            RefusedByRedisError: If it refuses this batch.
            OwnershipLostError: If something was stored under a larger token than one of
                `tokens`. In a cluster some of the messages may have been stored.

        Cancellation: the messages may or may not have been stored.

        """
        if not messages:
            return []
        # What was delivered before these messages replace it or push it out was delivered.
        await self._background.flush_timed()
        self._receipts.note_appended(messages)
        return await self._appender.append(
            messages,
            tokens=tokens,
            retention=self.retention,
            now=self._clock.read(),
            rules=self._rules(),
        )

    async def announce(self, messages: Sequence[Message]) -> None:
        """
        Publish ephemeral messages by the live feed, without storing them.

        While the server of a user is away, or refuses to publish, they are lost.
        """
        users: dict[str, list[Message]] = {}
        for message in messages:
            users.setdefault(message.user, []).append(message)
        replies = []
        for user, announced in users.items():
            with suppress(StoreUnavailableError):
                connection = self._servers.for_tag(tag_of(user)).current()
                reply = self._feed.announce(user, announced, connection)
                replies.append(connection.result_of(reply))
        # Waiting bounds what a server that does not answer leaves in memory.
        for waiting in replies:
            with suppress(StoreUnavailableError, RefusedByRedisError):
                await waiting

    async def revoke(self, revocation: Revocation) -> None:
        """
        Store a revocation and publish it to all bridges in one step.

        Raises:
            StoreUnavailableError: If the server is away, or too few replicas acknowledge
                it. It may be stored nevertheless.

        """
        server = self._servers.for_tag(tag_of(revocation.user))
        await self._revocations.revoke(server, revocation)

    def is_revoked(self, identity: Identity) -> bool:
        """Return whether a revocation in force covers the token of `identity`."""
        return self._revocations.index.is_revoked(identity, self._clock.read())

    def revocations(self, user: str) -> Sequence[Revocation]:
        """Return the revocations of `user` that are in force."""
        return self._revocations.index.of(user, self._clock.read())

    def all_revocations(self) -> Sequence[Revocation]:
        """Return the revocations of all users that are in force."""
        return self._revocations.index.all(self._clock.read())

    async def sweep(self) -> None:
        """Delete old messages and ids of some users, and store a reading of the clock."""
        with suppress(StoreUnavailableError):  # the next sweep does it
            found = await self._servers.ask_each(self._revocations.read_commands())
            await self._servers.ask_each(self._revocations.drop_over(found))
            await self._background.flush_timed()
            await self._sweeper.sweep(self.retention, self._rules())

    # --- reading

    async def state(self, user: str) -> InboxState:
        """Return where the inbox of `user` begins and ends; errors as `read`."""
        return self._state_of(user, await self._read(READ, user, 0, 0, 0))

    def _state_of(self, user: str, reply: Sequence[Reply]) -> InboxState:
        """Read the state that a reply to the script READ begins with."""
        epoch, first, last, delivered, reason, forgotten, upto, kept, retained = reply[
            :9
        ]
        epoch = epoch.decode()
        self._feed.note_epoch(tag_of(user), epoch)
        mark = self._background.unwritten_mark(user, epoch)
        return InboxState(
            epoch,
            first,
            last,
            min(max(delivered, mark), last),
            REASONS[reason],
            forgotten,
            None if kept < 0 else upto,
            0 if kept < 0 else last - first + 1 - kept,
            retained,
        )

    async def read(
        self, user: str, *, after: int, max_messages: int, max_bytes: int
    ) -> InboxPage:
        """
        Read messages after the offset `after`.

        The page has at least one message if there is any, whatever its size.

        Raises:
            StoreUnavailableError: If the server is away.

        """
        reply = await self._read(READ, user, after, max_messages, max_bytes)
        _, first, last, _, _, forgotten, upto, kept, _, next_after, expired, *rest = (
            reply
        )
        sparse_after = None if kept < 0 else upto
        return InboxPage(
            self._received(user, rest),
            next_after,
            expired=expired,
            gone=count_gone(max(after, forgotten), first, sparse_after),
            last=last,
        )

    async def read_retained(
        self, user: str, *, after: int, upto: int, max_bytes: int
    ) -> Sequence[Stored]:
        """Read the newest message of each retained key; see `InboxReader`."""
        reply = await self._read(RETAINED, user, after, upto, max_bytes)
        return self._received(user, reply)

    def _received(self, user: str, reply: Sequence[Reply]) -> list[Stored]:
        """Return the messages in a reply: for each its offset and element."""
        messages = [
            Stored(unpack(user, reply[index + 1]), reply[index])
            for index in range(0, len(reply), 2)
        ]
        self._note_received(messages)
        return messages

    async def count_expired(self, user: str, *, after: int) -> int:
        """Count messages after `after` that are past their deadline; errors as `read`."""
        return int(await self._read(COUNT_EXPIRED, user, after))

    async def _read(self, script: Script, user: str, *arguments: Argument) -> Reply:
        tag = tag_of(user)
        reply = await self._servers.run_script(
            script, tag, *self._read_arguments(user), *arguments
        )
        if script is READ and not reply[0]:
            # There is no epoch: the server was emptied while it ran. Reconnecting
            # establishes a new one.
            problem = "its data was lost"
            self._servers.for_tag(tag).current().abort(problem)
            raise StoreUnavailableError(self.description, problem)
        return reply

    def _read_arguments(self, user: str) -> tuple[Argument, ...]:
        """Return the first arguments of every script that reads."""
        now = self._clock.read()
        return (
            self.prefixes[tag_of(user)],
            user,
            self.retention.max_messages,
            repr(now.ago(self.retention.max_age_s)),
            repr(now.now_s),
            repr(now.steady_s),
            repr(now.lowest_s),
        )

    # --- receipts

    @property
    def tracked(self) -> Collection[str]:
        """The users with windows here who have receipts whose outcome is open."""
        return self._receipts.users

    def _rules(self) -> tuple[Argument, ...]:
        """Return what decides about receipts; see scripts/receipts.py."""
        now, retention = self._clock.read(), self.retention
        return (
            repr(now.now_s),
            repr(now.steady_s),
            repr(now.lowest_s),
            retention.max_messages,
            repr(now.ago(retention.max_age_s)),
            round(retention.dedupe_s * 1000) + 1,
        )

    def on_events(self, wake: Callable[[], None]) -> None:
        """Call `wake` when there may be an event to publish."""
        self._receipts.on_events(wake)

    async def pending_events(
        self, limit: int, *, max_bytes: int = EVENT_BYTES
    ) -> Sequence[WorkerEvent]:
        """Decide what is due, and return the oldest events; errors as `append`."""
        await self._background.flush_timed()
        events = await self._receipts.pending(
            limit, max_bytes=max_bytes, unwritten_s=self._background.unwritten_s
        )
        return fit_events(events, max_bytes=max_bytes)

    async def confirm_events(self, events: Sequence[WorkerEvent]) -> None:
        """Delete events that were published; errors as `append`."""
        await self._receipts.confirm(events)

    async def add_event(self, event: WorkerEvent) -> None:
        """Add an event; errors as `append`."""
        await self._receipts.add(event)

    async def drop_presence_events(self, limit: int) -> int:
        """Delete the oldest events about presence; errors as `append`."""
        return await self._presence.drop_events(limit)

    async def events_depth(self) -> tuple[int, float | None]:
        """Return the number of events at the last poll, and the age of the oldest."""
        return self._receipts.depth(self._clock.read().now_s)

    async def note_presence(
        self, windows: Mapping[str, int], *, debounce_s: float
    ) -> Callable[[str], bool] | None:
        """Note windows, and decide who is online; see `PresenceStore`."""
        return await self._presence.note(windows, debounce_s=debounce_s)

    # --- background writes

    def mark_delivered(self, user: str, offset: int) -> None:
        """
        Move the delivered mark of `user` forward to `offset`; a smaller one is ignored.

        This bridge uses it at once and writes it within a second: a crash loses the marks
        of up to a second.
        """
        self._background.mark(user, self._feed.epochs[tag_of(user)], offset)

    async def note_trials(self, keys: Sequence[bytes]) -> list[int]:
        """
        Count a trial of each key in one step; return the numbers of trials so far.

        All bridges share the counts.

        Raises:
            StoreUnavailableError: If they cannot be counted now.

        """
        return await self._background.note_trials(keys)

    def forget_trial(self, key: bytes) -> None:
        """Reset the count: the message was settled, or the process survived it."""
        self._background.forget_trial(key)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("inbox.redis_task_failed", exc_info=task.exception())
