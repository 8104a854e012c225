"""What a store takes on its disk, and what is left there."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# SQLite's own names for what stands beside a file (sqlite.org/tempfiles.html).
_BESIDE: Final = ("", "-wal", "-shm")


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Bytes that a store takes, and that its disk has left for us."""

    used_bytes: int
    free_bytes: int


def disk_usage(path: Path) -> DiskUsage:
    """
    Return what the SQLite file at `path` takes with all that belongs to it. Blocks.

    Raises:
        OSError: If its folder cannot be asked.

    """
    used_bytes = 0
    for ending in _BESIDE:
        beside = path.with_name(path.name + ending)
        if beside.exists():
            used_bytes += beside.stat().st_size
    return DiskUsage(used_bytes, shutil.disk_usage(path.parent).free)
