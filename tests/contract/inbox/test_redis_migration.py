"""Migration from a file into Redis: clients must not notice it."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridge.core.message import Message
from bridge.core.message_options import MessageOptions, Tracking
from bridge.core.receipts import WorkerEvent
from bridge.core.redis_address import parse_redis
from bridge.errors import MigrationRefusedError, StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.migration.migrate import MigrationResult, migrate
from bridge.inbox.migration.model import MigrationBatch, MigrationTotals, SourceIdentity
from bridge.inbox.redis.migration_target import RedisTarget
from bridge.inbox.redis.store import RedisInbox
from bridge.inbox.sqlite.migration_source import SqliteSource
from bridge.inbox.sqlite.store import SqliteInbox
from tests.conftest import eventually
from tests.contract.inbox.files import Clock, OpenInbox
from tests.inbox_files import Filling, fill
from tests.redis_server import RedisServer

RETENTION = Retention(max_messages=1000, max_age_s=1e6, dedupe_s=600)


class BrokenError(Exception):
    """Stands for a crash in the middle of a migration."""


class Store:
    """An unused namespace on the server of this run."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.namespace = f"t{secrets.token_hex(4)}"
        self.address = parse_redis(server.url)

    def target(self) -> RedisTarget:
        """Return the store as the target of a migration."""
        return RedisTarget(self.address, namespace=self.namespace)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[RedisInbox]:
        """Open the store as a bridge does."""
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
    """Return an unused store."""
    return Store(redis_server)


def quiet(activity: str, done: MigrationTotals, totals: MigrationTotals) -> None:
    """Report no progress."""


async def migrate_into(
    target: RedisTarget, path: Path, *, is_dry_run: bool = False
) -> MigrationResult:
    try:
        source = SqliteSource(str(path), dedupe_s=RETENTION.dedupe_s)
        return await migrate(source, target, is_dry_run=is_dry_run, on_progress=quiet)
    finally:
        await target.close()


@asynccontextmanager
async def both_open(
    path: Path, store: Store
) -> AsyncIterator[tuple[SqliteInbox, RedisInbox]]:
    """Open the file and the store that it was migrated into."""
    ours = SqliteInbox(str(path), RETENTION)
    await ours.open()
    try:
        async with store.opened() as theirs:
            yield ours, theirs
    finally:
        await ours.close()


async def assert_the_same(path: Path, store: Store, *, users: int) -> None:
    """Check that both stores return the same for each user, to the last byte."""
    async with both_open(path, store) as (ours, theirs):
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
    """Epoch, offsets, marks, deadlines and data are the same."""
    await fill(str(path), Filling(messages=20_000, users=200), RETENTION)

    result = await migrate_into(store.target(), path)

    assert result.is_done
    assert (result.copied.users, result.copied.messages) == (200, 20_000)
    await assert_the_same(path, store, users=200)


async def test_the_new_store_continues_where_the_file_ended(
    path: Path, store: Store
) -> None:
    """The next offset follows, and an id from the file is still a duplicate."""
    async with file_opened(path) as inbox:
        first = [Message("ann", "m", b"%d" % n, 1e9, f"id-{n}") for n in range(3)]
        assert await inbox.append(first) == [1, 2, 3]

    await migrate_into(store.target(), path)

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
async def test_an_interrupted_migration_resumes_without_duplicates(
    path: Path, store: Store, breaks_after: int
) -> None:
    """After kill -9 a batch may be written without being recorded."""
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
        await migrate_into(broken, path)
    result = await migrate_into(store.target(), path)

    assert result.is_done
    assert result.is_resumed == (breaks_after > 1)
    await assert_the_same(path, store, users=50)


async def test_bridges_wait_until_the_migration_is_complete(
    path: Path, store: Store
) -> None:
    """A bridge that starts too early would assign offsets that are taken."""
    await fill(str(path), Filling(messages=100, users=3), RETENTION)
    source = SqliteSource(str(path), dedupe_s=600)
    identity = source.open()
    source.close()
    target = store.target()
    await target.open()
    await target.begin(identity)
    try:
        with pytest.raises(StoreUnavailableError, match="bridge inbox migrate"):
            async with store.opened():
                pass
    finally:
        await target.close()

    await migrate_into(store.target(), path)

    async with store.opened() as inbox:
        assert (await inbox.state("user-1")).last > 0


async def test_a_store_with_inboxes_in_it_is_refused(path: Path, store: Store) -> None:
    """Its messages would be mixed; a bridge that stored nothing leaves an empty store."""
    await fill(str(path), Filling(messages=100, users=3), RETENTION)
    async with store.opened():
        pass
    assert not (await migrate_into(store.target(), path, is_dry_run=True)).is_done
    async with store.opened() as inbox:
        await inbox.append([Message("bob", "m", b"1", time.time())])

    with pytest.raises(MigrationRefusedError, match="it already contains inboxes"):
        await migrate_into(store.target(), path)


async def test_a_file_that_has_changed_since_is_refused(
    path: Path, store: Store
) -> None:
    """Half of it would be from the earlier state, and half from the later one."""
    await fill(str(path), Filling(messages=100, users=3), RETENTION)
    await migrate_into(store.target(), path)
    async with file_opened(path) as inbox:
        await inbox.append([Message("user-1", "m", b"1", time.time())])

    with pytest.raises(MigrationRefusedError, match="the file has changed"):
        await migrate_into(store.target(), path)


async def test_of_two_simultaneous_migrations_one_is_refused(store: Store) -> None:
    """Both saw an empty store; together they would mix the inboxes of two files."""
    first, second = store.target(), store.target()
    ours, theirs = SourceIdentity("a" * 10, "1-2"), SourceIdentity("b" * 10, "1-2")
    try:
        for target in (first, second):
            await target.open()
        assert (await first.progress(ours), await second.progress(theirs)) == (0, 0)

        await first.begin(ours)
        with pytest.raises(MigrationRefusedError, match="of another file"):
            await second.begin(theirs)

        await first.begin(ours)  # a migration that is resumed does the same
        assert await first.progress(ours) == 0
    finally:
        for target in (first, second):
            await target.close()


async def test_a_bridge_that_writes_during_the_migration_is_noticed(
    path: Path, store: Store
) -> None:
    """It connected before the migration began, so it was not kept out."""
    await fill(str(path), Filling(messages=100, users=3), RETENTION)
    target = store.target()
    write = target.write

    async with store.opened() as inbox:

        async def write_late(batch: MigrationBatch) -> None:
            await inbox.append([Message("user-1", "m", b"mine", time.time())])
            await write(batch)

        target.write = write_late  # type: ignore[method-assign] # a bridge that writes at the worst moment
        with pytest.raises(MigrationRefusedError, match="a bridge wrote into it"):
            await migrate_into(target, path)


async def test_a_dry_run_writes_no_key(path: Path, store: Store) -> None:
    """Operators use it before they decide."""
    await fill(str(path), Filling(messages=100, users=3), RETENTION)

    result = await migrate_into(store.target(), path, is_dry_run=True)

    assert result.source.messages == 100
    assert await store.keys() == []


async def test_positions_of_forgotten_users_stay_invalid(
    path: Path, store: Store, open_inbox: OpenInbox, clock: Clock
) -> None:
    """Of users who came back before the copy, and of those who come back later."""
    async with open_inbox() as inbox:
        await inbox.append([Message(f"user-{n}", "m", b"1", clock()) for n in range(2)])
        clock.now_s += 1001
        await inbox.sweep()
        await inbox.append([Message("user-0", "m", b"2", clock())])

    await migrate_into(store.target(), path)

    async with both_open(path, store) as (_, theirs):
        states = [await theirs.state(f"user-{n}") for n in range(2)]
    assert [state.forgotten for state in states] == [1024, 1024]
    assert [state.last for state in states] == [1025, 1024]


async def test_messages_with_keys_are_copied(
    path: Path, store: Store, open_inbox: OpenInbox
) -> None:
    """Their holes stay, and newer messages replace them in the new store."""

    def message(data: bytes, key: str | None = None) -> Message:
        options = None if key is None else MessageOptions(key=key)
        return Message("ann", "m", data, time.time(), options=options)

    async with open_inbox() as inbox:
        await inbox.append([message(b"1"), message(b"2")])
        await inbox.append([message(b"3", "k"), message(b"4", "l"), message(b"5")])
        await inbox.append([message(b"6", "k")])
        old = await inbox.state("ann")

    await migrate_into(store.target(), path)

    async with both_open(path, store) as (_, theirs):
        assert await theirs.state("ann") == old
        await theirs.append([message(b"7", "l")])
        page = await theirs.read("ann", after=0, max_messages=9, max_bytes=1000)
        found = [(each.offset, each.message.data) for each in page.messages]
        assert found == [(1, b"1"), (2, b"2"), (5, b"5"), (6, b"6"), (7, b"7")]
        assert page.gone == 0


async def test_retained_keys_are_copied(
    path: Path, store: Store, open_inbox: OpenInbox
) -> None:
    """Also those whose message was deleted from the inbox; all can be cleared."""

    def message(data: bytes, key: str, **flags: Any) -> Message:
        options = MessageOptions(key=key, **flags)
        return Message("ann", "m", data, time.time(), options=options)

    async with open_inbox() as inbox:
        await inbox.append([message(b"old", "k", is_retained=True)])
        for number in range(120):
            await inbox.append([message(b"x", f"{number}")])
        await inbox.append([message(b"1", "l", is_retained=True), message(b"2", "l")])
        await inbox.append([message(b"3", "j", is_retained=True)])
        await inbox.append([message(b"4", "j", is_cleared=True)])
        await inbox.sweep()
        old = await inbox.state("ann")
        span = {"after": 0, "upto": 200, "max_bytes": 1000}
        before = await inbox.read_retained("ann", **span)
    expected = [(each.offset, each.message.data) for each in before]
    assert [data for _, data in expected] == [b"old", b"2"]

    await migrate_into(store.target(), path)

    async with both_open(path, store) as (_, theirs):
        theirs.retention = replace(RETENTION, max_messages=100)
        assert await theirs.state("ann") == old
        after = await theirs.read_retained("ann", **span)
        assert [(each.offset, each.message.data) for each in after] == expected
        await theirs.append([message(b"new", "k"), message(b"5", "l", is_cleared=True)])
        (found,) = await theirs.read_retained("ann", **span)
        assert (found.offset, found.message.data) == (126, b"new")


async def test_receipts_and_events_are_copied(
    path: Path, store: Store, open_inbox: OpenInbox
) -> None:
    """What workers wait for is told by the new store."""
    tracking = Tracking(wants_receipt=True, reply_to="r", undelivered_after_s=3600.0)
    options = MessageOptions(tracking=tracking)
    message = Message("ann", "m", b"1", time.time(), "m1", options=options)
    async with open_inbox() as inbox:
        await inbox.append([message])
        (receipt,) = await inbox.admin.open_receipts("ann", "m1")
        for number in range(2):
            event = WorkerEvent(f"{number}", "user.online", "ann", b"{}", number)
            await inbox.add_event(event)

    class Broken(RedisTarget):
        async def finish(self, source: SourceIdentity) -> None:
            del source
            raise BrokenError

    broken = store.target()
    broken.__class__ = Broken
    with pytest.raises(BrokenError):
        await migrate_into(broken, path)
    await migrate_into(store.target(), path)

    async with store.opened() as theirs:
        found = [each.id for each in await theirs.pending_events(9)]
        assert found == ["0", "1"]
        await theirs.follow("ann")
        await theirs.read("ann", after=0, max_messages=9, max_bytes=1000)
        theirs.mark_delivered("ann", 1)

        async def is_told() -> bool:
            events = await theirs.pending_events(9)
            return f"{receipt.id}.delivered" in [each.id for each in events]

        await eventually(is_told)
