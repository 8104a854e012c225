"""The stores that the contract tests run against. Add a new store here."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from shutil import which
from typing import Any, Protocol

import pytest
import pytest_asyncio

from bridge.clock import SteadyClock
from bridge.core.fencing_token import FencingToken
from bridge.core.message import Message, Stored
from bridge.core.message_options import MessageOptions
from bridge.core.redis_address import parse_redis
from bridge.inbox.contract import Retention
from bridge.inbox.memory.store import MemoryInbox
from bridge.inbox.redis.store import RedisInbox
from bridge.inbox.sqlite.store import SqliteInbox
from tests.contract.inbox.files import Clock, OpenInbox
from tests.redis_rights import documented_rights
from tests.redis_server import RedisServer, ValkeyServer

Inbox = MemoryInbox | RedisInbox | SqliteInbox


class MakeStore(Protocol):
    """Creates a store without opening it; its files go into `folder`."""

    def __call__(
        self, retention: Retention, *, clock: SteadyClock, folder: Path
    ) -> Inbox:
        """Create the store."""


def memory(
    retention: Retention,
    *,
    clock: SteadyClock,
    folder: Path,  # noqa: ARG001 - the signature of MakeStore
) -> Inbox:
    """Create a store in memory."""
    return MemoryInbox(retention, clock=clock)


def sqlite(retention: Retention, *, clock: SteadyClock, folder: Path) -> Inbox:
    """Create a store in one file."""
    return SqliteInbox(str(folder / "inbox.sqlite3"), retention, clock=clock)


def sqlite_indexed(retention: Retention, *, clock: SteadyClock, folder: Path) -> Inbox:
    """Create a store in one file that indexes early, so reads use the index."""
    path = str(folder / "inbox.sqlite3")
    return SqliteInbox(path, retention, clock=clock, round_entries=3)


class SynchronousRedisInbox(RedisInbox):
    """A Redis inbox whose live feed has arrived when `append` returns."""

    async def append(
        self, messages: Sequence[Message], *, tokens: Sequence[FencingToken] = ()
    ) -> list[int | None]:
        """Append, and make a request: its reply follows the pushes of the append."""
        offsets = await super().append(messages, tokens=tokens)
        await self.check()
        return offsets


class RedisStores:
    """Creates stores on one server; each folder holds the namespace of its store."""

    url = ""

    def __call__(
        self, retention: Retention, *, clock: SteadyClock, folder: Path
    ) -> Inbox:
        """Create a store, or open the store of a copied folder again."""
        note = folder / "namespace"
        if not note.exists():
            note.write_text(token_hex(4))
        address = parse_redis(self.url)
        return SynchronousRedisInbox(
            address, retention, namespace=note.read_text(), clock=clock
        )


redis = RedisStores()
redis_cluster = RedisStores()
valkey = RedisStores()
has_valkey = which(ValkeyServer.program) is not None


@pytest.fixture(scope="session", autouse=True)
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Start the servers of the redis stores, with a user as documented."""
    folder = tmp_path_factory.mktemp("redis")
    with ExitStack() as stack:

        def start(name: str, kind: type[RedisServer], **options: str) -> RedisServer:
            starting = kind.started(folder / name, is_durable=False, options=options)
            return stack.enter_context(starting)

        server = start("one", RedisServer)
        redis.url = log_in(server)
        node = start("cluster", RedisServer, **{"cluster-enabled": "yes"})
        # Not ADDSLOTSRANGE, which needs Redis 7: these tests run on 6.2 as well.
        node.command("CLUSTER", "ADDSLOTS", *map(str, range(16384)))
        node.wait_until("cluster_state:ok", "CLUSTER", "INFO")
        more = documented_rights("In a cluster add ")
        redis_cluster.url = log_in(node, *more).replace("redis:", "redis+cluster:")
        if has_valkey:
            valkey.url = log_in(start("valkey", ValkeyServer))
        yield server


def log_in(server: RedisServer, *more: str) -> str:
    """Create a user as documented, and return a URL with its credentials."""
    # All keys and channels, because each test store has its own namespace.
    words = ["on", ">secret", *documented_rights("user bridge "), "~*", "&*", *more]
    for word in words:  # one by one: Redis 6.2 rejects those of a cluster
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
class StoreUnderTest:
    """A store with a clock that the test moves, and the messages of its live feed."""

    inbox: Inbox
    clock: Clock
    fed: list[Stored] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self.clock.now_s += seconds

    def message(
        self,
        user: str,
        data: bytes,
        *,
        message_id: str | None = None,
        deadline_s: float | None = None,
        key: str | None = None,
        retain: bool = False,
        clear: bool = False,
    ) -> Message:
        """Return a message that is received now."""
        options = None
        if key is not None:
            options = MessageOptions(key=key, is_retained=retain, is_cleared=clear)
        return Message(
            *(user, "message", data, self.clock.now_s, message_id, deadline_s),
            options=options,
        )

    async def append(self, user: str, *data: bytes) -> list[int | None]:
        """Append messages of one user as one batch."""
        return await self.inbox.append([self.message(user, each) for each in data])

    async def retained(
        self, user: str, *, after: int = 0, upto: int = 10**9, max_bytes: int = 1 << 20
    ) -> list[tuple[int, bytes]]:
        """Return offset and data of the newest message of each retained key."""
        found = await self.inbox.read_retained(
            user, after=after, upto=upto, max_bytes=max_bytes
        )
        return [(each.offset, each.message.data) for each in found]

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
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock
) -> AsyncIterator[StoreUnderTest]:
    """An empty store that keeps 100 messages per user for 1,000 s, and ids for 60 s."""
    retention = Retention(max_messages=100, max_age_s=1000, dedupe_s=60)
    make = STORES[str(request.param)]
    inbox = make(retention, clock=clock.steady, folder=tmp_path)
    store = StoreUnderTest(inbox, clock)

    def on_stored(batch: object) -> None:
        assert isinstance(batch, list)
        store.fed += batch
        store.batches.append(len(batch))

    inbox.subscribe(on_stored)
    await inbox.open()
    yield store
    await inbox.close()


# --- for tests of files


@pytest.fixture
def clock() -> Clock:
    """Return a clock that outlives a restart of the store."""
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of the file, which does not exist yet."""
    return tmp_path / "inbox.sqlite3"


@pytest.fixture
def open_inbox(path: Path, clock: Clock) -> OpenInbox:
    """Return a context manager that opens the file for the duration of a block."""
    retention = Retention(max_messages=100, max_age_s=1000, dedupe_s=60)

    @asynccontextmanager
    async def open_store(**options: Any) -> AsyncIterator[SqliteInbox]:
        inbox = SqliteInbox(str(path), retention, clock=clock.steady, **options)
        await inbox.open()
        try:
            yield inbox
        finally:
            await inbox.close()

    return open_store
