"""
Appending to inboxes in Redis: batches that may be repeated without being stored twice.

A batch has a number, and keeps it when it is tried again; what came of the last one of this
bridge stands beside the messages, written in the same step (see APPEND in redis_scripts).
On one server a batch is one call. In a cluster it is one for each hash tag in it, sent all
at once; they may fail one by one, and repeating the batch does those that are missing.
"""

import asyncio
import secrets
from collections.abc import Sequence
from typing import Final

from bridge.core.message import Message
from bridge.core.redis_address import RedisAddress
from bridge.errors import StoreUnavailableError
from bridge.inbox import redis_scripts as scripts
from bridge.inbox.memory import Retention
from bridge.inbox.redis_elements import pack, tag_of
from bridge.inbox.redis_link import KeptLink, RefusedByRedisError, failure_of
from bridge.inbox.redis_servers import Servers
from bridge.inbox.redis_wire import Answer, Word

# How long replicas may take to follow.
_REPLICAS_MS: Final = 1000


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
        self.problem: str | None = None
        self.is_refused = asyncio.Event()

    def is_mended(self) -> None:
        """Know that the problem is over."""
        self.problem = None
        self.is_refused.clear()

    async def append(
        self, messages: Sequence[Message], *, retention: Retention, now_s: float
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
        waiting = [
            (users, self._send(head, messages, users)) for users in groups.values()
        ]
        offsets: list[int | None] = [None] * len(messages)
        failure: Exception | None = None
        for users, (kept, link_answers) in waiting:
            try:
                result = await self._result(kept, link_answers)
            except (StoreUnavailableError, RefusedByRedisError) as exc:
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
        key = f"{self._prefixes[tag]}h"
        sent = [link.call(b"EVALSHA", scripts.APPEND.sha, 1, key, *head, *words)]
        if self._address.replicas:
            sent.append(link.call(b"WAIT", self._address.replicas, _REPLICAS_MS))
        return kept, sent

    async def _result(
        self, kept: KeptLink, sent: Sequence["asyncio.Future[Answer]"]
    ) -> bytes:
        try:
            answers = [await kept.answer_to(future) for future in sent]
        except StoreUnavailableError as exc:
            self._note_refusal(kept, exc.problem)
            raise
        result, *failure = answers[0]
        if failure:
            error = failure_of(self._address, failure[0].decode(), kept.link)
            self._note_refusal(kept, str(failure[0].decode()))
            raise error
        if self._address.replicas and answers[1] < self._address.replicas:
            problem = f"{answers[1]} of {self._address.replicas} replicas have followed"
            self._note_refusal(kept, problem)
            raise StoreUnavailableError(str(self._address), problem)
        stored: bytes = result
        return stored

    def _note_refusal(self, kept: KeptLink, problem: str) -> None:
        """Remember why nothing was stored, unless it is the connection that tells."""
        if kept.problem is None:
            self.problem = problem
            self.is_refused.set()
