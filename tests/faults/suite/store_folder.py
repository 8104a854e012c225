"""
The folder of the inbox store, which faults fill, make read-only, or lock.

As root it is a small tmpfs in a mount namespace of this process and its children, so that
no mount stays behind, however they end. Without root, limits of the process and permissions
of the folder replace it.
"""

import asyncio
import ctypes
import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import Final, Self

_CLONE_NEWNS: Final = 0x00020000
_SIZE: Final = "512m"
_FILLER: Final = "filler"
_BLOCK_BYTES: Final = 4096
_DAMAGED: Final = b"no database at all" * 1000
_LOCK_TIMEOUT_S: Final = 5.0


def unshare_mounts() -> bool:
    """Give this process a private mount namespace; false if that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0 or libc.unshare(_CLONE_NEWNS) != 0:
        return False
    return _run("mount", "--make-rprivate", "/")


class StoreFolder:
    """
    The folder of the inbox.

    Attributes:
        path: The folder.
        is_own_disk: Whether it is a file system of its own, which can be filled.

    """

    def __init__(self, path: Path, *, is_own_disk: bool) -> None:
        self.path = path
        self.is_own_disk = is_own_disk

    @classmethod
    @contextmanager
    def at(cls, path: Path, *, may_mount: bool) -> Iterator[Self]:
        """Create the folder, on a file system of its own if possible."""
        path.mkdir()
        mount = ("mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "none", str(path))
        is_own_disk = may_mount and _run(*mount)
        try:
            yield cls(path, is_own_disk=is_own_disk)
        finally:
            if is_own_disk:
                _run("umount", "-l", str(path))

    @property
    def file(self) -> Path:
        """The database."""
        return self.path / "inbox.db"

    def fill(self) -> None:
        """Fill the file system completely."""
        with (self.path / _FILLER).open("wb", buffering=0) as filler:
            free = os.statvfs(self.path)
            with suppress(
                OSError
            ):  # the bridge took some of it; the loop takes the rest
                os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_frsize)
            filler.seek(0, os.SEEK_END)
            with suppress(OSError):
                while True:
                    filler.write(bytes(_BLOCK_BYTES))

    def free_space(self) -> None:
        """Undo `fill`."""
        (self.path / _FILLER).unlink(missing_ok=True)

    def limit_files(self, pid: int) -> None:
        """Prevent the process from growing any file."""
        sizes = [file.stat().st_size for file in self.path.iterdir()]
        # With the smallest size as the limit, no file can be extended.
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (min(sizes, default=0), hard))

    def unlimit_files(self, pid: int) -> None:
        """Undo `limit_files`."""
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))

    def make_unusable(self) -> None:
        """Make the folder read-only or hide the inbox. No process may have it open."""
        if self.is_own_disk:
            _run("mount", "-o", "remount,ro", str(self.path))
        elif os.geteuid() == 0:  # permissions do not apply to root
            self.path.rename(self._aside)
            self.path.mkdir()
            self.file.write_bytes(_DAMAGED)
        else:
            self.path.chmod(0o500)

    def make_usable(self) -> None:
        """Undo `make_unusable`."""
        if self.is_own_disk:
            _run("mount", "-o", "remount,rw", str(self.path))
        elif os.geteuid() == 0:
            self.path.rename(self.path.with_suffix(".damaged"))  # one atomic step
            self._aside.rename(self.path)
            shutil.rmtree(self.path.with_suffix(".damaged"), ignore_errors=True)
        else:
            self.path.chmod(0o700)

    @property
    def _aside(self) -> Path:
        return self.path.with_suffix(".aside")

    async def lock(self, hold_s: float) -> bool:
        """Hold the database's write lock for `hold_s`; false if it could not be acquired."""
        return await asyncio.to_thread(self._lock, hold_s)

    def _lock(self, hold_s: float) -> bool:
        if not self.file.exists():
            return False
        connection = sqlite3.connect(
            self.file, timeout=_LOCK_TIMEOUT_S, isolation_level=None
        )
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        else:
            sleep(hold_s)
            connection.execute("ROLLBACK")
            return True
        finally:
            connection.close()


def _run(*command: str) -> bool:
    done = subprocess.run(command, capture_output=True, check=False)
    return done.returncode == 0
