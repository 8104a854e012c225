"""
The file of a SQLite inbox: lock, format, identity, and the meaning of SQLite's errors.

No code in this process may open and close the file while SQLite has it open: closing any
descriptor of a file drops all POSIX locks that the process holds on it.
"""

import errno
import fcntl
import os
import secrets
import shutil
import sqlite3
import stat
from pathlib import Path
from typing import Final

import structlog

from bridge.errors import ConfigError, StoreInUseError, StoreUnavailableError
from bridge.inbox.contract import DiskUsage
from bridge.inbox.sqlite.schema import MIGRATIONS

log = structlog.get_logger(__name__)

# "brdg": identifies files of bridge.
APPLICATION_ID: Final = 0x62726467

_BUSY_TIMEOUT_S: Final = 0.5
_CACHE_KIB: Final = 32 * 1024
# Pages of 4 KiB in the write-ahead log before a checkpoint moves them into the file.
_CHECKPOINT_PAGES: Final = 4000
_JOURNAL_BYTES: Final = 64 * 1024 * 1024

# The mode bits of the group and of all other users.
_OTHERS: Final = 0o077

_FULL: Final = "the disk is full"
_DAMAGED: Final = "the file is damaged"
_FIX: Final = (
    "restore a copy, or move it and its -wal file away to start with an empty inbox"
)
_PROBLEMS: Final = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_BUSY: "another process has locked it",
    sqlite3.SQLITE_LOCKED: "another process has locked it",
    sqlite3.SQLITE_READONLY: "it or its folder is read-only",
    sqlite3.SQLITE_PERM: "permission to open it is denied",
    sqlite3.SQLITE_CANTOPEN: "it, or its -wal or -shm file, cannot be opened",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: f"{_DAMAGED}, or no SQLite file at all",
    sqlite3.SQLITE_IOERR: "reading or writing failed",
}


class StoreFile:
    """
    One file, which one bridge can open at a time.

    Used in the writer's thread, except `exists` and `connect_reader`.

    Attributes:
        epoch: The epoch of the file; empty before it was opened.

    """

    def __init__(self, path: Path, description: str) -> None:
        self.epoch = ""
        self._path = path.absolute()
        # Computed once, because they are checked at each commit.
        name = self._path.name
        self._companions = tuple(
            self._path.with_name(name + suffix) for suffix in ("", "-wal", "-lock")
        )
        self._names = tuple(str(each) for each in self._companions)
        self._description = description
        self._lock: int | None = None
        self._identity: tuple[tuple[int, int] | None, ...] = ()

    # --- opening

    def exists(self) -> bool:
        """
        Return whether the file exists, without changing anything.

        Raises:
            ConfigError: If the setting is wrong, so the file can never be opened.
            StoreUnavailableError: If the file cannot be opened now.

        """
        folder = self._path.parent
        if not folder.is_dir():
            # Not created: it may be the mount point of a disk that is not mounted.
            raise self._config_error(
                f"the folder {folder} does not exist; create it, or mount it"
            )
        if self._path.is_dir():
            raise self._config_error("it is a folder, expected a file")
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            raise self._unavailable(f"the folder {folder} is read-only for the bridge")
        exists = self._path.exists()
        wal = self._companions[1]
        if not exists and wal.exists() and wal.stat().st_size:
            # SQLite deletes a log that it finds next to an empty file, and the log may
            # hold the only copy of the newest messages.
            raise self._unavailable(
                f"{wal.name} exists and its file does not; "
                "restore the file, or move the log away as well"
            )
        return exists

    def connect_writer(self) -> sqlite3.Connection:
        """
        Lock and open the file, creating it if it does not exist.

        Raises:
            ConfigError: If the setting is wrong, so the file can never be opened.
            StoreUnavailableError: If the file cannot be opened now.

        """
        try:
            self.exists()
            self._lock_file()
            self._create()
            self._remove_access_of_others()
            connection = self._connect()
        except (OSError, sqlite3.Error) as exc:
            self.release()
            raise self.translate(exc) from exc
        try:
            self._prepare(connection)
            self._identify()
        except BaseException as exc:
            connection.close()
            self.release()
            if isinstance(exc, sqlite3.Error):
                raise self.translate(exc) from exc
            raise
        return connection

    def connect_reader(self) -> sqlite3.Connection:
        """
        Open the file for reading, which the writer has opened before.

        Raises:
            StoreUnavailableError: If the file cannot be opened.

        """
        try:
            connection = self._connect()
            connection.execute("PRAGMA query_only = 1")
        except sqlite3.Error as exc:
            raise self.translate(exc) from exc
        return connection

    def release(self) -> None:
        """Unlock the file; its connections must be closed already."""
        self._identity = ()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _lock_file(self) -> None:
        # A separate file, because opening and closing the inbox itself would drop
        # SQLite's locks (see the module docstring). It is never deleted, or two bridges
        # could lock two different files of that name. A link is not followed: in a folder
        # of other users it could lead to any file, which would be overwritten.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(self._companions[2], flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            os.close(lock)
            raise StoreInUseError(
                self._description,
                f"another bridge (process {holder or 'unknown'}) has it open; "
                "stop that bridge, or give each bridge its own file",
            ) from None
        self._lock = lock
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)

    def _create(self) -> None:
        """Create the file, unreadable for other users of the machine."""
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return

    def _remove_access_of_others(self) -> None:
        """
        Make existing files unreadable for other users, too.

        A file that was restored or copied has the mode that its umask gave it, and SQLite
        gives the same mode to the files that it creates next to it.
        """
        for name in (*self._names, f"{self._path}-shm"):
            file = Path(name)
            mode = stat.S_IMODE(file.stat().st_mode) if file.exists() else 0
            if not mode & _OTHERS:
                continue
            try:
                file.chmod(mode & ~_OTHERS)
            except OSError:  # another owner, or a file system without modes
                log.warning("inbox.access_of_others", file=file.name, mode=f"{mode:o}")
            else:
                log.warning("inbox.access_removed", file=file.name, mode=f"{mode:o}")

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
        """Migrate the file to the format of this version; reject a newer format."""
        version = _number(connection, "PRAGMA user_version")
        owner = _number(connection, "PRAGMA application_id")
        is_new = not _number(connection, "SELECT count(*) FROM sqlite_master")
        if not is_new and owner != APPLICATION_ID:
            raise self._config_error(
                "the file is a SQLite file of another program; choose another name"
            )
        if version > len(MIGRATIONS):
            raise self._config_error(
                f"a newer bridge wrote it (format {version}, this version supports "
                f"{len(MIGRATIONS)}); start that version, or move the file away"
            )
        if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise self._unavailable(
                "this file system has no shared memory for SQLite's write-ahead log; "
                "use a local disk"
            )
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
        self._write_format(connection, version)
        self.epoch = connection.execute(
            "SELECT value FROM bridge WHERE name = 'epoch'"
        ).fetchone()[0]

    def _write_format(self, connection: sqlite3.Connection, version: int) -> None:
        """Migrate from format `version`; 0 is an empty file, which gets a new epoch."""
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
            # SQLite reports a read-only file only when it writes.
            connection.execute(
                "INSERT OR REPLACE INTO bridge VALUES ('opened', datetime('now'))"
            )
            connection.execute("COMMIT")
        finally:
            connection.rollback()  # without effect after the commit

    # --- while it is open

    def verify(self) -> None:
        """
        Check that the path still leads to the open file.

        Messages written to a deleted file are lost when the bridge stops.

        Raises:
            StoreUnavailableError: If the file, its write-ahead log or its lock was
                deleted or replaced.

        """
        found = self._identities()
        if found == self._identity:
            return
        for path, then, now in zip(
            self._companions, self._identity, found, strict=True
        ):
            if then != now:
                raise self._unavailable(
                    f"{path.name} was {'replaced' if now else 'deleted'} while the bridge "
                    "was running; restore it, or restart the bridge to use the present file"
                )

    def _identities(self) -> tuple[tuple[int, int] | None, ...]:
        return tuple(_identity(name) for name in self._names)

    def _identify(self) -> None:
        """Remember which files were opened; fail if they were moved since."""
        found = self._identities()
        lock = os.fstat(self._lock) if self._lock is not None else None
        if lock is None or found[2] != (lock.st_dev, lock.st_ino):
            raise self._unavailable("it was moved while it was being opened")
        self._identity = found

    # --- errors

    def translate(self, exc: Exception) -> Exception:
        """
        Return `exc` as StoreUnavailableError, or unchanged if one message caused it.

        SQLite's error class decides: errors about the given values (too big, of a wrong
        type, against a constraint) are not errors of the file.
        """
        match exc:
            case sqlite3.OperationalError():
                # SQLITE_ERROR too: the statements are constant, so the tables are wrong.
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
        """Return the error for a failed check of the file."""
        return self._unavailable(f"{_DAMAGED} ({finding}); stop the bridge and {_FIX}")

    def _problem(self, exc: sqlite3.Error) -> str:
        code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        name = getattr(exc, "sqlite_errorname", "no code")
        known = _PROBLEMS.get(code & 0xFF)
        if known is None:
            return f"{exc} ({name})"
        if known.startswith(_DAMAGED):
            # The file must not be replaced while the bridge has it open.
            known += f"; stop the bridge and {_FIX}" if self._identity else f"; {_FIX}"
        return f"{known} ({name})"

    def _unavailable(self, problem: str) -> StoreUnavailableError:
        return StoreUnavailableError(self._description, problem)

    def _config_error(self, problem: str) -> ConfigError:
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
        found = os.stat(name)  # noqa: PTH116 - faster than Path, three times per commit
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _number(connection: sqlite3.Connection, statement: str) -> int:
    value: int = connection.execute(statement).fetchone()[0]
    return value
