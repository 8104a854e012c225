"""
A store that cannot be written: nothing half stored, a sentence that helps, and no restart.

Each fault is a real one: a limit on files, a lock, bytes on the disk. While it lasts,
appends fail with StoreUnavailableError, which the pump waits out, and reading goes on if
it can; when it is mended, appends go on by themselves and no offset is missing.
"""

import asyncio
import os
import resource
import sqlite3
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from bridge.core.message import Message
from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.sqlite.file import StoreFile
from bridge.inbox.sqlite.store import SqliteInbox
from tests.conftest import eventually

RETENTION = Retention(max_messages=10_000, max_age_s=1e10, dedupe_s=60)
_NOBODY = 65534


def message(data: bytes) -> Message:
    """Return a message for alice."""
    return Message("alice", "message", data, 1_000_000.0)


def store(path: Path) -> SqliteInbox:
    """Return the store at `path`, not opened yet."""
    return SqliteInbox(str(path), RETENTION)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the file is."""
    return tmp_path / "inbox.sqlite3"


@pytest_asyncio.fixture
async def inbox(path: Path) -> AsyncIterator[SqliteInbox]:
    """Yield an open store with one message for alice."""
    inbox = store(path)
    await inbox.open()
    await inbox.append([message(b"first")])
    yield inbox
    await inbox.close()


async def assert_it_goes_on(inbox: SqliteInbox) -> None:
    """Nothing of what failed was stored; what comes now is, without a hole."""
    await eventually(lambda: inbox.problem is None)
    assert await inbox.append([message(b"second")]) == [2]
    page = await inbox.read("alice", after=0, max_messages=9, max_bytes=1 << 20)
    assert [each.message.data for each in page.messages] == [b"first", b"second"]


# --- no room


@contextmanager
def no_file_grows() -> Iterator[None]:
    """Let this process write to no place in a file where it has not written before."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_no_room_for_a_commit_is_waited_out(inbox: SqliteInbox) -> None:
    """A write of the log fails, half way for all we know."""
    big = [message(b"x" * 10_000) for _ in range(20)]
    with no_file_grows():
        for _ in range(3):
            with pytest.raises(StoreUnavailableError):
                await inbox.append(big)
        assert inbox.problem is not None
        assert (await inbox.state("alice")).last == 1
        with pytest.raises(StoreUnavailableError):
            await inbox.check()

    await assert_it_goes_on(inbox)


async def test_a_full_disk_is_called_by_its_name(inbox: SqliteInbox) -> None:
    """SQLite's own word for it, made by its own limit."""

    def limit(pages: int) -> Callable[[sqlite3.Connection], object]:
        return lambda connection: connection.execute(
            f"PRAGMA max_page_count = {pages}"
        ).fetchone()

    await inbox._writer_thread.submit(limit(1))
    with pytest.raises(StoreUnavailableError, match="the disk is full"):
        await inbox.append([message(b"x" * 10_000) for _ in range(20)])
    assert inbox.problem == "the disk is full (SQLITE_FULL)"
    assert (await inbox.state("alice")).last == 1

    await inbox._writer_thread.submit(limit(1_000_000))
    await assert_it_goes_on(inbox)


async def test_marks_wait_for_room_too(inbox: SqliteInbox, path: Path) -> None:
    """They count meanwhile, and are written when they can be."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        inbox.mark_delivered("alice", 1)
        await eventually(lambda: inbox.problem)
        assert (await inbox.state("alice")).delivered == 1
        other.execute("ROLLBACK")

        await eventually(lambda: inbox.problem is None)
        assert other.execute("SELECT marks FROM marks").fetchall() == [(b"[[1,1]]",)]


# --- others who want it


async def test_a_lock_of_another_process_is_waited_out(
    inbox: SqliteInbox, path: Path
) -> None:
    """An operator's tool, or a backup."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match="another process has locked"):
            await inbox.append([message(b"x")])
        assert (await inbox.state("alice")).last == 1
        other.execute("ROLLBACK")

    await assert_it_goes_on(inbox)


async def test_two_bridges_cannot_share_a_file(inbox: SqliteInbox, path: Path) -> None:
    """They would give the same offsets to different messages."""
    second = store(path)
    with pytest.raises(StoreUnavailableError, match=f"process {os.getpid()}"):
        await second.open()

    await inbox.close()
    await second.open()
    await assert_it_goes_on(second)
    await second.close()


# --- the file is not what it was


async def test_a_file_that_is_no_database_is_left_as_it_is(path: Path) -> None:
    """Somebody may still want to look at it."""
    garbage = os.urandom(50_000)
    write(path, garbage)

    with pytest.raises(StoreUnavailableError, match="damaged, or no SQLite file"):
        await store(path).open()

    assert contents(path) == garbage


async def test_damage_within_the_file_is_told_and_not_made_worse(path: Path) -> None:
    """Also where the bridge would not look by itself: that is what the check is for."""
    inbox = store(path)
    await inbox.open()
    await inbox.append([message(b"x" * 1000) for _ in range(200)])
    await inbox.close()
    whole = contents(path)
    damaged = whole[:20_000] + b"\xff" * (len(whole) - 40_000) + whole[-20_000:]
    write(path, damaged)

    with pytest.raises(StoreUnavailableError, match="damaged"):
        await opened_and_used(path)

    assert is_there(path)


async def opened_and_used(path: Path) -> None:
    """Open, check and read it all, and close it whatever happens."""
    inbox = store(path)
    try:
        await inbox.open()
        await inbox.check()
    finally:
        await inbox.close()


@pytest.mark.parametrize("suffix", ["", "-wal", "-lock"])
async def test_a_file_that_goes_away_stops_appends_until_it_is_back(
    inbox: SqliteInbox, path: Path, suffix: str
) -> None:
    """What is written to a file without a name is gone when the bridge stops."""
    name = path.with_name(path.name + suffix)
    aside = path.with_name("aside")
    move(name, aside)
    with pytest.raises(StoreUnavailableError, match=f"{name.name} was deleted"):
        await inbox.append([message(b"x")])
    write(name, b"")
    with pytest.raises(StoreUnavailableError, match=f"{name.name} was replaced"):
        await inbox.append([message(b"x")])
    assert (await inbox.state("alice")).last == 1
    move(aside, name)

    await assert_it_goes_on(inbox)


# --- it cannot be had at all


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """And not made: it may be a disk that is not mounted."""
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        await store(tmp_path / "nowhere" / "inbox").open()


async def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    """A path with a slip of the pen."""
    with pytest.raises(ConfigError, match="is a folder"):
        await store(tmp_path).open()


async def test_a_start_that_failed_half_way_can_be_made_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had read back already must not be there twice."""
    async with opened(path) as inbox:
        await inbox.append([message(b"first"), message(b"second")])
    again = store(path)
    with monkeypatch.context() as patch:

        def fail(_file: StoreFile) -> sqlite3.Connection:
            raise StoreUnavailableError("sqlite:x", "the disk is full")

        patch.setattr(StoreFile, "connect_reader", fail)
        with pytest.raises(StoreUnavailableError, match="full"):
            await again.open()
    problems = [again.problem]

    async with opened(again):
        problems.append(again.problem)
        page = await again.read("alice", after=0, max_messages=9, max_bytes=1 << 20)
    assert [each.offset for each in page.messages] == [1, 2]
    assert problems == ["the disk is full", None]


async def test_a_file_that_is_moved_while_it_is_opened_is_not_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locked by one name and written by another, two bridges could share it."""
    prepare = StoreFile._prepare

    def prepare_and_lose(file: StoreFile, connection: sqlite3.Connection) -> None:
        prepare(file, connection)
        lock = path.with_name(f"{path.name}-lock")
        move(lock, path.with_name("aside"))
        write(lock, b"")

    inbox = store(path)
    with monkeypatch.context() as patch:
        patch.setattr(StoreFile, "_prepare", prepare_and_lose)
        with pytest.raises(
            StoreUnavailableError, match="moved while it was being opened"
        ):
            await inbox.open()

    async with opened(inbox):
        assert await inbox.append([message(b"first")]) == [1]


@asynccontextmanager
async def opened(which: Path | SqliteInbox) -> AsyncIterator[SqliteInbox]:
    """Open a store for the block."""
    inbox = store(which) if isinstance(which, Path) else which
    await inbox.open()
    yield inbox
    await inbox.close()


@contextmanager
def an_ordinary_user() -> Iterator[None]:
    """Be one whom permissions bind: root is not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_a_read_only_folder_is_told_and_nothing_is_left_open() -> None:
    """When it is mended, the next start has it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inbox = store(folder / "inbox")
        allow(folder, 0o555)
        with (
            an_ordinary_user(),
            pytest.raises(StoreUnavailableError, match="read-only for the bridge"),
        ):
            await inbox.open()
        await inbox.close()
        allow(folder, 0o755)

        await inbox.open()
        assert await inbox.append([message(b"first")]) == [1]
        await inbox.close()


async def test_a_read_only_file_is_told() -> None:
    """Written by another user, most likely."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "inbox"
        allow(file.parent, 0o777)
        inbox = store(file)
        await inbox.open()
        await inbox.close()
        for each in files(file.parent):
            allow(each, 0o444)
        allow(file.with_name("inbox-lock"), 0o666)
        with (
            an_ordinary_user(),
            pytest.raises(StoreUnavailableError, match="read-only"),
        ):
            await inbox.open()


# --- a disk that does not answer


async def test_a_disk_that_does_not_answer_is_reported(path: Path) -> None:
    """There is no error to wait for, so readiness must end without one."""
    inbox = SqliteInbox(str(path), RETENTION, read_timeout_s=0.05, stuck_s=0.05)
    await inbox.open()
    await inbox.append([message(b"first")])
    answer = threading.Event()
    for thread in (inbox._writer_thread, inbox._reader_thread):
        thread.submit(lambda _: answer.wait(10))
    appending = asyncio.ensure_future(inbox.append([message(b"second")]))

    await eventually(lambda: inbox.problem)
    assert "the disk has not answered for" in str(inbox.problem)
    with pytest.raises(StoreUnavailableError, match="was not read within"):
        await inbox.state("alice")
    assert not appending.done()
    answer.set()

    assert await appending == [2]
    await eventually(lambda: inbox.problem is None)
    await inbox.close()


# --- small helpers, so that tests read as prose


def write(path: Path, data: bytes) -> None:
    """Make the file hold exactly `data`."""
    path.write_bytes(data)


def contents(path: Path) -> bytes:
    """Return all of a file."""
    return path.read_bytes()


def is_there(path: Path) -> bool:
    """Whether there is such a file."""
    return path.exists()


def move(path: Path, to: Path) -> None:
    """Rename a file over whatever is there."""
    path.replace(to)


def allow(path: Path, mode: int) -> None:
    """Set permissions."""
    path.chmod(mode)


def files(folder: Path) -> list[Path]:
    """List a folder."""
    return list(folder.iterdir())
