"""From a file into Redis: a page must not notice on which store it is."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bridge.core.message import Message
from bridge.core.redis_address import parse_redis
from bridge.errors import MigrationRefusedError, StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.migration.migrate import MigrationResult, migrate
from bridge.inbox.migration.model import MigrationBatch, MigrationTotals, SourceIdentity
from bridge.inbox.redis.migration_target import RedisTarget
from bridge.inbox.redis.store import RedisInbox
from bridge.inbox.sqlite.migration_source import SqliteSource
from bridge.inbox.sqlite.store import SqliteInbox
from tests.inbox_files import Filling, fill
from tests.redis_server import RedisServer

RETENTION = Retention(max_messages=1000, max_age_s=1e6, dedupe_s=600)


class BrokenError(Exception):
    """Stands for an end in the middle."""


class Store:
    """One namespace on the server of this run."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.namespace = f"t{secrets.token_hex(4)}"
        self.address = parse_redis(server.url)

    def target(self) -> RedisTarget:
        """Return it as something to carry into."""
        return RedisTarget(self.address, RETENTION, namespace=self.namespace)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[RedisInbox]:
        """Open it as a bridge does."""
        inbox = RedisInbox(self.address, RETENTION, namespace=self.namespace)
        try:
            await inbox.open()
            yield inbox
        finally:
            await inbox.close()

    async def keys(self) -> list[str]:
        """Return the names of all keys."""
        found = await asyncio.to_thread(
            self.server.command, "KEYS", f"{self.namespace}/*"
        )
        return found.splitlines()


@pytest.fixture
def store(redis_server: RedisServer) -> Store:
    """Return a store that nobody has used."""
    return Store(redis_server)


def quiet(activity: str, done: MigrationTotals, totals: MigrationTotals) -> None:
    """Say nothing."""


async def carry_into(
    target: RedisTarget, path: Path, *, is_dry_run: bool = False
) -> MigrationResult:
    try:
        source = SqliteSource(str(path), dedupe_s=RETENTION.dedupe_s)
        return await migrate(source, target, is_dry_run=is_dry_run, on_progress=quiet)
    finally:
        await target.close()


@asynccontextmanager
async def both(
    path: Path, store: Store
) -> AsyncIterator[tuple[SqliteInbox, RedisInbox]]:
    """Open the file and what was carried from it."""
    ours = SqliteInbox(str(path), RETENTION)
    await ours.open()
    try:
        async with store.opened() as theirs:
            yield ours, theirs
    finally:
        await ours.close()


async def assert_the_same(path: Path, store: Store, *, users: int) -> None:
    """See that both stores tell the same of each user, to the last byte."""
    async with both(path, store) as (ours, theirs):
        for number in range(users):
            user = f"user-{number}"
            assert await theirs.state(user) == await ours.state(user)
            pages = [
                await inbox.read(user, after=0, max_messages=9999, max_bytes=1 << 30)
                for inbox in (ours, theirs)
            ]
            assert list(pages[0].messages) == list(pages[1].messages)
            assert replace(pages[0], messages=()) == replace(pages[1], messages=())


async def test_twenty_thousand_messages_arrive_and_positions_stay_valid(
    path: Path, store: Store
) -> None:
    """Epoch, offsets, marks, deadlines, data: all that a page's position is made of."""
    await fill(str(path), Filling(messages=20_000, users=200), RETENTION)

    result = await carry_into(store.target(), path)

    assert result.is_done
    assert (result.copied.users, result.copied.messages) == (200, 20_000)
    await assert_the_same(path, store, users=200)


async def test_the_new_store_goes_on_where_the_file_ended(
    path: Path, store: Store
) -> None:
    """The next offset follows, and an id that was seen in the file is one still."""
    async with file_opened(path) as inbox:
        first = [Message("ann", "m", b"%d" % n, 1e9, f"id-{n}") for n in range(3)]
        assert await inbox.append(first) == [1, 2, 3]

    await carry_into(store.target(), path)

    async with store.opened() as theirs:
        again = Message("ann", "m", b"2", 1e9, "id-2")
        fresh = Message("ann", "m", b"3", 1e9, "id-3")
        assert await theirs.append([again, fresh]) == [None, 4]


@asynccontextmanager
async def file_opened(path: Path) -> AsyncIterator[SqliteInbox]:
    inbox = SqliteInbox(str(path), replace(RETENTION, max_age_s=1e10))
    await inbox.open()
    try:
        yield inbox
    finally:
        await inbox.close()


@pytest.mark.parametrize("breaks_after", [1, 3])
async def test_an_interrupted_carry_goes_on_and_repeats_nothing(
    path: Path, store: Store, breaks_after: int
) -> None:
    """A batch may be there and not noted: that is what a kill -9 between the two leaves."""
    await fill(str(path), Filling(messages=5000, users=50), RETENTION)

    class Broken(RedisTarget):
        batch_count = 0

        async def write(self, batch: MigrationBatch) -> None:
            self.batch_count += 1
            if self.batch_count == breaks_after:
                await self._ask_many(self.commands_of(batch))
                raise BrokenError
            await super().write(batch)

    broken = store.target()
    broken.__class__ = Broken
    with pytest.raises(BrokenError):
        await carry_into(broken, path)
    result = await carry_into(store.target(), path)

    assert result.is_done
    assert result.is_resumed == (breaks_after > 1)
    await assert_the_same(path, store, users=50)


async def test_bridges_wait_until_all_is_there(path: Path, store: Store) -> None:
    """One that began too early would give out offsets that are taken."""
    await fill(str(path), Filling(messages=100, users=3), RETENTION)
    source = SqliteSource(str(path), dedupe_s=600)
    identity = source.open()
    source.close()
    target = store.target()
    await target.open()
    await target.begin(identity)
    try:
        with pytest.raises(StoreUnavailableError, match="bridge inbox carry"):
            async with store.opened():
                pass
    finally:
        await target.close()

    await carry_into(store.target(), path)

    async with store.opened() as inbox:
        assert (await inbox.state("user-1")).last > 0


async def test_a_store_with_inboxes_in_it_is_refused(path: Path, store: Store) -> None:
    """What is there would be lost or mixed; a bridge that only looked in leaves none."""
    await fill(str(path), Filling(messages=100, users=3), RETENTION)
    async with store.opened():
        pass
    assert not (await carry_into(store.target(), path, is_dry_run=True)).is_done
    async with store.opened() as inbox:
        await inbox.append([Message("bob", "m", b"1", time.time())])

    with pytest.raises(MigrationRefusedError, match="there are inboxes in it already"):
        await carry_into(store.target(), path)


async def test_a_file_that_was_used_again_since_is_refused(
    path: Path, store: Store
) -> None:
    """Half of one state and half of a later one are no state at all."""
    await fill(str(path), Filling(messages=100, users=3), RETENTION)
    await carry_into(store.target(), path)
    async with file_opened(path) as inbox:
        await inbox.append([Message("user-1", "m", b"1", time.time())])

    with pytest.raises(MigrationRefusedError, match="the file has changed"):
        await carry_into(store.target(), path)


async def test_of_two_carries_that_begin_at_once_one_is_refused(store: Store) -> None:
    """Both saw an empty store; the inboxes of two files in one would be no one's."""
    first, second = store.target(), store.target()
    ours, theirs = SourceIdentity("a" * 10, "1-2"), SourceIdentity("b" * 10, "1-2")
    try:
        for target in (first, second):
            await target.open()
        assert (await first.progress(ours), await second.progress(theirs)) == (0, 0)

        await first.begin(ours)
        with pytest.raises(MigrationRefusedError, match="of another file"):
            await second.begin(theirs)

        await first.begin(ours)  # as one that is resumed
        assert await first.progress(ours) == 0
    finally:
        for target in (first, second):
            await target.close()


async def test_a_bridge_that_writes_meanwhile_is_noticed(
    path: Path, store: Store
) -> None:
    """It was connected before the carry began; nothing else would tell."""
    await fill(str(path), Filling(messages=100, users=3), RETENTION)
    target = store.target()
    write = target.write

    async with store.opened() as inbox:

        async def write_late(batch: MigrationBatch) -> None:
            await inbox.append([Message("user-1", "m", b"mine", time.time())])
            await write(batch)

        target.write = write_late  # type: ignore[method-assign] # a bridge at the worst moment
        with pytest.raises(MigrationRefusedError, match="a bridge wrote into it"):
            await carry_into(target, path)


async def test_a_dry_run_leaves_no_key(path: Path, store: Store) -> None:
    """It is asked before anything is decided."""
    await fill(str(path), Filling(messages=100, users=3), RETENTION)

    result = await carry_into(store.target(), path, is_dry_run=True)

    assert result.source.messages == 100
    assert await store.keys() == []
