"""
What operators see of inboxes in Redis: reads alone, in pieces that let the bridges pass.

The users of each hash tag stand in an index by name, so a page of users is a few names from
each and their merge. No command here looks at more than some thousand messages, or all of
one user: a server does one thing at a time.
"""

from collections.abc import Sequence
from heapq import merge
from itertools import islice
from time import monotonic
from typing import Any, Final, Protocol

from bridge.core.admin_views import InboxMatch, InboxSummary, KeptMessage, SearchResult
from bridge.core.replay import InboxState
from bridge.inbox.redis import admin_scripts as scripts
from bridge.inbox.redis.encoding import TAGS, tag_of, unpack
from bridge.inbox.redis.protocol import Word
from bridge.inbox.redis.queries import Asking

_SIGHTINGS_MAX: Final = 100
_PIECE_USERS: Final = 200
_PIECE_MESSAGES: Final = 4000
_NAMES: Final = 1000
# Behind all that begins with a prefix: no UTF-8 has this byte.
_BEYOND: Final = b"\xff"


class Inbox(Protocol):
    """The store that is looked at."""

    def reading_words(self, user: str) -> tuple[Word, ...]:
        """Return what every script that reads is told first."""

    def state_of(self, user: str, found: Sequence[Any]) -> InboxState:
        """Read a state from what a script has found."""


class RedisAdminQueries:
    """A view of all inboxes, as they are at the moment of each call."""

    def __init__(
        self, inbox: Inbox, asking: Asking, *, search_within_s: float = 5.0
    ) -> None:
        """Look at `inbox`; a search without a user ends after `search_within_s`."""
        self._inbox = inbox
        self._asking = asking
        self._search_within_s = search_within_s

    async def users(
        self, *, prefix: str = "", after: str = "", limit: int
    ) -> Sequence[InboxSummary]:
        """Return up to `limit` users behind `after`, by name; all begin with `prefix`."""
        low = b"[" + prefix.encode() if prefix > after else b"(" + after.encode()
        high = b"(" + prefix.encode() + _BEYOND if prefix else b"+"
        if low == b"(":
            low = b"-"
        answers = await self._asking.each(
            [
                (tag, (b"ZRANGEBYLEX", f"{p}u", low, high, b"LIMIT", 0, limit))
                for tag, p in enumerate(self._asking.prefixes)
            ]
        )
        names = [name.decode() for name in islice(merge(*answers), limit)]
        return await self._with_states(names)

    async def _with_states(self, names: Sequence[str]) -> list[InboxSummary]:
        by_tag: dict[int, list[str]] = {}
        for name in names:
            by_tag.setdefault(tag_of(name), []).append(name)
        found: dict[str, InboxSummary] = {}
        for tag, group in by_tag.items():
            words: list[Word] = []
            for name in group:
                prefix, _, *limits = self._inbox.reading_words(name)[:4]
                words = words or limits
                words += (prefix, name)
            states = await self._asking.run(scripts.STATES, tag, *words)
            for name, state in zip(group, states, strict=True):
                found[name] = InboxSummary(name, self._inbox.state_of(name, state))
        return [found[name] for name in names]

    async def user(self, user: str) -> InboxSummary | None:
        """Return the inbox of `user`; ``None`` if there never was a message."""
        (found,) = await self._with_states([user])
        return found if found.state.last else None

    async def messages(
        self, user: str, *, before: int | None = None, limit: int, max_bytes: int = 0
    ) -> Sequence[KeptMessage]:
        """Return some messages of `user`, newest first, as memory_looking has it."""
        if before is not None and before <= 1:
            return ()
        found = await self._asking.run(
            scripts.LOOK,
            tag_of(user),
            *self._inbox.reading_words(user),
            before or 0,
            limit,
            max_bytes,
        )
        return _kept(user, found, with_data=max_bytes > 0)

    async def find(self, message_id: str, *, user: str | None = None) -> SearchResult:
        """
        Find the messages with this id, of one user or of all.

        A search of all looks at every message, and ends early when it has taken too long.
        """
        if user is not None:
            sightings, looked_at, _ = await self._find_of(
                message_id, tag_of(user), [user]
            )
            return SearchResult(sightings, looked_at, is_complete=True)
        until_s = monotonic() + self._search_within_s
        all_found: list[InboxMatch] = []
        looked_at = 0
        for tag in range(TAGS):
            after = b"-"
            while True:
                names = await self._names(tag, after)
                start = 0
                while start < len(names):
                    found, looked, count = await self._find_of(
                        message_id, tag, names[start : start + _PIECE_USERS]
                    )
                    start += count
                    all_found += found
                    looked_at += looked
                    if monotonic() > until_s or len(all_found) >= _SIGHTINGS_MAX:
                        return SearchResult(all_found, looked_at, is_complete=False)
                if len(names) < _NAMES:
                    break
                after = b"(" + names[-1].encode()
        return SearchResult(all_found, looked_at, is_complete=True)

    async def _names(self, tag: int, after: bytes) -> list[str]:
        key = f"{self._asking.prefixes[tag]}u"
        words: Sequence[Word] = (b"ZRANGEBYLEX", key, after, b"+", b"LIMIT", 0, _NAMES)
        (names,) = await self._asking.each([(tag, words)])
        return [name.decode() for name in names]

    async def _find_of(
        self, message_id: str, tag: int, users: Sequence[str]
    ) -> tuple[list[InboxMatch], int, int]:
        """Look at the first of `users`; returns how many messages and users these were."""
        looked_at, user_count, *found = await self._asking.run(
            scripts.FIND,
            tag,
            *self._inbox.reading_words(users[0]),
            message_id,
            _PIECE_MESSAGES,
            *users,
        )
        sightings: list[InboxMatch] = []
        place = 0
        while place < len(found):
            name, seen, count = (
                found[place].decode(),
                found[place + 1],
                found[place + 2],
            )
            end = place + 3 + 3 * count
            kept = _kept(name, found[place + 3 : end], with_data=False)
            sightings.append(InboxMatch(name, kept, float(seen) if seen else None))
            place = end
        return sightings, looked_at, user_count


def _kept(user: str, found: Sequence[Any], *, with_data: bool) -> list[KeptMessage]:
    messages = []
    for place in range(0, len(found), 3):
        offset, element, data_bytes = found[place : place + 3]
        message = unpack(user, element)
        messages.append(
            KeptMessage(
                offset,
                message.event,
                message.taken_s,
                message.id,
                message.deadline_s,
                data_bytes,
                message.data if with_data else None,
            )
        )
    return messages
