"""
The folder of the inbox store, which fills up, becomes read-only, or is locked.

As root it is a small file system of its own (tmpfs) in a mount namespace that only this
process and its children see, so that nothing stays behind however they end. Without
root, limits of the process and of the folder take its place.
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
_LOCK_WITHIN_S: Final = 5.0


def leave_mount_namespace() -> bool:
    """Let mounts of this process be seen by nobody else; false if that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0 or libc.unshare(_CLONE_NEWNS) != 0:
        return False
    return _run("mount", "--make-rprivate", "/")


class StoreFolder:
    """
    Where the inbox is.

    Attributes:
        path: The folder.
        is_own_disk: Whether it is a file system of its own, which can be full.

    """

    def __init__(self, path: Path, *, is_own_disk: bool) -> None:
        self.path = path
        self.is_own_disk = is_own_disk

    @classmethod
    @contextmanager
    def at(cls, path: Path, *, may_mount: bool) -> Iterator[Self]:
        """Make the folder, on a disk of its own if that is possible."""
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
        """Leave not one free byte."""
        with (self.path / _FILLER).open("wb", buffering=0) as filler:
            room = os.statvfs(self.path)
            with suppress(OSError):  # the bridge was quicker: the rest is found below
                os.posix_fallocate(filler.fileno(), 0, room.f_bavail * room.f_frsize)
            filler.seek(0, os.SEEK_END)
            with suppress(OSError):
                while True:
                    filler.write(bytes(_BLOCK_BYTES))

    def make_room(self) -> None:
        """Undo `fill`."""
        (self.path / _FILLER).unlink(missing_ok=True)

    def limit_files(self, pid: int) -> None:
        """Let no file that the process writes grow any more."""
        sizes = [file.stat().st_size for file in self.path.iterdir()]
        # The smallest of them is the limit, so that none of them can be written at its end.
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (min(sizes, default=0), hard))

    def unlimit_files(self, pid: int) -> None:
        """Undo `limit_files`."""
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))

    def take_away(self) -> None:
        """Let nobody write in the folder, or find the inbox. Nobody may have it open."""
        if self.is_own_disk:
            _run("mount", "-o", "remount,ro", str(self.path))
        elif os.geteuid() == 0:  # permissions do not bind root
            self.path.rename(self._aside)
            self.path.mkdir()
            self.file.write_bytes(_DAMAGED)
        else:
            self.path.chmod(0o500)

    def give_back(self) -> None:
        """Undo `take_away`."""
        if self.is_own_disk:
            _run("mount", "-o", "remount,rw", str(self.path))
        elif os.geteuid() == 0:
            self.path.rename(self.path.with_suffix(".damaged"))  # whole, in one go
            self._aside.rename(self.path)
            shutil.rmtree(self.path.with_suffix(".damaged"), ignore_errors=True)
        else:
            self.path.chmod(0o700)

    @property
    def _aside(self) -> Path:
        return self.path.with_suffix(".aside")

    async def lock(self, hold_s: float) -> bool:
        """Hold the database's write lock, as a tool of an operator may; false if it cannot be had."""
        return await asyncio.to_thread(self._lock, hold_s)

    def _lock(self, hold_s: float) -> bool:
        if not self.file.exists():
            return False
        connection = sqlite3.connect(
            self.file, timeout=_LOCK_WITHIN_S, isolation_level=None
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
