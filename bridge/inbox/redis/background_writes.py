"""Writes to Redis that no caller waits for: delivered marks, and resets of trial counts."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import structlog

from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.encoding import tag_of
from bridge.inbox.redis.errors import RefusedByRedisError
from bridge.inbox.redis.protocol import Argument
from bridge.inbox.redis.receipts import RedisReceipts
from bridge.inbox.redis.scripts.upkeep import MARK, NOTE_TRIALS
from bridge.inbox.redis.servers import RedisServers

log = structlog.get_logger(__name__)

# Marks are collected for so long, and written together.
_COLLECT_S: Final = 0.5
_RETRY_S: Final = 1.0
# Marks in one call.
_PART: Final = 500
_TRIAL_MS: Final = 7 * 86_400_000

# The user, and the epoch that the mark belongs to.
MarkKey = tuple[str, str]


class BackgroundWrites:
    """Delivered marks and trial counts that are not in Redis yet."""

    def __init__(
        self,
        servers: RedisServers,
        receipts: RedisReceipts,
        *,
        rules: Callable[[], Sequence[Argument]],
        real_s: Callable[[], float],
    ) -> None:
        self._servers = servers
        self._receipts = receipts
        self._rules = rules
        self._real_s = real_s
        # Of users whose receipts they may decide: each mark, and when it moved.
        self._timed: dict[MarkKey, list[tuple[int, float]]] = {}
        self._marks: dict[MarkKey, int] = {}
        self._marks_in_flight: dict[MarkKey, int] = {}
        self._trials_to_reset: set[bytes] = set()
        self._has_work = asyncio.Event()
        self._is_urgent = asyncio.Event()
        self._flushing = asyncio.Lock()

    def mark(self, user: str, epoch: str, offset: int) -> None:
        """Move the delivered mark of `user` forward soon; a smaller offset is ignored."""
        if offset > self.unwritten_mark(user, epoch):
            self._marks[user, epoch] = offset
            if user in self._receipts.users:
                moved = self._timed.setdefault((user, epoch), [])
                moved.append((offset, self._real_s()))
                self._is_urgent.set()
            self._has_work.set()

    def unwritten_s(self) -> float:
        """Return the age of the oldest mark that may decide and is not written; 0 if none is."""
        now_s = self._real_s()
        moved = (marks[0][1] for marks in self._timed.values())
        return now_s - min(moved, default=now_s)

    async def flush_timed(self) -> None:
        """
        Write marks of users with receipts now, if there are some. Never raises.

        While a server is away, nothing is decided on it, so its marks can wait.
        """
        if self._timed:
            with suppress(StoreUnavailableError, RefusedByRedisError):
                await self.flush()

    def unwritten_mark(self, user: str, epoch: str) -> int:
        """Return the mark of `user` that is not in Redis yet; 0 if there is none."""
        key = (user, epoch)
        return max(self._marks.get(key, 0), self._marks_in_flight.get(key, 0))

    async def note_trials(self, keys: Sequence[bytes]) -> list[int]:
        """Increment trial counts at once; StoreUnavailableError if that fails."""
        ended = self._trials_to_reset.intersection(keys)
        arguments: list[Argument] = [_TRIAL_MS]
        for key in keys:
            arguments += (self._trial_key(key), int(key in ended))
        counts = await self._servers.run_script(NOTE_TRIALS, 0, *arguments)
        self._trials_to_reset -= ended
        return list(counts)

    def forget_trial(self, key: bytes) -> None:
        """Reset a trial count, without the delay that marks have."""
        self._trials_to_reset.add(key)
        self._is_urgent.set()
        self._has_work.set()

    def _trial_key(self, key: bytes) -> bytes:
        return f"{self._servers.prefixes[0]}t:".encode() + key

    async def run(self) -> None:
        """Flush whenever there is something to write, until cancelled."""
        while True:
            await self._has_work.wait()
            try:
                async with asyncio.timeout(_COLLECT_S):
                    await self._is_urgent.wait()
            except TimeoutError:
                pass  # nothing urgent came while marks were collected
            try:
                await self.flush()
            except StoreUnavailableError:
                await asyncio.sleep(_RETRY_S)
            except RefusedByRedisError:
                # The cost is that clients receive some messages again.
                log.exception("inbox.background_write_failed")
                await asyncio.sleep(_RETRY_S)

    async def flush(self) -> None:
        """
        Write everything now, after a flush that is already running; failed writes stay.

        Raises:
            StoreUnavailableError: If a server is away. Writes to other servers are done.

        """
        async with self._flushing:
            await self._flush()

    async def _flush(self) -> None:
        self._has_work.clear()
        self._is_urgent.clear()
        marks, self._marks = self._marks, {}
        trials, self._trials_to_reset = self._trials_to_reset, set()
        self._marks_in_flight = marks
        failure: StoreUnavailableError | None = None
        try:
            # First, and sent at once: a trial that begins during this flush must not be
            # reset by it.
            if trials:
                failure = await self._reset(trials)
            failure = await self._write_marks(marks) or failure
        finally:
            self._marks_in_flight = {}
            if marks or trials:  # these are the failed ones
                self._marks = marks | self._marks
                self._trials_to_reset |= trials
                self._has_work.set()
        if failure is not None:
            raise failure

    async def _reset(self, trials: set[bytes]) -> StoreUnavailableError | None:
        """Reset `trials`, and remove them from the set."""
        names = map(self._trial_key, trials)
        try:
            await self._servers.for_tag(0).ask(b"DEL", *names)
        except StoreUnavailableError as exc:
            return exc
        trials.clear()
        return None

    async def _write_marks(
        self, marks: dict[MarkKey, int]
    ) -> StoreUnavailableError | None:
        """Write `marks`, and remove the written ones from the dictionary."""
        # A call may cover all tags of a single server, but only one slot of a cluster.
        is_single = len(self._servers.connections) == 1
        groups: dict[int, list[MarkKey]] = {}
        for key in marks:
            groups.setdefault(0 if is_single else tag_of(key[0]), []).append(key)
        failure: StoreUnavailableError | None = None
        for tag, group in groups.items():
            for start in range(0, len(group), _PART):
                part = group[start : start + _PART]
                try:
                    while part:
                        await self._write_part(tag, part, marks)
                        part = [key for key in part if key in marks]
                except StoreUnavailableError as exc:
                    failure = failure or exc
                    break  # the next tag may be on another server
        return failure

    async def _write_part(
        self, tag: int, part: Sequence[MarkKey], marks: dict[MarkKey, int]
    ) -> None:
        """Write marks of `part`, at least the first one, and remove them from `marks`."""
        now_s = self._real_s()
        moved: list[tuple[MarkKey, int, float]] = []
        for key in part:
            timed = self._timed.get(key, ())
            moved += ((key, offset, now_s - at_s) for offset, at_s in timed)
            if not timed or timed[-1][0] < marks[key]:
                moved.append((key, marks[key], 0.0))
        known = self._receipts.users
        tracked = {user: known[user] for user, _ in part if user in known}
        arguments: list[Argument] = [*self._rules()]
        for (user, epoch), offset, ago_s in moved:
            prefix = self._servers.prefixes[tag_of(user)]
            arguments += (prefix, user, epoch, offset, repr(ago_s))
        counts = await self._servers.run_script(MARK, tag, *arguments)
        for (key, offset, _), count in zip(moved, counts, strict=False):
            if offset >= marks.get(key, 0):  # the last one
                marks.pop(key, None)
            left = [each for each in self._timed.pop(key, ()) if each[0] > offset]
            if left:
                self._timed[key] = left
            user = key[0]
            # A tracked message may have arrived since the script ran.
            if not count and user in tracked and known.get(user) == tracked[user]:
                del known[user]
        if tracked:
            self._receipts.notify(*map(tag_of, tracked))
