"""
Appending to inboxes in Redis: batches that may be repeated without being stored twice.

A batch has a number, and keeps it when it is tried again; what came of the last one of this
bridge stands beside the messages, written in the same step (see APPEND in redis_scripts).
On one server a batch is one call. In a cluster it is one for each hash tag in it, sent all
at once; they may fail one by one, and repeating the batch does those that are missing.

Each call brings the tokens of the queues that its batch is from (why: see bridge.fencing).
Beside the messages stands the largest token that a call has brought, written in one step
with its messages; a call with a smaller one stores nothing. A server that lost some of the
last messages when it became the master, or all, has lost their tokens with them, and takes
the next one that comes: nothing stands there any more that a late call could come behind.
The last token that was given out may be lost alone, where a cluster has it on another
server. So tokens are times, in microseconds, or one more than the last if clocks disagree;
and whoever is refused claims more than what it was refused for: nobody is kept out twice.
"""

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from typing import Final

from bridge.core.fence import Fence
from bridge.core.message import Message
from bridge.core.redis_address import RedisAddress
from bridge.errors import OwnershipLostError, StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.redis import scripts
from bridge.inbox.redis.connection import (
    KeptLink,
    RefusedByRedisError,
    failure_of,
    see_replicas,
    waits,
)
from bridge.inbox.redis.encoding import pack, tag_of
from bridge.inbox.redis.protocol import Answer, Word
from bridge.inbox.redis.servers import Servers

_MICROSECONDS: Final = 1_000_000


class Appending:
    """
    One bridge's batches, one at a time.

    Attributes:
        problem: Why a server that can be reached stores nothing.
        is_refused: Whether there is such a problem.

    """

    def __init__(
        self, address: RedisAddress, servers: Servers, prefixes: Sequence[str]
    ) -> None:
        self._address = address
        self._servers = servers
        self._prefixes = prefixes
        self._is_cluster = address.kind == "cluster"
        self._session = secrets.token_hex(6)
        self._number = 0
        self._unsettled: Sequence[Message] | None = None
        self._passed_by = 0  # the largest token that something was refused for
        self.problem: str | None = None
        self.is_refused = asyncio.Event()

    def is_mended(self) -> None:
        """Know that the problem is over."""
        self.problem = None
        self.is_refused.clear()

    async def claim(self, queue: str, *, now_s: float) -> Fence:
        """Give out a token; see `RedisInbox.claim`."""
        least = max(int(now_s * _MICROSECONDS), self._passed_by + 1)
        prefix = self._prefixes[0]
        token = await self._servers.of(0).run_script(
            scripts.CLAIM, prefix, queue, least, key=f"{prefix}h"
        )
        return Fence(queue, int(token))

    async def append(
        self,
        messages: Sequence[Message],
        *,
        fences: Sequence[Fence],
        retention: Retention,
        now_s: float,
    ) -> list[int | None]:
        """Store `messages`; see `RedisInbox.append`."""
        if self._unsettled is not messages:
            self._unsettled = messages
            self._number += 1
        groups: dict[int, dict[str, list[int]]] = {}
        for place, message in enumerate(messages):
            tag = tag_of(message.user)
            users = groups.setdefault(tag if self._is_cluster else 0, {})
            users.setdefault(message.user, []).append(place)
        head: tuple[Word, ...] = (
            repr(now_s),
            retention.max_messages,
            repr(retention.max_age_s),
            repr(retention.dedupe_s),
            secrets.token_hex(5),
            self._session,
            self._number,
            b"SPUBLISH" if self._is_cluster else b"PUBLISH",
        )
        tokens = [word for fence in fences for word in fence]
        waiting = [
            (
                users,
                self._send(
                    (*head, self._prefixes[tag], len(fences), *tokens), messages, users
                ),
            )
            for tag, users in groups.items()
        ]
        offsets: list[int | None] = [None] * len(messages)
        failure: Exception | None = None
        for users, (kept, link_answers) in waiting:
            try:
                result = await self._result(kept, link_answers)
            except (
                OwnershipLostError,
                StoreUnavailableError,
                RefusedByRedisError,
            ) as exc:
                failure = failure or exc
                continue
            order = (place for places in users.values() for place in places)
            for place, word in zip(order, result.split(), strict=True):
                offsets[place] = int(word) or None
        if failure is not None:
            raise failure
        if self.problem is not None:
            self.is_mended()
        self._unsettled = None
        return offsets

    def _send(
        self,
        head: Sequence[Word],
        messages: Sequence[Message],
        users: dict[str, list[int]],
    ) -> tuple[KeptLink, list["asyncio.Future[Answer]"]]:
        """Send one call, and behind it the question how many replicas have it."""
        words: list[Word] = []
        for user, places in users.items():
            words += (self._prefixes[tag_of(user)], user, len(places))
            for place in places:
                message = messages[place]
                words += (message.id or b"", pack(message))
        tag = tag_of(next(iter(users)))
        kept = self._servers.of(tag)
        link = kept.current()
        keys = self._keys(self._prefixes[tag], users)
        sent = [
            link.call(b"EVALSHA", scripts.APPEND.sha, len(keys), *keys, *head, *words)
        ]
        sent += (link.call(*words) for words in waits(self._address))
        return kept, sent

    def _keys(self, prefix: str, users: Iterable[str]) -> list[str]:
        """
        Name the keys of a call.

        One server needs none. A node of a cluster needs all: while a slot moves, some are
        with the one and some with the other, and a script would stop in the middle.
        """
        keys = [f"{prefix}h"]
        if self._is_cluster:
            keys += (f"{prefix}u", f"{prefix}b:{self._session}")
            keys += (f"{prefix}{kind}:{user}" for user in users for kind in "mi")
        return keys

    async def _result(
        self, kept: KeptLink, sent: Sequence["asyncio.Future[Answer]"]
    ) -> bytes:
        try:
            answers = [await kept.answer_to(future) for future in sent]
        except StoreUnavailableError as exc:
            self._note_refusal(kept, exc.problem)
            raise
        result, *failure = answers[0]
        if len(failure) == 3:
            _, queue, passed_by = failure
            self._passed_by = max(self._passed_by, int(passed_by))
            raise OwnershipLostError(queue.decode())
        if failure:
            error = failure_of(self._address, failure[0].decode(), kept.link)
            self._note_refusal(kept, str(failure[0].decode()))
            raise error
        try:
            see_replicas(self._address, answers[1:])
        except StoreUnavailableError as exc:
            self._note_refusal(kept, exc.problem)
            raise
        stored: bytes = result
        return stored

    def _note_refusal(self, kept: KeptLink, problem: str) -> None:
        """Remember why nothing was stored, unless it is the connection that tells."""
        if kept.problem is None:
            self.problem = problem
            self.is_refused.set()
