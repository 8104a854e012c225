"""
A SQLite store that cannot be written: no partial writes, a helpful error, no restart.

The faults are real: a limit on file sizes, a lock, damaged bytes. While a fault lasts,
appends fail with StoreUnavailableError, which the pipeline retries, and reads continue if
they can. When the fault is fixed, appends succeed again and no offset is missing.
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
from structlog.testing import capture_logs

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
    """Return the store at `path` without opening it."""
    return SqliteInbox(str(path), RETENTION)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of the file."""
    return tmp_path / "inbox.sqlite3"


@pytest_asyncio.fixture
async def inbox(path: Path) -> AsyncIterator[SqliteInbox]:
    """Yield an open store with one message for alice."""
    inbox = store(path)
    await inbox.open()
    await inbox.append([message(b"first")])
    yield inbox
    await inbox.close()


async def assert_appends_succeed(inbox: SqliteInbox) -> None:
    """Check that the failed message was not stored, and that the next one is, without a gap."""
    await eventually(lambda: inbox.problem is None)
    assert await inbox.append([message(b"second")]) == [2]
    page = await inbox.read("alice", after=0, max_messages=9, max_bytes=1 << 20)
    assert [each.message.data for each in page.messages] == [b"first", b"second"]


# --- no space


@contextmanager
def no_file_can_grow() -> Iterator[None]:
    """Prevent this process from making any file larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_appends_fail_while_a_commit_has_no_space(inbox: SqliteInbox) -> None:
    """A write to the write-ahead log fails, possibly after a part of it."""
    big = [message(b"x" * 10_000) for _ in range(20)]
    with no_file_can_grow():
        for _ in range(3):
            with pytest.raises(StoreUnavailableError):
                await inbox.append(big)
        assert inbox.problem is not None
        assert (await inbox.state("alice")).last == 1
        with pytest.raises(StoreUnavailableError):
            await inbox.check()

    await assert_appends_succeed(inbox)


async def test_a_full_disk_is_reported_as_such(inbox: SqliteInbox) -> None:
    """SQLITE_FULL, caused by SQLite's own limit on pages."""

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
    await assert_appends_succeed(inbox)


async def test_marks_are_written_when_the_file_is_writable_again(
    inbox: SqliteInbox, path: Path
) -> None:
    """They take effect meanwhile."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        inbox.mark_delivered("alice", 1)
        await eventually(lambda: inbox.problem)
        assert (await inbox.state("alice")).delivered == 1
        other.execute("ROLLBACK")

        await eventually(lambda: inbox.problem is None)
        assert other.execute("SELECT marks FROM marks").fetchall() == [(b"[[1,1]]",)]


# --- other processes


async def test_appends_fail_while_another_process_has_a_lock(
    inbox: SqliteInbox, path: Path
) -> None:
    """For example an operator's tool or a backup."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match="another process has locked"):
            await inbox.append([message(b"x")])
        assert (await inbox.state("alice")).last == 1
        other.execute("ROLLBACK")

    await assert_appends_succeed(inbox)


async def test_two_bridges_cannot_share_a_file(inbox: SqliteInbox, path: Path) -> None:
    """They would assign the same offset to different messages."""
    second = store(path)
    with pytest.raises(StoreUnavailableError, match=f"process {os.getpid()}"):
        await second.open()

    await inbox.close()
    await second.open()
    await assert_appends_succeed(second)
    await second.close()


# --- a damaged or moved file


async def test_a_file_that_is_not_a_database_is_not_changed(path: Path) -> None:
    """An operator may still want to examine it."""
    garbage = os.urandom(50_000)
    write(path, garbage)

    with pytest.raises(StoreUnavailableError, match="damaged, or no SQLite file"):
        await store(path).open()

    assert contents(path) == garbage


async def test_damage_inside_the_file_is_reported(path: Path) -> None:
    """Also in pages that only the check reads; the file is not deleted."""
    inbox = store(path)
    await inbox.open()
    await inbox.append([message(b"x" * 1000) for _ in range(200)])
    await inbox.close()
    intact = contents(path)
    damaged = intact[:20_000] + b"\xff" * (len(intact) - 40_000) + intact[-20_000:]
    write(path, damaged)

    with pytest.raises(StoreUnavailableError, match="damaged"):
        await open_and_check(path)

    assert exists(path)


async def open_and_check(path: Path) -> None:
    """Open, check and close the store."""
    inbox = store(path)
    try:
        await inbox.open()
        await inbox.check()
    finally:
        await inbox.close()


@pytest.mark.parametrize("suffix", ["", "-wal", "-lock"])
async def test_appends_fail_while_a_file_is_missing_or_replaced(
    inbox: SqliteInbox, path: Path, suffix: str
) -> None:
    """Messages written to a deleted file would be lost when the bridge stops."""
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

    await assert_appends_succeed(inbox)


# --- files that cannot be opened


async def test_a_missing_folder_is_reported_and_not_created(tmp_path: Path) -> None:
    """It may be the mount point of a disk that is not mounted."""
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        await store(tmp_path / "nowhere" / "inbox").open()


async def test_a_folder_instead_of_a_file_is_rejected(tmp_path: Path) -> None:
    """The path may be mistyped."""
    with pytest.raises(ConfigError, match="is a folder"):
        await store(tmp_path).open()


async def test_opening_can_be_repeated_after_a_failure(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries that the failed attempt had read back must not be there twice."""
    async with opened(path) as inbox:
        await inbox.append([message(b"first"), message(b"second")])
    inbox = store(path)
    with monkeypatch.context() as patch:

        def fail(_file: StoreFile) -> sqlite3.Connection:
            raise StoreUnavailableError("sqlite:x", "the disk is full")

        patch.setattr(StoreFile, "connect_reader", fail)
        with pytest.raises(StoreUnavailableError, match="full"):
            await inbox.open()
    problems = [inbox.problem]

    async with opened(inbox):
        problems.append(inbox.problem)
        page = await inbox.read("alice", after=0, max_messages=9, max_bytes=1 << 20)
    assert [each.offset for each in page.messages] == [1, 2]
    assert problems == ["the disk is full", None]


async def test_a_file_that_is_moved_while_being_opened_is_not_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If lock and inbox had different names, two bridges could share the file."""
    prepare = StoreFile._prepare

    def prepare_and_move_lock(file: StoreFile, connection: sqlite3.Connection) -> None:
        prepare(file, connection)
        lock = path.with_name(f"{path.name}-lock")
        move(lock, path.with_name("aside"))
        write(lock, b"")

    inbox = store(path)
    with monkeypatch.context() as patch:
        patch.setattr(StoreFile, "_prepare", prepare_and_move_lock)
        with pytest.raises(
            StoreUnavailableError, match="moved while it was being opened"
        ):
            await inbox.open()

    async with opened(inbox):
        assert await inbox.append([message(b"first")]) == [1]


@asynccontextmanager
async def opened(target: Path | SqliteInbox) -> AsyncIterator[SqliteInbox]:
    """Open a store for the duration of a block."""
    inbox = store(target) if isinstance(target, Path) else target
    await inbox.open()
    yield inbox
    await inbox.close()


@contextmanager
def unprivileged() -> Iterator[None]:
    """Drop the privileges of root, which ignores file permissions."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_a_read_only_folder_is_reported_and_opening_can_be_repeated() -> None:
    """The failed attempt must leave no lock behind."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inbox = store(folder / "inbox")
        set_mode(folder, 0o555)
        with (
            unprivileged(),
            pytest.raises(StoreUnavailableError, match="read-only for the bridge"),
        ):
            await inbox.open()
        await inbox.close()
        set_mode(folder, 0o755)

        await inbox.open()
        assert await inbox.append([message(b"first")]) == [1]
        await inbox.close()


async def test_a_read_only_file_is_reported() -> None:
    """It was probably created by another user."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "inbox"
        set_mode(file.parent, 0o777)
        inbox = store(file)
        await inbox.open()
        await inbox.close()
        for each in files(file.parent):
            set_mode(each, 0o444)
        set_mode(file.with_name("inbox-lock"), 0o666)
        with (
            unprivileged(),
            pytest.raises(StoreUnavailableError, match="read-only"),
        ):
            await inbox.open()


async def test_a_file_of_another_user_is_used_and_reported() -> None:
    """Volumes of clusters may have an owner and a mode that cannot be changed."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "inbox"
        set_mode(file.parent, 0o777)
        inbox = store(file)
        await inbox.open()
        await inbox.close()
        for each in files(file.parent):
            set_mode(each, 0o666)
        with unprivileged(), capture_logs() as logs:
            await inbox.open()
            await inbox.close()

    events = [line["event"] for line in logs]
    assert events.count("inbox.access_of_others") == (2 if os.geteuid() == 0 else 0)


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


# --- helpers


def write(path: Path, data: bytes) -> None:
    """Write `data` to the file."""
    path.write_bytes(data)


def contents(path: Path) -> bytes:
    """Return the contents of a file."""
    return path.read_bytes()


def exists(path: Path) -> bool:
    """Return whether the file exists."""
    return path.exists()


def move(path: Path, to: Path) -> None:
    """Rename a file, replacing an existing one."""
    path.replace(to)


def set_mode(path: Path, mode: int) -> None:
    """Set the permissions of a file."""
    path.chmod(mode)


def files(folder: Path) -> list[Path]:
    """Return the files in a folder."""
    return list(folder.iterdir())
