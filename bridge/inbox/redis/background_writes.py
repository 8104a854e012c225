"""What is written to Redis without anybody waiting for it: delivered marks, ends of trials."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from bridge.errors import StoreUnavailableError
from bridge.inbox.redis import scripts
from bridge.inbox.redis.connection import RefusedByRedisError
from bridge.inbox.redis.encoding import tag_of
from bridge.inbox.redis.protocol import Word
from bridge.inbox.redis.servers import Servers

log = structlog.get_logger(__name__)

# Marks are written so long after the first of them, all that came meanwhile together.
_MARKS_S: Final = 0.5
_AGAIN_S: Final = 1.0
_PIECE: Final = 500
_TRIAL_MS: Final = 7 * 86_400_000

# Whose, and of which epoch.
Mark = tuple[str, str]


class Errands:
    """Marks and trials on their way."""

    def __init__(self, servers: Servers, prefix: Callable[[int], str]) -> None:
        self._servers = servers
        self._prefix = prefix
        self._marks: dict[Mark, int] = {}
        self._on_their_way: dict[Mark, int] = {}
        self._forgotten: set[bytes] = set()
        self._are_there = asyncio.Event()
        self._are_urgent = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    def mark(self, user: str, epoch: str, offset: int) -> None:
        """Move the delivered mark of `user` forward, soon; backwards is ignored."""
        if offset > self.unwritten_mark(user, epoch):
            self._marks[user, epoch] = offset
            self._are_there.set()

    def unwritten_mark(self, user: str, epoch: str) -> int:
        """Return the mark of `user` as far as it is not in the store yet; else 0."""
        key = (user, epoch)
        return max(self._marks.get(key, 0), self._on_their_way.get(key, 0))

    async def note_trial(self, key: bytes) -> int:
        """Count a trial, now; StoreUnavailableError if that cannot be."""
        kept, name = self._servers.of(0), self._trial(key)
        if key in self._forgotten:
            await kept.ask(b"DEL", name)
            self._forgotten.discard(key)
        count = int(await kept.ask(b"INCR", name))
        await kept.ask(b"PEXPIRE", name, _TRIAL_MS)
        return count

    def forget_trial(self, key: bytes) -> None:
        """Forget a trial, at once."""
        self._forgotten.add(key)
        self._are_urgent.set()
        self._are_there.set()

    def _trial(self, key: bytes) -> bytes:
        return f"{self._prefix(0)}t:".encode() + key

    async def run(self) -> None:
        """Run errands as they come, until cancelled."""
        while True:
            await self._are_there.wait()
            try:
                async with asyncio.timeout(_MARKS_S):
                    await self._are_urgent.wait()
            except TimeoutError:
                pass  # marks may wait, so that more of them go together
            try:
                await self.finish()
            except StoreUnavailableError:
                await asyncio.sleep(_AGAIN_S)
            except RefusedByRedisError:  # some messages will be repeated for it
                log.exception("inbox.errands_failed")
                await asyncio.sleep(_AGAIN_S)

    async def finish(self) -> None:
        """
        Run all errands now, those that are under way included; what fails stays.

        Raises:
            StoreUnavailableError: If a server is away. What belongs to others is written.

        """
        async with self._one_at_a_time:
            await self._finish()

    async def _finish(self) -> None:
        self._are_there.clear()
        self._are_urgent.clear()
        marks, self._marks = self._marks, {}
        forgotten, self._forgotten = self._forgotten, set()
        self._on_their_way = marks
        failure: StoreUnavailableError | None = None
        try:
            failure = await self._forget(forgotten)
            failure = await self._write(marks) or failure
        finally:
            self._on_their_way = {}
            if marks or forgotten:  # what is left
                self._marks = marks | self._marks
                self._forgotten |= forgotten
                self._are_there.set()
        if failure is not None:
            raise failure

    async def _forget(self, trials: set[bytes]) -> StoreUnavailableError | None:
        """Forget `trials`, and take those from the set that are forgotten."""
        if trials:
            try:
                await self._servers.of(0).ask(b"DEL", *map(self._trial, trials))
            except StoreUnavailableError as exc:
                return exc
            trials.clear()
        return None

    async def _write(self, marks: dict[Mark, int]) -> StoreUnavailableError | None:
        """Write `marks`, and take those from the dict that are written."""
        # One call for a server, or in a cluster for a tag: that has one slot.
        is_one = len(self._servers.all) == 1
        groups: dict[int, list[Mark]] = {}
        for mark in marks:
            groups.setdefault(0 if is_one else tag_of(mark[0]), []).append(mark)
        failure: StoreUnavailableError | None = None
        for tag, group in groups.items():
            for start in range(0, len(group), _PIECE):
                piece = group[start : start + _PIECE]
                words: list[Word] = []
                for user, epoch in piece:
                    prefix = self._prefix(tag_of(user))
                    words += (prefix, user, epoch, marks[user, epoch])
                try:
                    await self._servers.of(tag).run_script(
                        scripts.MARK, *words, key=f"{self._prefix(tag)}h"
                    )
                except StoreUnavailableError as exc:  # another server may be there
                    failure = failure or exc
                    break
                for mark in piece:
                    del marks[mark]
        return failure
