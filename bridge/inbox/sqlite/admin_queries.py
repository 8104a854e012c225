"""
What operators see of inboxes in a SQLite file, read beside the bridge's own reading.

A thread and a connection of its own, made when somebody looks for the first time: a
search through a million messages holds up neither the replay of a window nor an append.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from typing import Final, Protocol, TypeVar

from bridge.core.admin_views import InboxMatch, InboxSummary, KeptMessage, SearchResult
from bridge.errors import StoreUnavailableError
from bridge.inbox.sqlite.admin_reader import LookingDesk
from bridge.inbox.sqlite.worker_thread import Worker

T = TypeVar("T")

_WITHIN_S: Final = 30.0
_SIGHTINGS_MAX: Final = 100
# Messages that are looked at in one snapshot: so many that it takes a moment, no longer.
_PIECE_FIRST: Final = 1000
_PIECE_LEAST: Final = 50
_PIECE_MOST: Final = 20_000
_PIECE_S: Final = 0.05


class Inbox(Protocol):
    """The store whose file is looked at."""

    is_open: bool

    @property
    def description(self) -> str:
        """As BRIDGE_INBOX names it."""

    @property
    def epoch(self) -> str:
        """The life of the file."""

    def unwritten_mark(self, user: str) -> int:
        """Return a delivered mark that is not in the file yet."""


@dataclass(slots=True)
class _Hunt:
    """A search for one id among all users, which ends when it takes too long."""

    message_id: str
    until_s: float
    names: dict[str, None] = field(default_factory=dict)
    looked_at: int = 0
    is_complete: bool = True

    def goes_on(self) -> bool:
        """Whether there is time for another piece; if not, the search is incomplete."""
        if monotonic() > self.until_s or len(self.names) >= _SIGHTINGS_MAX:
            self.is_complete = False
        return self.is_complete


class SqliteAdminQueries:
    """A view of all inboxes in the file, as of the last commit."""

    def __init__(
        self, inbox: Inbox, desk: LookingDesk, *, search_within_s: float = 5.0
    ) -> None:
        """
        Look through `desk`, in a thread that begins with the first look.

        Args:
            inbox: Whose file it is.
            desk: Reads the file.
            search_within_s: How long a search without a user may take.

        """
        self._inbox = inbox
        self._desk = desk
        self._search_within_s = search_within_s
        self._worker = Worker(desk, name="inbox-looker", store=inbox.description)
        self._starting = asyncio.Lock()
        self._is_started = False

    async def close(self) -> None:
        """End the thread, if there is one."""
        async with self._starting:
            was_started, self._is_started = self._is_started, False
            if was_started:
                await self._worker.stop()

    async def users(
        self, *, prefix: str = "", after: str = "", limit: int
    ) -> Sequence[InboxSummary]:
        """
        Return up to `limit` users behind `after`, by name; all begin with `prefix`.

        Raises:
            StoreUnavailableError: If the file cannot be read now, here and below.

        """
        found = await self._look(
            lambda c: self._desk.users(
                c, prefix=prefix, after=after, limit=limit, epoch=self._inbox.epoch
            )
        )
        return [self._marked(each) for each in found]

    async def user(self, user: str) -> InboxSummary | None:
        """Return the inbox of `user`; ``None`` if there never was a message."""
        found = await self._look(
            lambda c: self._desk.user(c, user, epoch=self._inbox.epoch)
        )
        return self._marked(found) if found else None

    async def messages(
        self, user: str, *, before: int | None = None, limit: int, max_bytes: int = 0
    ) -> Sequence[KeptMessage]:
        """Return some messages of `user`, newest first, as memory_looking has it."""
        return await self._look(
            lambda c: self._desk.look(
                c, user, before=before, limit=limit, max_bytes=max_bytes
            )
        )

    async def find(self, message_id: str, *, user: str | None = None) -> SearchResult:
        """
        Find the messages with this id, of one user or of all.

        A search of all looks at every message, the newest first, and ends early when it
        has taken too long.
        """
        if user is not None:
            return await self._look(
                partial(self._desk.find_of, message_id=message_id, user=user)
            )
        hunt = _Hunt(message_id, until_s=monotonic() + self._search_within_s)
        await self._search_messages(hunt)
        await self._search_ids(hunt)
        sightings: list[InboxMatch] = []
        for name in hunt.names:
            found = await self.find(message_id, user=name)
            sightings += found.matches
        return SearchResult(sightings, hunt.looked_at, is_complete=hunt.is_complete)

    async def _search_messages(self, hunt: "_Hunt") -> None:
        """Look at every message, the newest first."""
        low, upto = await self._look(self._desk.span_of_seqs)
        rows = _PIECE_FIRST
        while upto >= low and upto > 0 and hunt.goes_on():
            began_s = monotonic()
            after = max(low - 1, upto - rows)
            found = await self._look(
                partial(
                    self._desk.users_with,
                    message_id=hunt.message_id,
                    seqs=(after, upto),
                )
            )
            hunt.names |= dict.fromkeys(found)
            hunt.looked_at += upto - after
            upto = after
            # Large messages take longer to walk over: fewer of them then.
            if monotonic() - began_s > _PIECE_S:
                rows = max(_PIECE_LEAST, rows // 2)
            else:
                rows = min(_PIECE_MOST, rows * 2)

    async def _search_ids(self, hunt: "_Hunt") -> None:
        """Look at the ids that are remembered, for longer than messages may be kept."""
        after: int | None = 0
        while after is not None and hunt.goes_on():
            found, after = await self._look(
                partial(
                    self._desk.users_that_had,
                    message_id=hunt.message_id,
                    after_id=after,
                    count=_PIECE_MOST,
                )
            )
            hunt.names |= dict.fromkeys(found)

    def _marked(self, found: InboxSummary) -> InboxSummary:
        state = found.state
        mark = min(
            max(self._inbox.unwritten_mark(found.user), state.delivered), state.last
        )
        return replace(found, state=replace(state, delivered=mark))

    async def _look(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            async with asyncio.timeout(_WITHIN_S):
                await self._start()
                return await self._worker.submit(work)
        except TimeoutError as exc:
            problem = f"it was not read within {_WITHIN_S:.0f} s"
            raise StoreUnavailableError(self._inbox.description, problem) from exc

    async def _start(self) -> None:
        async with self._starting:
            if not self._inbox.is_open:
                raise StoreUnavailableError(self._inbox.description, "it is not open")
            if not self._is_started:
                await self._worker.start()
                self._is_started = True
