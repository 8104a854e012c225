"""
Appending batches, so that a repeated batch is not stored twice.

A batch has a number, and keeps it when it is retried. The result of a bridge's last batch is
stored beside the messages, in the same step (see scripts/append.py). On a single server a
batch is one call. In a cluster it is one call for each hash tag, all sent at once. Calls may
fail separately; repeating the batch completes the missing ones.

Each call carries the fencing tokens of the queues that its batch is from (fencing.py says
why). In one step with its messages, a call stores the largest token seen so far; a call with
a smaller token stores nothing. If a failover loses the last messages, it loses their tokens
with them and accepts the next token that comes: no stored message is left that a late call
could follow. In a cluster the token given out last can be lost alone, because another server
may hold it. Therefore tokens are times in microseconds, or one more than the last token if
clocks disagree; and a bridge that was refused claims a token above the one that refused it,
so it is never refused twice for the same reason.
"""

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Final

from bridge.core.clock_reading import ClockReading
from bridge.core.fencing_token import FencingToken
from bridge.core.message import Message
from bridge.errors import OwnershipLostError, StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.redis.connection import PersistentConnection
from bridge.inbox.redis.encoding import pack, pack_key, tag_of
from bridge.inbox.redis.errors import RefusedByRedisError
from bridge.inbox.redis.protocol import Argument, RedisConnection, Reply
from bridge.inbox.redis.receipts import pack_receipt
from bridge.inbox.redis.scripts.append import APPEND
from bridge.inbox.redis.scripts.upkeep import CLAIM
from bridge.inbox.redis.servers import RedisServers

_MICROSECONDS: Final = 1_000_000
# Of the keys of a user that the script uses (scripts/__init__.py).
_KINDS: Final = ("m", "i", "s", "k", "v", "w", "o0", "o1", "o2")
_OPTIONS: Final = attrgetter("options")


class BatchAppender:
    """
    The batches of one bridge, one after the other.

    Attributes:
        problem: Why a reachable server refuses to store; ``None`` if it does not.
        was_refused: Set while there is such a problem.
        trimmed: Messages that were deleted because their inbox was full.

    """

    def __init__(self, servers: RedisServers, *, is_cluster: bool) -> None:
        self._servers = servers
        self._prefixes = servers.prefixes
        self._is_cluster = is_cluster
        self._session = secrets.token_hex(6)
        self._number = 0
        self._unsettled: Sequence[Message] | None = None
        self._largest_refusal = 0  # the largest token that refused one of ours
        self.problem: str | None = None
        self.was_refused = asyncio.Event()
        self.trimmed = 0

    def clear_problem(self) -> None:
        """Note that the servers store messages again."""
        self.problem = None
        self.was_refused.clear()

    async def claim(self, queue: str, *, now_s: float) -> FencingToken:
        """Give out a token; see `RedisInbox.claim`."""
        least = max(int(now_s * _MICROSECONDS), self._largest_refusal + 1)
        token = await self._servers.run_script(
            CLAIM, 0, self._prefixes[0], queue, least
        )
        return FencingToken(queue, int(token))

    async def append(
        self,
        messages: Sequence[Message],
        *,
        tokens: Sequence[FencingToken],
        retention: Retention,
        now: ClockReading,
        rules: Sequence[Argument],
    ) -> list[int | None]:
        """Store `messages`; see `RedisInbox.append`."""
        # A retry is recognized by the identity of the sequence.
        if self._unsettled is not messages:
            self._unsettled = messages
            self._number += 1
        groups: dict[int, dict[str, list[int]]] = {}
        for index, message in enumerate(messages):
            tag = tag_of(message.user)
            users = groups.setdefault(tag if self._is_cluster else 0, {})
            users.setdefault(message.user, []).append(index)
        head: tuple[Argument, ...] = (
            repr(now.now_s),
            retention.max_messages,
            repr(now.ago(retention.max_age_s)),
            repr(now.ago(retention.dedupe_s)),
            secrets.token_hex(5),
            self._session,
            self._number,
            b"SPUBLISH" if self._is_cluster else b"PUBLISH",
            retention.max_retained,
        )
        arguments: list[Argument] = [each for token in tokens for each in token]
        arguments += rules
        calls = [
            self._send(
                (*head, self._prefixes[tag], len(tokens), *arguments), messages, users
            )
            for tag, users in groups.items()
        ]
        offsets: list[int | None] = [None] * len(messages)
        trimmed = 0
        failure: Exception | None = None
        # Every call is awaited, failed or not: none may still be running when the caller
        # retries.
        for users, call in zip(groups.values(), calls, strict=True):
            try:
                result = await self._result(*call)
            except (
                OwnershipLostError,
                StoreUnavailableError,
                RefusedByRedisError,
            ) as exc:
                failure = failure or exc
                continue
            order = (index for indexes in users.values() for index in indexes)
            count, *words = result.split()
            trimmed += int(count)
            for index, word in zip(order, words, strict=True):
                offsets[index] = int(word) or None
        if failure is not None:
            raise failure
        if self.problem is not None:
            self.clear_problem()
        self._unsettled = None
        # A repeated batch gets the same counts again, so only one that succeeds is counted.
        self.trimmed += trimmed
        return offsets

    def _send(
        self,
        head: Sequence[Argument],
        messages: Sequence[Message],
        users: dict[str, list[int]],
    ) -> tuple[PersistentConnection, RedisConnection, list["asyncio.Future[Reply]"]]:
        """Send one call, followed by the command that counts its replicas."""
        has_options = any(map(_OPTIONS, messages))
        order = [index for indexes in users.values() for index in indexes]
        arguments: list[Argument] = [0]
        if has_options:
            arguments = self._receipt_arguments(messages, order)
        for user, indexes in users.items():
            prefix = self._prefixes[tag_of(user)]
            if has_options and any(pack_key(messages[index]) for index in indexes):
                arguments += (prefix, user, -len(indexes))
                for index in indexes:
                    message = messages[index]
                    arguments += (message.id or b"", pack_key(message), pack(message))
                continue
            arguments += (prefix, user, len(indexes))
            for index in indexes:
                message = messages[index]
                arguments += (message.id or b"", pack(message))
        tag = tag_of(next(iter(users)))
        server = self._servers.for_tag(tag)
        connection = server.current()
        keys = self._keys(self._prefixes[tag], users)
        sha = APPEND.sha
        pending = [
            connection.call(b"EVALSHA", sha, len(keys), *keys, *head, *arguments)
        ]
        pending += (connection.call(*command) for command in server.replica_commands())
        return server, connection, pending

    def _receipt_arguments(
        self, messages: Sequence[Message], order: Sequence[int]
    ) -> list[Argument]:
        """Return the number of receipts, then for each its place in `order`, and itself."""
        receipts: list[Argument] = []
        for place, index in enumerate(order, 1):
            options = messages[index].options
            if options is not None and options.tracking is not None:
                id_ = f"{self._session}-{self._number}-{index}"  # if repeated, too
                packed = pack_receipt(messages[index], options.tracking, id_)
                receipts += (place, packed)
        return [len(receipts) // 2, *receipts]

    def _keys(self, prefix: str, users: Iterable[str]) -> list[str]:
        """
        Return the keys that a call names.

        A single server needs none. A node of a cluster needs all: while a slot moves, some
        keys are already on the other node, and the script would stop halfway.
        """
        keys = [f"{prefix}h"]
        if self._is_cluster:
            keys += (f"{prefix}u", f"{prefix}b:{self._session}")
            keys += (f"{prefix}{kind}:{user}" for user in users for kind in _KINDS)
            keys += (f"{prefix}e", f"{prefix}d")
        return keys

    async def _result(
        self,
        server: PersistentConnection,
        connection: RedisConnection,
        pending: Sequence["asyncio.Future[Reply]"],
    ) -> bytes:
        try:
            replies = [await connection.result_of(future) for future in pending]
            result, *failure = replies[0]
            if len(failure) == 3:
                _, queue, token = failure
                self._largest_refusal = max(self._largest_refusal, int(token))
                raise OwnershipLostError(queue.decode())
            if failure:
                problem = failure[0].decode()
                self._note_refusal(server, problem)
                raise connection.error_of(problem)
            server.check_replicas(replies[1:])
        except StoreUnavailableError as exc:
            self._note_refusal(server, exc.problem)
            raise
        stored: bytes = result
        return stored

    def _note_refusal(self, server: PersistentConnection, problem: str) -> None:
        # Without a connection, the problem of the servers already says why.
        if server.problem is None:
            self.problem = problem
            self.was_refused.set()
