"""The file of a SQLite inbox: formats, ownership, opening and closing."""

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
    OpenInbox,
    contents,
    exists,
    message,
    read_all,
    rows,
)

# --- formats


async def test_a_file_of_an_older_format_is_migrated_once(
    open_inbox: OpenInbox, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without losing anything."""
    async with open_inbox() as inbox:
        epoch = inbox.epoch
        await inbox.append([message("alice", b"1")])
    newer = (*MIGRATIONS, ("ALTER TABLE users ADD COLUMN colour TEXT",))
    monkeypatch.setattr(sqlite_file, "MIGRATIONS", newer)

    for _ in range(2):
        async with open_inbox() as inbox:
            assert inbox.epoch == epoch
            assert len(await read_all(inbox, "alice")) == 1

    assert rows(path, "SELECT user, colour FROM users") == [("alice", None)]
    assert rows(path, "PRAGMA user_version") == [(len(newer),)]


async def test_a_file_of_format_1_keeps_all_its_contents(
    open_inbox: OpenInbox, path: Path, clock: Clock
) -> None:
    """Messages, marks, ids, trials, and the reasons of deletions."""
    clock.now_s = 1_001_016.0
    write(path, read_text(Path(__file__).with_name("format_1.sql")))

    for _ in range(2):
        async with open_inbox(round_entries=5) as inbox:
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
            # Ids that were indexed in format 1, and ids that were not.
            again = [message("bob", b"1", f"b-{n}") for n in (24, 25)]
            assert await inbox.append(again) == [None, None]
            assert await inbox.append([message("carol", b"2", "c-1")]) == [None]
        clock.now_s += 1
    async with open_inbox() as inbox:
        assert await inbox.note_trials([b"killer"]) == [2]
        later = [message("alice", b"46"), message("old", b"6")]
        assert await inbox.append(later) == [46, 6]


async def test_a_migration_that_fails_leaves_the_file_as_it_was(
    open_inbox: OpenInbox, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The previous version can still be started."""
    async with open_inbox() as inbox:
        await inbox.append([message("alice", b"1")])
    broken = (*MIGRATIONS, ("DROP TABLE seen", "NO SUCH STATEMENT"))
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_file, "MIGRATIONS", broken)
        with pytest.raises(StoreUnavailableError, match="syntax error"):
            async with open_inbox():
                pass

    assert rows(path, "PRAGMA user_version") == [(len(broken) - 1,)]
    async with open_inbox() as inbox:
        assert len(await read_all(inbox, "alice")) == 1


async def test_a_file_of_a_newer_format_is_rejected(
    open_inbox: OpenInbox, path: Path
) -> None:
    """This version could damage data that it does not know."""
    async with open_inbox():
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")

    with pytest.raises(ConfigError, match=r"newer bridge wrote it.*99"):
        async with open_inbox():
            pass


async def test_a_file_of_another_program_is_rejected_and_not_changed(
    open_inbox: OpenInbox, path: Path
) -> None:
    """A mistyped path must not destroy other data."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (x)")
    before = contents(path)

    with pytest.raises(ConfigError, match="another program"):
        async with open_inbox():
            pass

    assert contents(path) == before


# --- opening and closing


async def test_a_store_that_is_not_open_raises_an_error(path: Path) -> None:
    """And creates no file."""
    inbox = SqliteInbox(str(path), Retention(100, 1000, 60))

    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="it is not open"):
            await inbox.append([message("alice", b"1")])
        with pytest.raises(StoreUnavailableError, match="it is not open"):
            await inbox.state("alice")
        inbox.mark_delivered("alice", 1)
        inbox.forget_trial(b"key")
        await inbox.close()

    assert not exists(path)


async def test_closing_the_store_ends_its_threads(open_inbox: OpenInbox) -> None:
    """So they do not delay the end of the process."""
    async with open_inbox():
        assert len(inbox_threads()) == 2
    await eventually(lambda: not inbox_threads())


async def test_a_program_ends_without_closing_the_store(
    open_inbox: OpenInbox, path: Path
) -> None:
    """A failed start must not leave a process that hangs."""
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

    async with open_inbox() as inbox:
        assert inbox.problem is None


def write(path: Path, statements: str) -> None:
    """Create a file from SQL statements."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)


def read_text(path: Path) -> str:
    """Return the text of a file."""
    return path.read_text()


def inbox_threads() -> list[str]:
    """Return the names of running threads of stores."""
    return [t.name for t in threading.enumerate() if t.name.startswith("inbox-")]
