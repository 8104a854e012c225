"""The file of a SQLite inbox: formats, whose it is, and what is there before and after."""

import asyncio
import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from bridge.enums import SyncReason
from bridge.errors import ConfigError, StoreUnavailableError
from bridge.inbox.contract import Retention
from bridge.inbox.sqlite import file as sqlite_file
from bridge.inbox.sqlite.schema import MIGRATIONS
from bridge.inbox.sqlite.store import SqliteInbox
from tests.conftest import eventually
from tests.contract.inbox.files import (
    Clock,
    Opened,
    contents,
    is_there,
    message,
    read_all,
    rows,
)

# --- formats


async def test_an_older_file_is_brought_into_the_format_of_today(
    opened: Opened, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing of it is lost; once only."""
    async with opened() as inbox:
        epoch = inbox.epoch
        await inbox.append([message("alice", b"1")])
    newer = (*MIGRATIONS, ("ALTER TABLE users ADD COLUMN colour TEXT",))
    monkeypatch.setattr(sqlite_file, "MIGRATIONS", newer)

    for _ in range(2):
        async with opened() as inbox:
            assert inbox.epoch == epoch
            assert len(await read_all(inbox, "alice")) == 1

    assert rows(path, "SELECT user, colour FROM users") == [("alice", None)]
    assert rows(path, "PRAGMA user_version") == [(len(newer),)]


async def test_a_file_of_format_1_is_read_on_as_it_was(
    opened: Opened, path: Path, clock: Clock
) -> None:
    """Each message in its place, marks, ids, trials, and why older ones are gone."""
    clock.now_s = 1_001_016.0
    write(path, read_text(Path(__file__).with_name("format_1.sql")))

    for _ in range(2):
        async with opened(round_entries=5) as inbox:
            states = [await inbox.state(user) for user in ("old", "alice", "bob")]
            assert [(s.first, s.last, s.delivered) for s in states] == [
                (6, 5, 0),
                (41, 45, 0),
                (1, 25, 7),
            ]
            assert {state.epoch for state in states} == {"a30b92596d"}
            expired = [state.trimmed_for for state in states]
            assert expired == [SyncReason.EXPIRED, SyncReason.EXPIRED, None]
            for user, first, last in (("alice", 41, 45), ("bob", 1, 25)):
                found = await read_all(inbox, user)
                assert [(each.offset, each.message.data) for each in found] == [
                    (offset, f'"{user}-{offset}"'.encode())
                    for offset in range(first, last + 1)
                    if offset != 42  # past its deadline
                ]
            # Ids of both kinds: indexed in format 1, and not yet.
            again = [message("bob", b"1", f"b-{n}") for n in (24, 25)]
            assert await inbox.append(again) == [None, None]
            assert await inbox.append([message("carol", b"2", "c-1")]) == [None]
        clock.now_s += 1
    async with opened() as inbox:
        assert await inbox.note_trial(b"killer") == 2
        later = [message("alice", b"46"), message("old", b"6")]
        assert await inbox.append(later) == [46, 6]


async def test_a_migration_that_fails_leaves_the_file_as_it_was(
    opened: Opened, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old version can still be started."""
    async with opened() as inbox:
        await inbox.append([message("alice", b"1")])
    broken = (*MIGRATIONS, ("DROP TABLE seen", "NO SUCH STATEMENT"))
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_file, "MIGRATIONS", broken)
        with pytest.raises(StoreUnavailableError, match="syntax error"):
            async with opened():
                pass

    assert rows(path, "PRAGMA user_version") == [(len(broken) - 1,)]
    async with opened() as inbox:
        assert len(await read_all(inbox, "alice")) == 1


async def test_a_file_of_a_newer_bridge_is_refused(opened: Opened, path: Path) -> None:
    """It may mean things that this version would break."""
    async with opened():
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")

    with pytest.raises(ConfigError, match=r"newer bridge wrote it.*99"):
        async with opened():
            pass


async def test_a_file_of_something_else_is_refused_and_left_alone(
    opened: Opened, path: Path
) -> None:
    """A path with a slip of the pen must not cost somebody else's data."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = contents(path)

    with pytest.raises(ConfigError, match="another program"):
        async with opened():
            pass

    assert contents(path) == before


# --- before and after


async def test_a_store_that_is_not_open_says_so(path: Path) -> None:
    """Not with a file that nobody asked for."""
    inbox = SqliteInbox(str(path), Retention(100, 1000, 60))

    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="it is not open"):
            await inbox.append([message("alice", b"1")])
        with pytest.raises(StoreUnavailableError, match="it is not open"):
            await inbox.state("alice")
        inbox.mark_delivered("alice", 1)
        inbox.forget_trial(b"key")
        await inbox.close()

    assert not is_there(path)


async def test_no_thread_outlives_the_store(opened: Opened) -> None:
    """Nothing holds up the end of the process."""
    async with opened():
        assert len(inbox_threads()) == 2
    await eventually(lambda: not inbox_threads())


async def test_a_program_that_forgets_to_close_the_store_ends_all_the_same(
    opened: Opened, path: Path
) -> None:
    """A crash at the start must not leave a process that does nothing."""
    program = (
        "import asyncio, sys\n"
        "from bridge.inbox.contract import Retention\n"
        "from bridge.inbox.sqlite.store import SqliteInbox\n"
        "asyncio.run(SqliteInbox(sys.argv[1], Retention(9, 9, 9)).open())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(path)
    )
    async with asyncio.timeout(30):
        assert await process.wait() == 0

    async with opened() as inbox:
        assert inbox.problem is None


def write(path: Path, statements: str) -> None:
    """Make a file of SQL."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)


def read_text(path: Path) -> str:
    """Return what a file says."""
    return path.read_text()


def inbox_threads() -> list[str]:
    """Name the threads of stores that are alive."""
    return [t.name for t in threading.enumerate() if t.name.startswith("inbox-")]
