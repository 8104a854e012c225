"""The stores that every test of this folder is run against; a new one is added here."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from shutil import which
from typing import Any, Protocol

import pytest
import pytest_asyncio

from bridge.core.fence import Fence
from bridge.core.message import Message, Stored
from bridge.core.redis_address import parse_redis
from bridge.inbox.contract import Retention
from bridge.inbox.memory.store import MemoryInbox
from bridge.inbox.redis.store import RedisInbox
from bridge.inbox.sqlite.store import SqliteInbox
from tests.contract.inbox.files import Clock, Opened
from tests.redis_rights import documented_rights
from tests.redis_server import RedisServer, ValkeyServer

Inbox = MemoryInbox | RedisInbox | SqliteInbox


class MakeStore(Protocol):
    """How a test makes a store, not opened yet, which may use `folder` for its files."""

    def __call__(
        self, retention: Retention, *, now: Callable[[], float], folder: Path
    ) -> Inbox:
        """Make one."""


def memory(
    retention: Retention,
    *,
    now: Callable[[], float],
    folder: Path,  # noqa: ARG001 - as the others
) -> Inbox:
    """All of it in this process."""
    return MemoryInbox(retention, now=now)


def sqlite(retention: Retention, *, now: Callable[[], float], folder: Path) -> Inbox:
    """All of it in one file."""
    return SqliteInbox(str(folder / "inbox.sqlite3"), retention, now=now)


def sqlite_indexed(
    retention: Retention, *, now: Callable[[], float], folder: Path
) -> Inbox:
    """The same, but little waits in memory: what is read comes from the index."""
    path = str(folder / "inbox.sqlite3")
    return SqliteInbox(path, retention, now=now, round_entries=3)


class StepByStep(RedisInbox):
    """A Redis inbox whose live feed has arrived when `append` returns."""

    async def append(
        self, messages: Sequence[Message], *, fences: Sequence[Fence] = ()
    ) -> list[int | None]:
        """Append; what is pushed for it comes before the answer to the next question."""
        offsets = await super().append(messages, fences=fences)
        await self.check()
        return offsets


class RedisStores:
    """One server for the run; the stores on it are told apart by names in their folders."""

    url = ""

    def __call__(
        self, retention: Retention, *, now: Callable[[], float], folder: Path
    ) -> Inbox:
        """Make a store, or that of a folder which was copied, once more."""
        note = folder / "namespace"
        if not note.exists():
            note.write_text(token_hex(4))
        address = parse_redis(self.url)
        return StepByStep(address, retention, namespace=note.read_text(), now=now)


redis = RedisStores()
redis_cluster = RedisStores()
valkey = RedisStores()
has_valkey = which(ValkeyServer.program) is not None


@pytest.fixture(scope="session", autouse=True)
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Start what the redis stores are on: out of the box, with a user as documented."""
    folder = tmp_path_factory.mktemp("redis")
    with ExitStack() as stack:

        def start(name: str, kind: type[RedisServer], **options: str) -> RedisServer:
            starting = kind.started(folder / name, is_durable=False, options=options)
            return stack.enter_context(starting)

        server = start("one", RedisServer)
        redis.url = log_in(server)
        node = start("cluster", RedisServer, **{"cluster-enabled": "yes"})
        # ADDSLOTSRANGE is of Redis 7, and what is not a cluster here runs on 6.2 too.
        node.command("CLUSTER", "ADDSLOTS", *map(str, range(16384)))
        node.wait_until("cluster_state:ok", "CLUSTER", "INFO")
        more = documented_rights("In a cluster add ")
        redis_cluster.url = log_in(node, *more).replace("redis:", "redis+cluster:")
        if has_valkey:
            valkey.url = log_in(start("valkey", ValkeyServer))
        yield server


def log_in(server: RedisServer, *more: str) -> str:
    """Make a user as documented, and return the way in as that one."""
    # Stores of tests have namespaces of their own.
    words = ["on", ">secret", *documented_rights("user bridge "), "~*", "&*", *more]
    for word in words:  # Redis 6.2 does not know those of a cluster
        server.command("ACL", "SETUSER", "bridge", word)
    return f"redis://bridge:secret@{server.host}:{server.port}"


STORES: dict[str, MakeStore] = {
    "memory": memory,
    "sqlite": sqlite,
    "sqlite indexed": sqlite_indexed,
    "redis": redis,
    "redis cluster": redis_cluster,
}
if has_valkey:
    STORES["valkey"] = valkey


@dataclass
class Shelf:
    """A store with a clock that the test moves, and what its live feed has brought."""

    inbox: Inbox
    now_s: list[float]
    fed: list[Stored] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def later(self, seconds: float) -> None:
        """Let time go by."""
        self.now_s[0] += seconds

    def message(
        self,
        user: str,
        data: bytes,
        *,
        message_id: str | None = None,
        deadline_s: float | None = None,
    ) -> Message:
        """Return a message that is taken now."""
        return Message(user, "message", data, self.now_s[0], message_id, deadline_s)

    async def append(self, user: str, *data: bytes) -> list[int | None]:
        """Append one batch."""
        return await self.inbox.append([self.message(user, each) for each in data])

    async def read_all(self, user: str, *, after: int = 0) -> list[Stored]:
        """Read to the end, page by page."""
        found: list[Stored] = []
        while True:
            page = await self.inbox.read(
                user, after=after, max_messages=7, max_bytes=1 << 20
            )
            found += page.messages
            after = page.next_after
            if after >= page.last:
                return found


@pytest_asyncio.fixture(params=STORES)
async def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shelf]:
    """An empty store: 100 messages a user, 1,000 s a message, 60 s an id."""
    now_s = [1_000_000.0]
    retention = Retention(max_messages=100, max_age_s=1000, dedupe_s=60)
    make = STORES[str(request.param)]
    inbox = make(retention, now=lambda: now_s[0], folder=tmp_path)
    shelf = Shelf(inbox, now_s)

    def listen(batch: object) -> None:
        assert isinstance(batch, list)
        shelf.fed += batch
        shelf.batches.append(len(batch))

    inbox.subscribe(listen)
    await inbox.open()
    yield shelf
    await inbox.close()


# --- for what is special to files


@pytest.fixture
def clock() -> Clock:
    """Return a clock for all lives of a store."""
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the file will be."""
    return tmp_path / "inbox.sqlite3"


@pytest.fixture
def opened(path: Path, clock: Clock) -> Opened:
    """Return how to open the store once more, for as long as a block lasts."""
    retention = Retention(max_messages=100, max_age_s=1000, dedupe_s=60)

    @asynccontextmanager
    async def open_store(**options: Any) -> AsyncIterator[SqliteInbox]:
        inbox = SqliteInbox(str(path), retention, now=clock, **options)
        await inbox.open()
        try:
            yield inbox
        finally:
            await inbox.close()

    return open_store
