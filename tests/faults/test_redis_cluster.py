"""A cluster of three masters: migrations into it, and slots that move while bridges work."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
)
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.core.redis_address import parse_redis
from bridge.errors import StoreUnavailableError
from bridge.inbox.migration.migrate import MigrationResult, migrate
from bridge.inbox.migration.model import MigrationBatch, MigrationTotals
from bridge.inbox.redis.encoding import slot_of_tag, tag_names, tag_of
from bridge.inbox.redis.migration_target import RedisTarget
from bridge.inbox.redis.timing import DEFAULT_TIMING, RedisTiming
from bridge.inbox.sqlite.migration_source import SqliteSource
from bridge.inbox.sqlite.store import SqliteInbox
from tests.conftest import eventually
from tests.inbox_files import Filling, fill
from tests.redis_bridges import RETENTION, BridgeInbox, bridge_on, of_each
from tests.redis_fleet_servers import SlotMove, join_cluster
from tests.redis_server import RedisServer

TAG = 7
FILLING = Filling(messages=2000, users=60)


@dataclass(frozen=True, slots=True)
class Cluster:
    """The masters, and an unused namespace."""

    masters: Sequence[RedisServer]
    namespace: str

    @property
    def url(self) -> str:
        """The URL of one master, which reports the others."""
        return f"redis+cluster://127.0.0.1:{self.masters[1].port}"

    def bridge(
        self, timing: RedisTiming = DEFAULT_TIMING
    ) -> AbstractAsyncContextManager[BridgeInbox]:
        """Open the store as a bridge does."""
        return bridge_on(self.url, namespace=self.namespace, timing=timing)


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    options = {"cluster-enabled": "yes", "cluster-node-timeout": "2000"}
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                RedisServer.started(folder / str(number), options=options)
            )
            for number in range(3)
        ]
        join_cluster(nodes)
        yield nodes


@pytest.fixture
def cluster(masters: list[RedisServer]) -> Cluster:
    return Cluster(masters, f"t{secrets.token_hex(4)}")


def users_of(tag: int, count: int) -> list[str]:
    """Return `count` users with this tag."""
    names = (f"user-{number}" for number in range(1_000_000))
    found = (name for name in names if tag_of(name) == tag)
    return [next(found) for _ in range(count)]


@asynccontextmanager
async def appended_to(
    bridge: BridgeInbox, users: Sequence[str]
) -> AsyncIterator[list[int]]:
    """Append increasing numbers to all users while the block lasts; yield the stored ones."""
    numbers: list[int] = []
    is_over = asyncio.Event()

    async def work() -> None:
        while not is_over.is_set():
            await bridge.append(of_each(users, b"%d" % len(numbers)))
            numbers.append(len(numbers))
            await asyncio.sleep(0.005)  # enough load to have batches in flight

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(work(), name="appending")
        try:
            yield numbers
        finally:
            is_over.set()


async def texts_eventually(bridge: BridgeInbox, user: str) -> list[bytes]:
    """Read all messages, as soon as the bridge has found the master."""
    found: list[bytes] = []

    async def is_read() -> bool:
        try:
            found[:] = await bridge.texts(user)
        except StoreUnavailableError:
            return False
        return True

    await eventually(is_read)
    return found


async def test_a_slot_may_move_while_a_bridge_works(cluster: Cluster) -> None:
    """
    While keys are on both masters its users wait; then each message is stored once.

    Clients are not notified, because the other master is durable as well.
    """
    moving, staying = users_of(TAG, 4), users_of(TAG + 100, 2)
    users = [*moving, *staying]
    move = SlotMove.of_slot(slot_of_tag(tag_names()[TAG]), cluster.masters)
    async with cluster.bridge() as bridge, cluster.bridge() as other:
        for user in users:
            await other.inbox.follow(user)
        async with appended_to(bridge, users) as numbers:
            await eventually(lambda: len(numbers) > 5)

            await asyncio.to_thread(move.begin)
            await asyncio.to_thread(move.move_keys, "*}:m:*")
            await eventually(lambda: "TRYAGAIN" in str(bridge.inbox.problem))
            before = len(numbers)
            with pytest.raises(StoreUnavailableError):
                await other.texts(moving[0])
            assert await other.texts(staying[0])

            await asyncio.to_thread(move.end)
            await eventually(lambda: len(numbers) > before + 5)

        wanted = [b"%d" % number for number in numbers]
        for user in users:
            assert await texts_eventually(other, user) == wanted
            # The feed may have a gap, which rooms detect and fill; the newest must arrive.
            heard = [each.offset for each in other.fed if each.message.user == user]
            assert heard == sorted(set(heard))
        await eventually(
            lambda: {other.received(user)[-1] for user in users} == {wanted[-1]}
        )
        assert bridge.renewed == other.renewed == []


async def test_a_bridge_that_only_subscribes_follows_a_slot_that_moved(
    cluster: Cluster,
) -> None:
    """It sends no commands that could get MOVED; the old master ends its subscriptions."""
    timing = RedisTiming(discovery_interval_s=600.0)
    (user,) = users_of(TAG + 1, 1)
    move = SlotMove.of_slot(slot_of_tag(tag_names()[TAG + 1]), cluster.masters)
    async with cluster.bridge(timing) as listening:
        await listening.inbox.follow(user)
        await asyncio.to_thread(move.begin)
        await asyncio.to_thread(move.end)

        async with cluster.bridge() as bridge:
            await bridge.append(of_each([user], b"1"))

        await eventually(lambda: listening.received(user) == [b"1"])


# --- migration into a cluster


class BrokenError(Exception):
    """Stands for a crash in the middle of a migration."""


class Broken(RedisTarget):
    """Crashes after it has written the second batch without recording it."""

    batch_count = 0

    async def write(self, batch: MigrationBatch) -> None:
        """Write a batch, or crash."""
        self.batch_count += 1
        if self.batch_count == 2:
            await self._ask_many(self.commands_of(batch))
            raise BrokenError
        await super().write(batch)


def quiet(activity: str, done: MigrationTotals, totals: MigrationTotals) -> None:
    """Report no progress."""


async def migrate_into(target: RedisTarget, path: Path) -> MigrationResult:
    try:
        source = SqliteSource(str(path), dedupe_s=RETENTION.dedupe_s)
        return await migrate(source, target, is_dry_run=False, on_progress=quiet)
    finally:
        await target.close()


async def test_a_file_is_migrated_into_a_cluster(
    cluster: Cluster, tmp_path: Path
) -> None:
    """An interrupted migration resumes; until it is complete no node admits a bridge."""
    path = tmp_path / "inbox.sqlite3"
    await fill(str(path), FILLING, RETENTION)

    def target() -> RedisTarget:
        address = parse_redis(cluster.url)
        return RedisTarget(address, namespace=cluster.namespace)

    broken = target()
    broken.__class__ = Broken
    with pytest.raises(BrokenError):
        await migrate_into(broken, path)
    with pytest.raises(StoreUnavailableError, match="bridge inbox migrate"):
        async with cluster.bridge():
            pass
    result = await migrate_into(target(), path)

    assert result.is_done
    assert result.is_resumed
    assert 0 < result.copied.messages < result.source.messages
    file = SqliteInbox(str(path), RETENTION)
    await file.open()
    try:
        async with cluster.bridge() as bridge:
            for user in (f"user-{number}" for number in range(FILLING.users)):
                assert await bridge.inbox.state(user) == await file.state(user)
                page = await file.read(
                    user, after=0, max_messages=999, max_bytes=1 << 20
                )
                ours = [stored.message.data for stored in page.messages]
                assert await bridge.texts(user) == ours
            state = await file.state("user-0")
            (offset,) = await bridge.append(of_each(["user-0"], b"next"))
            assert offset == state.last + 1
    finally:
        await file.close()
    sizes = [await asyncio.to_thread(m.command, "DBSIZE") for m in cluster.masters]
    assert all(size != ":0" for size in sizes)
