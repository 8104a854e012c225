"""
Copy all inboxes from a file into another store: read, write, record progress, compare.

Progress is recorded with each batch, so a migration that was killed continues where it
was. The next batch is read while one is written; memory holds at most these two.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final, TypeVar

from bridge.errors import MigrationRefusedError
from bridge.inbox.migration.model import (
    MigrationBatch,
    MigrationTarget,
    MigrationTotals,
    SourceIdentity,
)
from bridge.inbox.sqlite.migration_source import SqliteSource

T = TypeVar("T")
# Receives the activity, how much of it is done, and how much there is to do.
OnProgress = Callable[[str, MigrationTotals, MigrationTotals], None]

_COPYING: Final = "copied"
_COMPARING: Final = "compared"


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """
    The result of a migration.

    Attributes:
        epoch: The epoch of positions, the same before and after.
        source: What the source holds.
        copied: What this run has copied; less than `source` if an earlier run has copied
            the rest.
        is_resumed: Whether this run has continued an interrupted one.
        is_done: Whether the target holds all inboxes now, compared one by one.

    """

    epoch: str
    source: MigrationTotals
    copied: MigrationTotals
    is_resumed: bool
    is_done: bool


async def migrate(
    source: SqliteSource,
    target: MigrationTarget,
    *,
    is_dry_run: bool,
    on_progress: OnProgress,
) -> MigrationResult:
    """
    Copy `source` into `target`, or continue an interrupted copy.

    Args:
        source: Stays locked until this returns.
        target: Empty, or holding an interrupted copy of the same source.
        is_dry_run: Only check whether a migration is possible, and count.
        on_progress: Called after each batch.

    Raises:
        MigrationRefusedError: If `target` holds anything else, or the comparison fails.
        StoreUnavailableError: If one of the stores cannot be used.

    Cancellation: batches that were written stay; another run continues after them.

    """
    async with _opened(source) as (thread, identity):
        totals = await thread.run(source.totals)
        await target.open()
        after = await target.progress(identity)
        copied = MigrationTotals()
        if after is not None and not is_dry_run:
            await target.begin(identity)
            last_user: str | None = None
            async for batch in thread.iterate(partial(source.batches, after=after)):
                await target.write(batch)
                copied += _totals(batch, last_user)
                last_user = batch.parts[-1].inbox.user
                on_progress(_COPYING, copied, totals)
            await _compare(thread, source, target, partial(on_progress, _COMPARING))
            await target.write_revocations(await thread.run(source.revocations))
            async for receipts in thread.iterate(source.receipts):
                await target.write_receipts(receipts)
            await target.write_events(await thread.run(source.events))
            await target.finish(identity)
    return MigrationResult(
        identity.epoch,
        totals,
        copied,
        is_resumed=bool(after),
        is_done=after is None or not is_dry_run,
    )


class _SourceThread:
    """The one thread that calls the source: a SQLite connection belongs to a thread."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def iterate(self, begin: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """Yield the items of an iterator, fetching the next one meanwhile."""
        loop = asyncio.get_running_loop()
        items = await self.run(begin)

        def fetch() -> "asyncio.Future[T | None]":
            return loop.run_in_executor(self._executor, lambda: next(items, None))

        following = fetch()
        while (item := await following) is not None:
            following = fetch()
            yield item


@asynccontextmanager
async def _opened(
    source: SqliteSource,
) -> AsyncIterator[tuple[_SourceThread, SourceIdentity]]:
    with ThreadPoolExecutor(1, thread_name_prefix="migration") as executor:
        thread = _SourceThread(executor)
        identity = await thread.run(source.open)
        try:
            yield thread, identity
        finally:
            await thread.run(source.close)  # after a fetch that is still running


def _totals(batch: MigrationBatch, last_user: str | None) -> MigrationTotals:
    """Count a batch; an inbox that the previous batch began is already counted."""
    users = [last_user, *(part.inbox.user for part in batch.parts)]
    messages = [each.message for part in batch.parts for each in part.messages]
    return MigrationTotals(
        users=sum(user != previous for previous, user in pairwise(users)),
        messages=len(messages),
        ids=sum(len(part.ids) for part in batch.parts),
        bytes=sum(len(message.data) for message in messages),
    )


async def _compare(
    thread: _SourceThread,
    source: SqliteSource,
    target: MigrationTarget,
    on_progress: Callable[[MigrationTotals, MigrationTotals], None],
) -> None:
    """Raise MigrationRefusedError unless both stores hold the same inboxes."""
    compared = MigrationTotals()
    async for group in thread.iterate(source.counts):
        users = [each.inbox.user for each in group]
        for expected, found in zip(group, await target.counts(users), strict=True):
            if expected != found:
                raise MigrationRefusedError(
                    target.description,
                    f"it differs from what was copied into it: {found} instead of "
                    f"{expected}; empty it and start again",
                )
        compared += MigrationTotals(len(group), sum(each.messages for each in group))
        on_progress(compared, compared)
