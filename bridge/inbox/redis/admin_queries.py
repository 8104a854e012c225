"""
Read-only queries for operators, in parts that do not hold up the bridges.

A sorted set lists the users of each hash tag by name, so a page of users is the merge of a
few names from each tag. A server runs one command at a time. No command here therefore reads
more than some thousand messages or events, or the messages of one user.
"""

from collections.abc import Callable, Sequence
from heapq import merge
from itertools import islice
from time import monotonic
from typing import Any, Final

from bridge.core.admin_views import (
    InboxMatch,
    InboxSummary,
    KeptMessage,
    SearchResult,
    WaitingEvent,
    WaitingEvents,
)
from bridge.core.receipts import Receipt
from bridge.core.replay import InboxState
from bridge.inbox.redis.encoding import TAG_COUNT, tag_of, unpack
from bridge.inbox.redis.protocol import Argument
from bridge.inbox.redis.receipts import unpack_element, unpack_receipt
from bridge.inbox.redis.scripts.queries import BROWSE, FIND, STATES, WAITING
from bridge.inbox.redis.servers import RedisServers

# A search ends early after about so many matches.
_MATCHES_MAX: Final = 100
# Limits of one call of the script FIND.
_PART_USERS: Final = 200
_PART_MESSAGES: Final = 4000
# Names of users in one reply.
_NAMES: Final = 1000
# Sorts after every name with a prefix, because UTF-8 never contains this byte.
_AFTER_ALL: Final = b"\xff"


class RedisAdminQueries:
    """Queries of all inboxes, each answered as of now."""

    def __init__(
        self,
        servers: RedisServers,
        *,
        arguments: Callable[[str], Sequence[Argument]],
        state_of: Callable[[str, Sequence[Any]], InboxState],
        search_within_s: float = 5.0,
    ) -> None:
        """
        Create the queries.

        Args:
            servers: The servers to query.
            arguments: Returns the first arguments of every script that reads, for a user.
            state_of: Reads the state of a user's inbox from the reply of a script.
            search_within_s: When to end a search through all users, or all events of a tag.

        """
        self._servers = servers
        self._arguments = arguments
        self._state_of = state_of
        self._search_within_s = search_within_s

    async def users(
        self, *, prefix: str = "", after: str = "", limit: int
    ) -> Sequence[InboxSummary]:
        """Return up to `limit` users after `after`, by name, that begin with `prefix`."""
        low = b"[" + prefix.encode() if prefix > after else b"(" + after.encode()
        high = b"(" + prefix.encode() + _AFTER_ALL if prefix else b"+"
        if low == b"(":
            low = b"-"
        replies = await self._servers.ask_each(
            [
                (tag, (b"ZRANGEBYLEX", f"{p}u", low, high, b"LIMIT", 0, limit))
                for tag, p in enumerate(self._servers.prefixes)
            ]
        )
        names = [name.decode() for name in islice(merge(*replies), limit)]
        return await self._with_states(names)

    async def _with_states(self, names: Sequence[str]) -> list[InboxSummary]:
        by_tag: dict[int, list[str]] = {}
        for name in names:
            by_tag.setdefault(tag_of(name), []).append(name)
        found: dict[str, InboxSummary] = {}
        for tag, group in by_tag.items():
            arguments: list[Argument] = []
            for name in group:
                prefix, _, *limits = self._arguments(name)[:4]
                arguments = arguments or limits
                arguments += (prefix, name)
            states = await self._servers.run_script(STATES, tag, *arguments)
            for name, state in zip(group, states, strict=True):
                found[name] = InboxSummary(name, self._state_of(name, state))
        return [found[name] for name in names]

    async def user(self, user: str) -> InboxSummary | None:
        """Return the inbox of `user`; ``None`` if it never had a message."""
        (found,) = await self._with_states([user])
        return found if found.state.had_messages else None

    async def messages(
        self, user: str, *, before: int | None = None, limit: int, max_bytes: int = 0
    ) -> Sequence[KeptMessage]:
        """
        Return up to `limit` messages of `user`, newest first.

        Args:
            user: The user.
            before: Return older messages than this offset; ``None`` = the newest.
            limit: The largest number of messages.
            max_bytes: The largest size of all data; 0 = without data.

        """
        if before is not None and before <= 1:
            return ()
        found = await self._servers.run_script(
            BROWSE,
            tag_of(user),
            *self._arguments(user),
            before or 0,
            limit,
            max_bytes,
        )
        return _kept_messages(user, found, with_data=max_bytes > 0)

    async def find(self, message_id: str, *, user: str | None = None) -> SearchResult:
        """
        Find the messages with this id, of one user or of all.

        A search through all users reads every message, and ends early after too long a
        time or too many matches.
        """
        if user is not None:
            matches, looked_at, _ = await self._find_of(
                message_id, tag_of(user), [user]
            )
            return SearchResult(matches, looked_at, is_complete=True)
        until_s = monotonic() + self._search_within_s
        all_found: list[InboxMatch] = []
        looked_at = 0
        for tag in range(TAG_COUNT):
            after = b"-"
            while True:
                names = await self._names(tag, after)
                start = 0
                while start < len(names):
                    found, searched, count = await self._find_of(
                        message_id, tag, names[start : start + _PART_USERS]
                    )
                    start += count
                    all_found += found
                    looked_at += searched
                    if monotonic() > until_s or len(all_found) >= _MATCHES_MAX:
                        return SearchResult(all_found, looked_at, is_complete=False)
                if len(names) < _NAMES:
                    break
                after = b"(" + names[-1].encode()
        return SearchResult(all_found, looked_at, is_complete=True)

    async def open_receipts(self, user: str, message_id: str) -> Sequence[Receipt]:
        """Return the receipts of messages with this id whose outcome is not decided yet."""
        tag = tag_of(user)
        key = f"{self._servers.prefixes[tag]}w:{user}"
        reply = await self._servers.for_tag(tag).ask(
            b"ZRANGEBYSCORE", key, b"-inf", b"+inf", b"WITHSCORES"
        )
        found = [
            unpack_receipt(user, packed, offset=int(offset)) for packed, offset in reply
        ]
        return [each for each in found if each.message.id == message_id]

    async def waiting_events(self, user: str, message_id: str) -> WaitingEvents:
        """Return the events about messages with this id that wait to be published."""
        until_s = monotonic() + self._search_within_s
        tag = tag_of(user)
        found: list[WaitingEvent] = []
        after = b"0"
        while after:
            after, *heads = await self._servers.run_script(
                WAITING, tag, self._servers.prefixes[tag], user, message_id, after
            )
            events = map(unpack_element, heads)
            found += (WaitingEvent(each.routing_key, each.at_s) for each in events)
            if monotonic() > until_s:
                break
        return WaitingEvents(found, is_complete=not after)

    async def _names(self, tag: int, after: bytes) -> list[str]:
        key = f"{self._servers.prefixes[tag]}u"
        names = await self._servers.for_tag(tag).ask(
            b"ZRANGEBYLEX", key, after, b"+", b"LIMIT", 0, _NAMES
        )
        return [name.decode() for name in names]

    async def _find_of(
        self, message_id: str, tag: int, users: Sequence[str]
    ) -> tuple[list[InboxMatch], int, int]:
        """SearchResult the first of `users`; return the counts of messages and users searched."""
        looked_at, user_count, *found = await self._servers.run_script(
            FIND,
            tag,
            *self._arguments(users[0]),
            message_id,
            _PART_MESSAGES,
            *users,
        )
        matches: list[InboxMatch] = []
        start = 0
        while start < len(found):
            name, seen, count = found[start : start + 3]
            end = start + 3 + 3 * count
            user = name.decode()
            kept = _kept_messages(user, found[start + 3 : end], with_data=False)
            matches.append(InboxMatch(user, kept, float(seen) if seen else None))
            start = end
        return matches, looked_at, user_count


def _kept_messages(
    user: str, found: Sequence[Any], *, with_data: bool
) -> list[KeptMessage]:
    messages = []
    for index in range(0, len(found), 3):
        offset, element, data_bytes = found[index : index + 3]
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
                message.key,
            )
        )
    return messages
