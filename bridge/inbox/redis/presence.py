"""
Who is online, in Redis: several bridges have windows of the same users.

For each tag with users, a bridge has a session with a lease, which it renews as long as it runs.
When the lease of a session is over, any bridge ends it: its users leave, as if their windows had
closed. A bridge whose session has ended, or that cannot know what the server has stored, begins
another one and notes all of its users again. So an outage, a failover that loses writes, and a
bridge that stood still need no rules of their own.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from math import ceil, inf
from typing import Final

import structlog

from bridge.clock import SteadyClock
from bridge.core.receipts import WorkerEvent
from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.encoding import tag_of
from bridge.inbox.redis.errors import RefusedByRedisError
from bridge.inbox.redis.protocol import Argument
from bridge.inbox.redis.scripts.presence import DROP_PRESENCE_EVENTS, NOTE_PRESENCE
from bridge.inbox.redis.servers import RedisServers
from bridge.inbox.redis.timing import RedisTiming
from bridge.inbox.worker_events import presence_event

log = structlog.get_logger(__name__)

# A tag that was not polled for so many intervals was out of reach for all bridges.
_MISSED_POLLS: Final = 3
_UNUSED_MS: Final = 7 * 86_400_000
# Of one server in one call. It bounds how long the server is busy when a bridge has ended.
_TAGS_PER_CALL: Final = 16

_NO_SESSION: Final = ("", 0)

# For each user the name and the number of windows.
_Users = Sequence[Argument]


def unpack_presence(element: bytes) -> WorkerEvent:
    """Return the event in an element of the outbox that NOTE_PRESENCE has added."""
    windows, at_ms, seq, user = element[1:].decode().split(" ", 3)
    at_s = int(at_ms) / 1000
    return presence_event(user, windows=int(windows), at_s=at_s, seq=int(seq))


class RedisPresence:
    """
    The sessions of one bridge.

    Args:
        servers: The servers.
        clock: Gives the time of events, and the interval of polls.
        timing: How often tags are polled, and how long a lease is (the docs say 20 s, which
            includes the next poll).
        on_event: Called with a tag whose outbox has a new event.
        is_cluster: Whether a call covers one tag only.

    """

    def __init__(
        self,
        servers: RedisServers,
        clock: SteadyClock,
        timing: RedisTiming,
        *,
        on_event: Callable[[int], None],
        is_cluster: bool,
    ) -> None:
        self._servers = servers
        self._clock = clock
        self._timing = timing
        self._on_event = on_event
        self._tags_per_call = 1 if is_cluster else _TAGS_PER_CALL
        # Of each tag: the name of the session, and how many calls it has made.
        self._sessions: dict[int, tuple[str, int]] = {}
        self._poll_due_s = -inf

    async def note(
        self, windows: Mapping[str, int], *, debounce_s: float
    ) -> Callable[[str], bool] | None:
        """Note windows, and decide who is online; see `PresenceStore`."""
        users: dict[int, list[Argument]] = {}
        for user, count in windows.items():
            users.setdefault(tag_of(user), []).extend((user, count))
        real_s = self._clock.real_s()
        if real_s >= self._poll_due_s:
            self._poll_due_s = real_s + self._timing.presence_poll_s
            for tag in range(len(self._servers.prefixes)):
                users.setdefault(tag, [])
        tags, size = list(users), self._tags_per_call
        parts = [tags[start : start + size] for start in range(0, len(tags), size)]
        calls = (
            self._call({tag: users[tag] for tag in part}, debounce_s) for part in parts
        )
        lost = frozenset[int]().union(*await asyncio.gather(*calls))
        return (lambda user: tag_of(user) in lost) if lost else None

    async def drop_events(self, limit: int) -> int:
        """
        Delete the oldest events from the outbox, of each tag the same share.

        Raises:
            StoreUnavailableError: If a server is away. Some may have been deleted.

        """
        prefixes = self._servers.prefixes
        counts = await self._servers.ask_each(
            [(tag, (b"ZCARD", f"{prefix}f")) for tag, prefix in enumerate(prefixes)]
        )
        share = min(1.0, limit / max(1, sum(counts)))
        dropped = [
            self._servers.run_script(
                DROP_PRESENCE_EVENTS, tag, prefixes[tag], ceil(count * share)
            )
            for tag, count in enumerate(counts)
            if count
        ]
        return sum(await asyncio.gather(*dropped))

    async def _call(self, users: Mapping[int, _Users], debounce_s: float) -> set[int]:
        """Run the script for some tags; return those whose sessions are over."""
        for tag, of_tag in users.items():
            if of_tag:
                self._sessions.setdefault(tag, (secrets.token_hex(6), 0))
        sessions = {tag: self._sessions.pop(tag, _NO_SESSION) for tag in users}
        arguments: list[Argument] = [
            int(self._clock.wall_s() * 1000),
            max(1, round(debounce_s * 1000)),
            round(self._timing.gone_s * 1000),
            round(self._timing.presence_poll_s * 1000) * _MISSED_POLLS,
            _UNUSED_MS,
        ]
        for tag, of_tag in users.items():
            prefix, count = self._servers.prefixes[tag], len(of_tag) // 2
            arguments += (prefix, *sessions[tag], count, *of_tag)
        try:
            replies = await self._servers.run_script(
                NOTE_PRESENCE, next(iter(users)), *arguments
            )
        except StoreUnavailableError:
            return set(users)  # it may have been done
        except RefusedByRedisError:  # a bug, or a limit of the server
            log.exception("inbox.presence_refused")
            return set(users)
        for (tag, (session, calls)), added in zip(
            sessions.items(), replies, strict=True
        ):
            if session and added >= 0:
                self._sessions[tag] = session, calls + 1
            if added > 0:
                self._on_event(tag)
        return {tag for tag, added in zip(users, replies, strict=True) if added < 0}
