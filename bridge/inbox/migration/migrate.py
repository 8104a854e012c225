"""
Carry all inboxes from one store into another: read, put, note, compare.

What is put is noted with it, so that a carry that was killed goes on where it was. The
next load is read while one is being put; no more than these two are in memory.
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
from bridge.inbox.migration.model import Amount, Held, Load, Source, Target, Waybill

T = TypeVar("T")
Tell = Callable[[str, Amount, Amount], None]

_PUTTING: Final = "carried"
_COMPARING: Final = "compared"


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What a carry came to.

    Attributes:
        epoch: The life that positions name, before and after.
        there: What the source holds.
        put: What was put now; less than `there` if an earlier carry had put the rest.
        is_resumed: Whether an interrupted carry went on.
        is_done: Whether the target holds all of it now, compared inbox by inbox.

    """

    epoch: str
    there: Amount
    put: Amount
    is_resumed: bool
    is_done: bool


async def carry(
    source: Source, target: Target, *, is_dry_run: bool, tell: Tell
) -> Outcome:
    """
    Carry all of `source` into `target`, or go on with it.

    Args:
        source: Held until this returns.
        target: Empty, or with an interrupted carry of this very source in it.
        is_dry_run: Only look whether it could be done, and count.
        tell: Called after each load with what is being done, how much of it is done and
            how much there is.

    Raises:
        MigrationRefusedError: If there is something else in `target`, or it does not hold
            the same in the end.
        StoreUnavailableError: If one of them cannot be had.

    Cancellation: what was put stays; doing it again goes on from there.

    """
    async with _opened(source) as (hands, waybill):
        there = await hands.do(source.amount)
        await target.open()
        after = await target.look(waybill)
        if after is None or is_dry_run:
            return Outcome(
                waybill.epoch, there, Amount(), bool(after), is_done=after is None
            )
        await target.begin(waybill)
        put = Amount()
        newest: str | None = None
        async for load in hands.each(partial(source.loads, after=after)):
            await target.put(load)
            put += _amount(load, newest)
            newest = load.portions[-1].inbox.user
            tell(_PUTTING, put, there)
        await _compare(hands, source, target, tell=partial(tell, _COMPARING))
        await target.finish(waybill)
        return Outcome(waybill.epoch, there, put, bool(after), is_done=True)


class _Hands:
    """One thread that does all that blocks, because a connection stays with its thread."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread

    async def do(self, work: Callable[[], T]) -> T:
        """Do one thing."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def each(self, begin: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """Yield what an iterator yields; the next one is fetched meanwhile."""
        loop = asyncio.get_running_loop()
        some = await self.do(begin)

        def fetch() -> "asyncio.Future[T | None]":
            return loop.run_in_executor(self._thread, lambda: next(some, None))

        coming = fetch()
        while (found := await coming) is not None:
            coming = fetch()
            yield found


@asynccontextmanager
async def _opened(source: Source) -> AsyncIterator[tuple[_Hands, Waybill]]:
    with ThreadPoolExecutor(1, thread_name_prefix="carry") as thread:
        hands = _Hands(thread)
        waybill = await hands.do(source.open)
        try:
            yield hands, waybill
        finally:
            await hands.do(source.close)  # after what the thread is at


def _amount(load: Load, before: str | None) -> Amount:
    """Count a load; an inbox that `before` it has begun is counted already."""
    users = [before, *(portion.inbox.user for portion in load.portions)]
    messages = [each.message for portion in load.portions for each in portion.messages]
    return Amount(
        users=sum(user != last for last, user in pairwise(users)),
        messages=len(messages),
        ids=sum(len(portion.ids) for portion in load.portions),
        bytes=sum(len(message.data) for message in messages),
    )


async def _compare(
    hands: _Hands,
    source: Source,
    target: Target,
    *,
    tell: Callable[[Amount, Amount], None],
) -> None:
    """
    See that the target holds each inbox as the source does.

    Raises:
        MigrationRefusedError: If one is not as it must be.

    """
    seen = Amount()
    async for some in hands.each(source.held):
        users = [each.inbox.user for each in some]
        for ours, theirs in zip(some, await target.held(users), strict=True):
            _see(target, ours, theirs)
        seen += Amount(len(some), sum(each.messages for each in some))
        tell(seen, seen)


def _see(target: Target, ours: Held, theirs: Held) -> None:
    if ours != theirs:
        raise MigrationRefusedError(
            target.description,
            f"it does not hold what was put into it: {theirs} instead of {ours}; "
            "empty it and begin again",
        )
