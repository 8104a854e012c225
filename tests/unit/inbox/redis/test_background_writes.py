"""Errands at a store in Redis: what is under way is waited for, what fails alone waits."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest

from bridge.errors import StoreUnavailableError
from bridge.inbox.redis.background_writes import Errands
from bridge.inbox.redis.encoding import TAGS, tag_of
from bridge.inbox.redis.servers import Servers
from tests.conftest import eventually

USERS = [f"user-{number}" for number in range(1200)]


class Kept:
    """A connection that notes which marks were written, when it may."""

    def __init__(self) -> None:
        self.written: dict[str, int] = {}
        self.forgotten: list[bytes] = []
        self.is_away = False
        self.is_asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def run_script(self, _script: object, *words: Any, key: object) -> None:
        """Answer the script MARK."""
        del key
        await self._answer()
        for place in range(0, len(words), 4):
            _, user, _, offset = words[place : place + 4]
            self.written[user] = offset

    async def ask(self, *words: Any) -> None:
        """Answer DEL."""
        await self._answer()
        self.forgotten += words[1:]

    async def _answer(self) -> None:
        self.is_asked.set()
        await self.may_answer.wait()
        if self.is_away:
            raise StoreUnavailableError("redis", "it is away")


class Several:
    """Servers that have the tags in turn."""

    def __init__(self, *all_kept: Kept) -> None:
        self.all: Sequence[Kept] = all_kept

    def of(self, tag: int) -> Kept:
        """Return whose tag it is."""
        return self.all[tag % len(self.all)]


@asynccontextmanager
async def running(servers: Several) -> AsyncIterator[Errands]:
    """Run errands as a bridge does."""
    errands = Errands(
        cast("Servers", servers), [str(n) for n in range(TAGS)].__getitem__
    )
    task = asyncio.create_task(errands.run())
    try:
        yield errands
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_the_last_marks_wait_for_those_that_are_under_way() -> None:
    """A bridge that leaves cuts its connections then; pages would get it all again."""
    kept = Kept()
    kept.may_answer.clear()
    async with running(Several(kept)) as errands:
        for user in USERS:
            errands.mark(user, "epoch", 1)
        await kept.is_asked.wait()

        finishing = asyncio.create_task(errands.finish())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not finishing.done()
        kept.may_answer.set()
        await finishing

        assert set(kept.written) == set(USERS)


async def test_marks_on_other_servers_do_not_wait_for_one_that_is_away() -> None:
    """Each master of a cluster can be away alone; what others have is theirs to keep."""
    away, there = Kept(), Kept()
    away.is_away = True
    async with running(Several(away, there)) as errands:
        for user in USERS:
            errands.mark(user, "epoch", 1)
        errands.forget_trial(b"key")
        with pytest.raises(StoreUnavailableError):
            await errands.finish()

        mine = {user for user in USERS if tag_of(user) % 2}
        assert set(there.written) == mine
        assert all(
            (errands.unwritten_mark(user, "epoch") == 1) is (user not in mine)
            for user in USERS
        )

        away.is_away = False
        await eventually(lambda: set(away.written) == set(USERS) - mine)
        assert len(away.forgotten) == 1
