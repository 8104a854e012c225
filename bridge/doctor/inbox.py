"""The store of the inbox: whether it can be written, and whether its disk has room."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bridge.core.redis_address import is_redis
from bridge.doctor.results import Finding, note, ok, wrong
from bridge.enums import ExitCode
from bridge.errors import ConfigError, StoreInUseError, StoreUnavailableError
from bridge.settings.model import Settings
from bridge.wiring import inbox_of

_ROOM_MIN_BYTES: Final = 64 << 20
# Moving the write-ahead log into the file, and a copy for a backup, want room too.
_ROOM_SHARE: Final = 0.1
# SQLite's locks and its shared memory do not hold there.
_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "afs", "lustre"}
)
_MOUNTS: Final = Path("/proc/self/mountinfo")


async def inbox_finding(settings: Settings) -> Finding:
    """Say whether the store can be written, without making one that is not there."""
    inbox = inbox_of(settings)
    try:
        if not await inbox.exists():  # opening would make it
            return ok(
                "inbox",
                f"{inbox.description} is not there yet; bridge run will make it",
            )
        await inbox.open()
        await inbox.check()
    except StoreInUseError as exc:
        # What a running bridge has open, it can write: its readiness tells if not.
        return ok("inbox", exc.problem)
    except ConfigError as exc:
        return wrong("inbox", str(exc), code=ExitCode.USAGE)
    except StoreUnavailableError as exc:
        is_peer = is_redis(settings.inbox)
        code = ExitCode.UNREACHABLE if is_peer else ExitCode.FAILED
        return wrong("inbox", str(exc), code=code)
    finally:
        await inbox.close()
    return ok("inbox", f"{inbox.description} can be written")


def disk_findings(settings: Settings, *, mounts: Path = _MOUNTS) -> Iterator[Finding]:
    """Look at the disk that the file is on, or will be. Blocks on it."""
    path = _file(settings)
    if path is None:
        return
    folder = path.absolute().parent
    if not folder.is_dir():
        return  # told with the inbox
    used = sum(
        file.stat().st_size
        for file in (path, path.with_name(f"{path.name}-wal"))
        if file.exists()
    )
    yield room_finding(free_bytes=shutil.disk_usage(folder).free, used_bytes=used)
    kind = _file_system(folder.resolve(), mounts)
    if kind is not None and (kind in _NETWORK or kind.startswith("fuse.")):
        text = f"{folder} is on {kind}, where SQLite's locks may not hold"
        yield note("disk of the inbox", text, mend="BRIDGE_INBOX=sqlite:/a/local/path")


def room_finding(*, free_bytes: int, used_bytes: int) -> Finding:
    """Compare what is free with what is used."""
    text = f"{free_bytes >> 20} MiB free, the file has {used_bytes >> 20} MiB"
    if free_bytes < max(_ROOM_MIN_BYTES, used_bytes * _ROOM_SHARE):
        mend = "make room, or lower BRIDGE_INBOX_MAX_MESSAGES and BRIDGE_INBOX_MAX_AGE"
        return wrong("room for the inbox", text, mend=mend)
    return ok("room for the inbox", text)


def _file(settings: Settings) -> Path | None:
    kind, _, name = settings.inbox.partition(":")
    return Path(name) if kind == "sqlite" else None


def _file_system(folder: Path, mounts: Path) -> str | None:
    """Return the kind of the file system that `folder` is on; `None` if nothing tells."""
    best, kind = "", None
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        # 36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/root rw
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        point = fields[4].replace("\\040", " ")
        is_above = folder.is_relative_to(point)
        if is_above and len(point) >= len(best):  # the last mount on a place wins
            best, kind = point, right.split()[0]
    return kind
