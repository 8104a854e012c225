"""
Who is online, in Redis: several bridges have windows of the same users.

For each tag with users, a bridge has a session with a lease, which it renews as long as it runs.
When the lease of a session is over, any bridge ends it: its users leave, as if their windows had
closed. A bridge whose session has ended, or that cannot know what the server has stored, begins
another one and notes all of its users again. So an outage, a failover that loses writes, and a
bridge that stood still need no rules of their own. Only users who have left are not noted again:
a bridge remembers them until they must be offline, and notes that they left if the server may
have lost it. A session that goes on shows that nothing was lost; otherwise the epoch tells.
"""

import asyncio
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
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
_UNUSED_MS: Final = 7 * 86_400_000
# Of one server in one call. It bounds how long the server is busy when a bridge has ended.
_TAGS_PER_CALL: Final = 16

# In place of the number of windows: the user left, and the server may have lost that.
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
        epoch: At the last call; ``None`` before the first.
        left: Users whose last window here has closed, and since when by real time, the earliest
            first. They are forgotten when they must be offline.
        has_lost: Whether the server may have lost that one of them left.

    """

    session: str = ""
    calls: int = 0
    seq: int = 0
    epoch: bytes | None = None
    left: dict[str, float] = field(default_factory=dict)
    has_lost: bool = False

    def note_epoch(self, epoch: bytes, real_s: float, *, has_kept: bool) -> None:
        """
        Note the epoch, which changes whenever the server may have lost writes.

        After `FLUSHALL` it is empty until a message of the tag is stored, and cannot show another
        loss.

        Args:
            epoch: As the server has replied; it may be empty.
            real_s: The real time.
            has_kept: Whether the server is known to have noted all who left.

        """
        if has_kept:
            self.has_lost = False
        elif (
            self.left and self.epoch is not None and (epoch != self.epoch or not epoch)
        ):
            self.has_lost = True
            self.remember_longer(real_s)
        self.epoch = epoch

    def remember_longer(self, real_s: float) -> None:
        """Let the time until users must be offline begin now."""
        self.left = dict.fromkeys(self.left, real_s)

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
        for tag, of_tag in users.items():
            if self._tags[tag].has_lost:
                for user in self._tags[tag].left:
                    of_tag.extend((user, _LEFT))
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
        sessions: list[str] = []
        for tag, of_tag in users.items():
            known, count = self._tags[tag], len(of_tag) // 2
            if of_tag and not known.session:
                known.session, known.calls = secrets.token_hex(6), 0
            arguments += (self._servers.prefixes[tag], known.session)
            arguments += (known.calls, known.seq, count, *of_tag)
            # Until the reply it is not known whether the session has made this call.
            sessions.append(known.session)
            known.session = ""
        try:
            replies = await self._servers.run_script(
                NOTE_PRESENCE, next(iter(users)), *arguments
            )
        except StoreUnavailableError:
            return self._note_failure(users)
        except RefusedByRedisError:  # a bug, or a limit of the server
            log.exception("inbox.presence_refused")
            return self._note_failure(users)
        real_s, over = self._clock.real_s(), set[int]()
        for tag, session, (added, epoch, seq) in zip(
            users, sessions, replies, strict=True
        ):
            known = self._tags[tag]
            known.seq = max(known.seq, seq)
            has_kept = False
            if added < 0:
                over.add(tag)
            else:
                # A session goes on only if the server has all of its calls.
                has_kept = known.has_lost or (session != "" and known.calls > 0)
                known.session, known.calls = session, known.calls + 1
            known.note_epoch(epoch, real_s, has_kept=has_kept)
            # The second time is for the next poll, and for the event to be published.
            known.forget_before(real_s - debounce_s - self._timing.gone_s)
            if added > 0:
                self._on_event(tag)
        return over

    def _note_failure(self, tags: Collection[int]) -> set[int]:
        """Note that the state of these tags is not known; the call may have been done."""
        real_s = self._clock.real_s()
        for tag in tags:
            self._tags[tag].remember_longer(real_s)
        return set(tags)
