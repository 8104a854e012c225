"""
Who is online, in Redis: several bridges have windows of the same users.

For each tag with users, a bridge has a session with a lease, which it renews as long as it runs.
When the lease of a session is over, any bridge ends it: its users leave, as if their windows had
closed. A bridge whose session has ended, or that cannot know what the server has stored, begins
another one and notes all of its users again. So an outage, a failover that loses writes, and a
bridge that stood still need no rules of their own.

Users who have left must be noted again, too, if the server has lost that they left. So a bridge
remembers them until they must be offline, and names them when it begins a session. Most sessions
end without a loss, and then some of these users were reported offline already. So the script
ignores them unless the epoch has changed since the last call, or is empty: after `FLUSHALL` there
is none until a message of the tag is stored or a bridge connects, and two losses look the same.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
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
# Data of a tag that no bridge has used for so long are deleted.
_UNUSED_MS: Final = 7 * 86_400_000
# Of one server in one call. It bounds how long the server is busy when a bridge has ended.
_TAGS_PER_CALL: Final = 16

# In place of the number of windows: the user left before the session began.
_LEFT: Final = -1

# For each user the name and the number of windows.
_Users = Sequence[Argument]


def unpack_presence(element: bytes) -> WorkerEvent:
    """Return the event in an element of the outbox that NOTE_PRESENCE has added."""
    windows, at_ms, seq, user = element[1:].decode().split(" ", 3)
    at_s = int(at_ms) / 1000
    return presence_event(user, windows=int(windows), at_s=at_s, seq=int(seq))


@dataclass(slots=True)
class _TagPresence:
    """
    What one bridge knows about the presence of the users of a tag.

    Attributes:
        session: The name of its session; empty if it has none, or does not know its state.
        calls: How many calls the session has made.
        seq: The last one that it has seen.
        epoch: At the last call that was done; ``None`` before the first.
        left: Users whose last window here has closed, and since when by real time, the earliest
            first. They are forgotten when they must be offline.

    """

    session: str = ""
    calls: int = 0
    seq: int = 0
    epoch: bytes | None = None
    left: dict[str, float] = field(default_factory=dict)

    def begin_session(self, real_s: float) -> _Users:
        """Begin another session; return the users who have left, to be noted with it."""
        self.session, self.calls = secrets.token_hex(6), 0
        if self.epoch is None:  # no call has noted them as online
            return ()
        # If the server has lost them, the time until they are offline begins now.
        self.left = dict.fromkeys(self.left, real_s)
        return [argument for user in self.left for argument in (user, _LEFT)]

    def forget_before(self, left_s: float) -> None:
        """Forget users who have left before this time."""
        left = self.left
        for user in list(takewhile(lambda user: left[user] < left_s, left)):
            del left[user]


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
        self._tags = [_TagPresence() for _ in servers.prefixes]
        self._poll_due_s = -inf

    async def note(
        self, windows: Mapping[str, int], *, debounce_s: float
    ) -> Callable[[str], bool] | None:
        """Note windows, and decide who is online; see `PresenceStore`."""
        users: dict[int, list[Argument]] = {}
        real_s = self._clock.real_s()
        for user, count in windows.items():
            tag = tag_of(user)
            users.setdefault(tag, []).extend((user, count))
            left = self._tags[tag].left
            left.pop(user, None)
            if not count:
                left[user] = real_s
        if real_s >= self._poll_due_s:
            self._poll_due_s = real_s + self._timing.presence_poll_s
            for tag in range(len(self._tags)):
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
        arguments: list[Argument] = [
            int(self._clock.wall_s() * 1000),
            max(1, round(debounce_s * 1000)),
            round(self._timing.gone_s * 1000),
            round(self._timing.presence_poll_s * 1000) * _MISSED_POLLS,
            _UNUSED_MS,
        ]
        sessions, real_s = list[str](), self._clock.real_s()
        for tag, of_tag in users.items():
            known = self._tags[tag]
            must_begin = not known.session and (of_tag or known.left)
            left = known.begin_session(real_s) if must_begin else ()
            arguments += (self._servers.prefixes[tag], known.session, known.calls)
            arguments += (known.seq, known.epoch or b"", (len(of_tag) + len(left)) // 2)
            arguments += (*of_tag, *left)
            # Until the reply it is not known whether the session has made this call.
            sessions.append(known.session)
            known.session = ""
        try:
            replies = await self._servers.run_script(
                NOTE_PRESENCE, next(iter(users)), *arguments
            )
        except StoreUnavailableError:
            return set(users)
        except RefusedByRedisError:  # a bug, or a limit of the server
            log.exception("inbox.presence_refused")
            return set(users)
        over = set[int]()
        for tag, session, (added, epoch, seq) in zip(
            users, sessions, replies, strict=True
        ):
            known = self._tags[tag]
            known.seq = max(known.seq, seq)
            if added < 0:
                over.add(tag)
                continue
            known.session, known.calls, known.epoch = session, known.calls + 1, epoch
            # The second time is for the next poll, and for the event to be published.
            known.forget_before(self._clock.real_s() - debounce_s - self._timing.gone_s)
            if added > 0:
                self._on_event(tag)
        return over
