"""
The file of a SQLite inbox: whose it is, what stands in it, what its faults mean.

Mind: nothing in this process may open and close the file by itself while SQLite has it.
Closing any descriptor of a file drops all POSIX locks that the process holds on it.
"""

import errno
import fcntl
import os
import secrets
import shutil
import sqlite3
from pathlib import Path
from typing import Final

from bridge.errors import ConfigError, StoreInUseError, StoreUnavailableError
from bridge.inbox.contract import DiskUsage
from bridge.inbox.sqlite.schema import MIGRATIONS

# "brdg": tells our files from other people's.
APPLICATION_ID: Final = 0x62726467

_BUSY_TIMEOUT_S: Final = 0.5
_CACHE_KIB: Final = 32 * 1024
# Pages of 4 KiB in the write-ahead log before they are moved into the file.
_CHECKPOINT_PAGES: Final = 4000
_JOURNAL_BYTES: Final = 64 * 1024 * 1024

_FULL: Final = "the disk is full"
_DAMAGED: Final = "the file is damaged"
_MEND: Final = "put back a copy, or move it away, and its -wal file with it, to begin an empty inbox"
_PROBLEMS: Final = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_BUSY: "another process has locked it",
    sqlite3.SQLITE_LOCKED: "another process has locked it",
    sqlite3.SQLITE_READONLY: "it or its folder is read-only",
    sqlite3.SQLITE_PERM: "it may not be opened",
    sqlite3.SQLITE_CANTOPEN: "it, or its -wal or -shm file, may not be opened",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: f"{_DAMAGED}, or no SQLite file at all",
    sqlite3.SQLITE_IOERR: "reading or writing failed",
}


class StoreFile:
    """
    One file, held by one bridge at a time.

    Used by the writer's thread, but for `connect_reader`.
    """

    def __init__(self, path: Path, description: str) -> None:
        self._path = path.absolute()
        # Ready made: they are looked at for each commit.
        self._companions = tuple(
            self._path.with_name(self._path.name + suffix)
            for suffix in ("", "-wal", "-lock")
        )
        self._names = tuple(str(each) for each in self._companions)
        self._description = description
        self._lock: int | None = None
        self._identity: tuple[tuple[int, int] | None, ...] = ()

    # --- opening

    def look(self) -> bool:
        """
        Say whether the file is there, and raise why it cannot be; nothing is changed.

        Raises:
            ConfigError: If there can be no such file: the setting is wrong.
            StoreUnavailableError: If it cannot be had now.

        """
        folder = self._path.parent
        if not folder.is_dir():
            # Not made: it may be a disk that is not mounted.
            raise self._wrong_use(
                f"the folder {folder} does not exist; make it, or mount it"
            )
        if self._path.is_dir():
            raise self._wrong_use("it is a folder, expected a file")
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            raise self._unavailable(f"the folder {folder} is read-only for the bridge")
        is_there = self._path.exists()
        log = self._companions[1]
        if not is_there and log.exists() and log.stat().st_size:
            # SQLite deletes a log that it finds beside an empty file, and the newest
            # messages may be nowhere else.
            raise self._unavailable(
                f"{log.name} is there and its file is not; "
                "put the file back, or move the log away as well"
            )
        return is_there

    def connect_writer(self) -> sqlite3.Connection:
        """
        Take the file for this bridge, making it if it is not there.

        Raises:
            ConfigError: If it never can be: the setting is wrong.
            StoreUnavailableError: If it cannot be had now, with what to do about it.

        """
        try:
            self.look()
            self._take_lock()
            self._make_private()
            connection = self._connect()
        except (OSError, sqlite3.Error) as exc:
            self.release()
            raise self.error(exc) from exc
        try:
            self._prepare(connection)
            self._identify()
        except BaseException as exc:
            connection.close()
            self.release()
            if isinstance(exc, sqlite3.Error):
                raise self.error(exc) from exc
            raise
        return connection

    def connect_reader(self) -> sqlite3.Connection:
        """
        Open the file for reading beside the writer.

        Raises:
            StoreUnavailableError: If it cannot be opened.

        """
        try:
            connection = self._connect()
            connection.execute("PRAGMA query_only = 1")
        except sqlite3.Error as exc:
            raise self.error(exc) from exc
        return connection

    def release(self) -> None:
        """Let another bridge have the file. The connections are closed already."""
        self._identity = ()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        # A file of its own: see the docstring above for why not the inbox itself. It
        # stays when the bridge goes, or two bridges could hold two files of that name.
        lock = os.open(
            self._companions[2], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            os.close(lock)
            raise StoreInUseError(
                self._description,
                f"another bridge (process {holder or 'unknown'}) has it open; "
                "stop that one, or give each bridge a file of its own",
            ) from None
        self._lock = lock
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)

    def _make_private(self) -> None:
        """Make the file so that other users of the machine cannot read messages."""
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Bring the file into the format of this version; a newer one is refused."""
        version = _number(connection, "PRAGMA user_version")
        owner = _number(connection, "PRAGMA application_id")
        is_new = not _number(connection, "SELECT count(*) FROM sqlite_master")
        if not is_new and owner != APPLICATION_ID:
            raise self._wrong_use(
                "the file is a SQLite file of something else; choose another name"
            )
        if version > len(MIGRATIONS):
            raise self._wrong_use(
                f"a newer bridge wrote it (format {version}, this one knows "
                f"{len(MIGRATIONS)}); start that version, or move the file away"
            )
        if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise self._unavailable(
                "this file system has no shared memory for SQLite's write-ahead log; "
                "use a local disk"
            )
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
        self._migrate(connection, version)

    def _migrate(self, connection: sqlite3.Connection, version: int) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            for number, steps in enumerate(MIGRATIONS[version:], start=version + 1):
                for step in steps:
                    connection.execute(step)
                connection.execute(f"PRAGMA user_version = {number}")
            if version == 0:
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(
                    "INSERT INTO bridge VALUES ('epoch', ?)", (secrets.token_hex(5),)
                )
            # A read-only file gives itself away only when something is written.
            connection.execute(
                "INSERT OR REPLACE INTO bridge VALUES ('opened', datetime('now'))"
            )
            connection.execute("COMMIT")
        finally:
            connection.rollback()  # nothing to do after a commit

    # --- while it is open

    def verify(self) -> None:
        """
        See that the name still leads to the file that is open.

        What is written to a file without a name is gone when the bridge stops.

        Raises:
            StoreUnavailableError: If the file, its write-ahead log or its lock was
                deleted or replaced.

        """
        found = self._look()
        if found == self._identity:
            return
        for path, then, now in zip(
            self._companions, self._identity, found, strict=True
        ):
            if then != now:
                raise self._unavailable(
                    f"{path.name} was {'replaced' if now else 'deleted'} while the bridge "
                    "was running; put it back, or restart the bridge to use what is there"
                )

    def _look(self) -> tuple[tuple[int, int] | None, ...]:
        return tuple(_identity(name) for name in self._names)

    def _identify(self) -> None:
        """Remember which files were opened; fails if they were moved meanwhile."""
        found = self._look()
        lock = os.fstat(self._lock) if self._lock is not None else None
        if lock is None or found[2] != (lock.st_dev, lock.st_ino):
            raise self._unavailable("it was moved while it was opened")
        self._identity = found

    # --- faults

    def error(self, exc: Exception) -> Exception:
        """
        Say what `exc` means: a store that is away, or itself if it is about one message.

        SQLite's codes decide: what depends on the values that were given (too big, of a
        wrong type, against a constraint) is not the file's fault.
        """
        match exc:
            case sqlite3.OperationalError():
                # SQLITE_ERROR too: our statements are fixed, so the tables are wrong.
                return self._unavailable(self._problem(exc))
            case sqlite3.DatabaseError() if type(exc) is sqlite3.DatabaseError:
                return self._unavailable(self._problem(exc))
            case OSError(errno=errno.ENOSPC | errno.EDQUOT):
                return self._unavailable(_FULL)
            case OSError():
                name = Path(str(exc.filename or self._path)).name
                return self._unavailable(f"{name} cannot be opened: {exc.strerror}")
            case _:
                return exc

    def damaged(self, finding: str) -> StoreUnavailableError:
        """Say that a check found the file damaged."""
        return self._unavailable(f"{_DAMAGED} ({finding}); stop the bridge and {_MEND}")

    def _problem(self, exc: sqlite3.Error) -> str:
        code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        name = getattr(exc, "sqlite_errorname", "no code")
        known = _PROBLEMS.get(code & 0xFF)
        if known is None:
            return f"{exc} ({name})"
        if known.startswith(_DAMAGED):
            # Before it is opened it may be changed under our eyes, not while it is open.
            known += (
                f"; stop the bridge and {_MEND}" if self._identity else f"; {_MEND}"
            )
        return f"{known} ({name})"

    def _unavailable(self, problem: str) -> StoreUnavailableError:
        return StoreUnavailableError(self._description, problem)

    def _wrong_use(self, problem: str) -> ConfigError:
        return ConfigError((f"BRIDGE_INBOX: {self._description}: {problem}",))


def disk_usage(path: Path) -> DiskUsage:
    """
    Measure the SQLite file at `path` with its companion files. Blocks.

    Raises:
        OSError: If the folder cannot be read.

    """
    # SQLite's own suffixes (sqlite.org/tempfiles.html).
    files = (path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm"))
    used_bytes = sum(file.stat().st_size for file in files if file.exists())
    return DiskUsage(used_bytes, shutil.disk_usage(path.parent).free)


def _identity(name: str) -> tuple[int, int] | None:
    try:
        found = os.stat(name)  # noqa: PTH116 - thrice for each commit, and quicker
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _number(connection: sqlite3.Connection, statement: str) -> int:
    value: int = connection.execute(statement).fetchone()[0]
    return value
