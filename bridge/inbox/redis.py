"""
Inboxes in Redis or Valkey, shared by many bridges.

WIP
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from time import time
from typing import Any, Final

import structlog

from bridge.core.message import Message, Stored
from bridge.core.redis_address import Host, RedisAddress
from bridge.core.replay import InboxState, Page
from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox import redis_scripts as scripts
from bridge.inbox.disk import DiskUsage
from bridge.inbox.memory import Listener, Renewed, Retention
from bridge.inbox.redis_elements import pack, tag_names, tag_of, unpack
from bridge.inbox.redis_feed import Feed, pieces, words_for
from bridge.inbox.redis_link import (
    ANSWER_S,
    CONNECT_S,
    KeptLink,
    RefusedByRedisError,
    ask,
    failure_of,
)
from bridge.inbox.redis_looking import RedisLooking
from bridge.inbox.redis_wire import MISSING, Answer, Link, Word
from bridge.names import SyncReason

log = structlog.get_logger(__name__)

# Marks are written so long after the first of them, all that came meanwhile together.
_MARKS_S: Final = 0.5
_ERRANDS_AGAIN_S: Final = 1.0
_TRIAL_MS: Final = 7 * 86_400_000
REASONS: Final = {
    0: None,
    scripts.LIMIT: SyncReason.LIMIT,
    scripts.EXPIRED: SyncReason.EXPIRED,
}


class RedisInbox:
    """All users' inboxes on one server, which any number of bridges share."""

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
        self._keys = [f"{prefix}h" for prefix in self.prefixes]
        self._feed = Feed(self.description, self._channel, is_sharded=False)
        self._kept = KeptLink(
            address, self._find, pushed=self._feed.pushed, greet=self._greet
        )
        self.looking = RedisLooking(self)
        self._upkeep: asyncio.Task[None] | None = None
        self._session = secrets.token_hex(6)
        self._batch: tuple[Sequence[Message], int] = ((), 0)
        self._batches = 0
        self._marks: dict[tuple[str, str], int] = {}
        self._marks_on_their_way: dict[tuple[str, str], int] = {}
        self._forgotten: set[bytes] = set()
        self._has_errands = asyncio.Event()
        self._is_urgent = asyncio.Event()
        self._refusal: str | None = None

    def _channel(self, user: str) -> bytes:
        return f"{self.prefixes[tag_of(user)]}c:{user}".encode()

    def prefix(self, user: str) -> str:
        """Return what the keys of `user` begin with."""
        return self.prefixes[tag_of(user)]

    @property
    def problem(self) -> str | None:
        """What keeps the store from being written, as far as is known."""
        return self._kept.problem or self._refusal

    # --- opening and closing

    async def look(self) -> bool:
        """Say that it is there: a server has nothing that would have to be made first."""
        return True

    async def open(self) -> None:
        """
        Connect, and stay connected until `close`.

        Raises:
            ConfigError: If the extra `redis` is not installed.
            StoreUnavailableError: If the server cannot be had now. May be called again.

        """
        if MISSING is not None:
            problem = (
                f"BRIDGE_INBOX: {self.description} needs pip install 'bridge[redis]'"
            )
            raise ConfigError((problem,)) from MISSING
        if self._upkeep is None:
            self._kept.was_tried.clear()
            loop = asyncio.get_running_loop()
            self._upkeep = loop.create_task(self._keep_up(), name="inbox upkeep")
        try:
            async with asyncio.timeout(CONNECT_S + ANSWER_S):
                await self._kept.was_tried.wait()
        except TimeoutError as exc:
            raise StoreUnavailableError(self.description, "it did not answer") from exc
        self._kept.was_tried.clear()
        if self._kept.link is None:
            problem = self._kept.problem or "it is not connected"
            self._kept.was_tried.clear()
            raise StoreUnavailableError(self.description, problem)

    async def close(self) -> None:
        """Write what is left to write, and hang up."""
        upkeep, self._upkeep = self._upkeep, None
        if upkeep is None:
            return
        try:
            if self._kept.link is not None:
                await self._run_errands()
        except StoreUnavailableError:  # then some messages are repeated
            log.warning("inbox.marks_lost", store=self.description)
        finally:
            upkeep.cancel()
            await asyncio.wait({upkeep})

    async def _keep_up(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._kept.run(), name="inbox link")
            tasks.create_task(self._keep_on_errands(), name="inbox errands")

    async def _find(self) -> Host:
        return self._address.hosts[0]

    async def _greet(self, link: Link) -> None:
        """Begin on a new connection: the epochs, and all subscriptions anew."""
        self._feed.lost()
        epochs = await self._run_on(
            link, scripts.BEGIN, self._keys[0], secrets.token_hex(5), *self.prefixes
        )
        subscriptions = self._feed.resubscribe(link)
        for tag, epoch in enumerate(epochs):
            self._feed.note_epoch(tag, epoch.decode())
        for piece in pieces(subscriptions):
            words = words_for(piece, self.prefixes)
            answer = await self._run_on(
                link, scripts.NEWEST, self._keys[piece[0].tag], *words
            )
            self._feed.newest(piece, answer)

    async def _run_on(
        self, link: Link, script: scripts.Script, key: str, *words: Word
    ) -> Answer:
        return await ask(self._address, link, b"EVALSHA", script.sha, b"1", key, *words)

    async def run(self, script: scripts.Script, tag: int, *words: Word) -> Answer:
        """Run a script where the keys of this tag are; errors as `read`."""
        return await self._kept.run_script(script, *words, key=self._keys[tag])

    async def ask_each(
        self, asked: Sequence[tuple[int, Sequence[Word]]]
    ) -> list[Answer]:
        """Send many commands at once, each to where its tag is; errors as `read`."""
        return await self._kept.ask_all([words for _, words in asked])

    async def check(self) -> None:
        """
        Write something.

        Raises:
            StoreUnavailableError: If nothing can be stored now.

        """
        await self._kept.ask(b"SET", f"{self.prefixes[0]}probe", b"", b"PX", b"1000")

    async def usage(self) -> DiskUsage | None:
        """Return the memory that the server takes and has left, if it has a limit."""
        info = parse_info(await self._kept.ask(b"INFO", b"memory"))
        used, limit = int(info["used_memory"]), int(info["maxmemory"])
        limit = limit or int(info["total_system_memory"])
        return DiskUsage(used, max(0, limit - used))

    # --- the live feed

    def listen(self, listener: Listener, renewed: Renewed | None = None) -> None:
        """
        Call `listener` with what was stored for followed users, in order, after it is.

        The call is made in the event loop and must not block; there is one listener.
        `renewed` is called with users whose epoch has changed, before anything of the
        new one comes: the windows that they have are of a life that is over.
        """
        self._feed.listen(listener, renewed)

    async def follow(self, user: str) -> None:
        """
        Let the listener hear of `user`. What is stored after this returns, it hears.

        Raises:
            StoreUnavailableError: If the server is away, or does not confirm it.

        """
        link = self._kept.link
        if link is None:
            problem = self.problem or "it is not connected"
            raise StoreUnavailableError(self.description, problem)
        await self._feed.follow(user, link)

    def unfollow(self, user: str) -> None:
        """Let the listener hear of `user` no more."""
        self._feed.unfollow(user, self._kept.link)

    # --- writing

    async def append(self, messages: Sequence[Message]) -> list[int | None]:
        """
        Store `messages` in order, all or none; on the server when it returns.

        Whether a batch that got no answer was stored, nobody knows. Called again with the
        same sequence it has the same number, and the server stores it only if it has not.

        Returns:
            The offset of each; ``None`` for one whose id its user has had within the
            dedupe window.

        Raises:
            StoreUnavailableError: If the server is away or cannot store it now.
            RefusedByRedisError: If it refuses this batch; nothing was stored.

        Cancellation: the messages may or may not have been stored.

        """
        if not messages:
            return []
        if self._batch[0] is not messages:
            self._batches += 1
            self._batch = (messages, self._batches)
        by_user: dict[str, list[int]] = {}
        for place, message in enumerate(messages):
            by_user.setdefault(message.user, []).append(place)
        words: list[Word] = []
        for user, places in by_user.items():
            words += (self.prefix(user), user, len(places))
            for place in places:
                message = messages[place]
                words += (message.id or b"", pack(message))
        retention = self.retention
        (result, *failure) = await self._kept.run_script(
            scripts.APPEND,
            repr(self._now()),
            retention.max_messages,
            repr(retention.max_age_s),
            repr(retention.dedupe_s),
            secrets.token_hex(5),
            self._session,
            self._batch[1],
            b"PUBLISH",
            *words,
            key=self._keys[tag_of(messages[0].user)],
        )
        if failure:
            error = failure_of(self._address, failure[0].decode(), self._kept.link)
            self._refusal = str(error)
            raise error
        self._refusal = None
        self._batch = ((), 0)
        offsets: list[int | None] = [None] * len(messages)
        order = (place for places in by_user.values() for place in places)
        for place, word in zip(order, result.split(), strict=True):
            offsets[place] = int(word) or None
        return offsets

    async def sweep(self) -> None:
        """
        Do nothing: what is too old goes with the next append, or its key expires.

        Readers go by the rules of the moment, whatever is still there.
        """

    # --- reading

    async def state(self, user: str) -> InboxState:
        """Return where the inbox of `user` begins and ends; errors as `read`."""
        found = await self._ask_reader(scripts.READ, user, 0, 0, 0)
        return self.state_of(user, found)

    def state_of(self, user: str, found: Sequence[Any]) -> InboxState:
        """Read the state from the answer of the script READ."""
        epoch, first, last, delivered, reason = found[:5]
        epoch = epoch.decode()
        self._feed.note_epoch(tag_of(user), epoch)
        return InboxState(
            epoch,
            first,
            last,
            min(max(delivered, self.unwritten_mark(user, epoch)), last),
            REASONS[reason],
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
        found = await self._ask_reader(
            scripts.READ, user, after, max_messages, max_bytes
        )
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
        return int(await self._ask_reader(scripts.COUNT_EXPIRED, user, after))

    async def _ask_reader(
        self, script: scripts.Script, user: str, *words: Word
    ) -> Answer:
        tag = tag_of(user)
        found = await self.run(script, tag, *self.reading_words(user), *words)
        if script is scripts.READ and not found[0]:
            # Its data are gone: whoever comes first begins anew.
            epoch = secrets.token_hex(5)
            (found[0],) = await self.run(scripts.BEGIN, tag, epoch, self.prefixes[tag])
        return found

    def reading_words(self, user: str) -> tuple[Word, ...]:
        """Return what every script that reads is told first."""
        now_s = self._now()
        retention = self.retention
        oldest_s = now_s - retention.max_age_s
        return (
            self.prefix(user),
            user,
            retention.max_messages,
            repr(oldest_s),
            repr(now_s),
        )

    # --- errands: what is written without anybody waiting for it

    def mark_delivered(self, user: str, offset: int) -> None:
        """
        Move the delivered mark of `user` forward to `offset`; backwards is ignored.

        It counts here at once and is written a little later: a crash takes up to a
        second of marks back.
        """
        epoch = self._feed.epochs[tag_of(user)]
        if offset > self.unwritten_mark(user, epoch):
            self._marks[user, epoch] = offset
            self._has_errands.set()

    def unwritten_mark(self, user: str, epoch: str) -> int:
        """Return the mark of `user` as far as it is not in the store yet; else 0."""
        key = (user, epoch)
        return max(self._marks.get(key, 0), self._marks_on_their_way.get(key, 0))

    async def note_trial(self, key: bytes) -> int:
        """
        Note that the message with this key is in hand alone; returns which trial this is.

        Any bridge that gets the message counts on.

        Raises:
            StoreUnavailableError: If it cannot be noted now.

        """
        name = self._trial(key)
        if key in self._forgotten:
            self._forgotten.discard(key)
            await self._kept.ask(b"DEL", name)
        count = int(await self._kept.ask(b"INCR", name))
        await self._kept.ask(b"PEXPIRE", name, _TRIAL_MS)
        return count

    def forget_trial(self, key: bytes) -> None:
        """Forget it: the message was settled, or the process lives."""
        self._forgotten.add(key)
        self._is_urgent.set()
        self._has_errands.set()

    def _trial(self, key: bytes) -> bytes:
        return f"{self.prefixes[0]}t:".encode() + key

    async def _keep_on_errands(self) -> None:
        while True:
            await self._has_errands.wait()
            try:
                async with asyncio.timeout(_MARKS_S):
                    await self._is_urgent.wait()
            except TimeoutError:
                pass
            try:
                await self._run_errands()
            except StoreUnavailableError:
                await asyncio.sleep(_ERRANDS_AGAIN_S)
            except RefusedByRedisError:  # some messages will be repeated for it
                log.exception("inbox.errands_failed")
                await asyncio.sleep(_ERRANDS_AGAIN_S)

    async def _run_errands(self) -> None:
        """Write marks, forget trials; what fails is tried again with the next ones."""
        self._has_errands.clear()
        self._is_urgent.clear()
        marks, self._marks = self._marks, {}
        forgotten, self._forgotten = self._forgotten, set()
        self._marks_on_their_way = marks
        try:
            if forgotten:
                await self._kept.ask(b"DEL", *map(self._trial, forgotten))
            if marks:
                words: list[Word] = []
                for (user, epoch), offset in marks.items():
                    words += (self.prefix(user), user, epoch, offset)
                await self._kept.run_script(scripts.MARK, *words, key=self._keys[0])
        except BaseException:
            self._marks = marks | self._marks
            self._forgotten |= forgotten
            self._has_errands.set()
            raise
        finally:
            self._marks_on_their_way = {}


def parse_info(text: bytes) -> dict[str, str]:
    """Read what INFO says."""
    lines = (line.partition(":") for line in text.decode().splitlines())
    return {name: value for name, colon, value in lines if colon}
