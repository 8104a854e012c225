"""Check the inbox: whether its store is writable, and whether its disk has space."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bridge.core.redis_address import is_redis, parse_redis
from bridge.doctor.results import CheckResult, fail, ok, warn
from bridge.enums import ExitCode
from bridge.errors import ConfigError, StoreInUseError, StoreUnavailableError
from bridge.settings.checks import is_loopback
from bridge.settings.model import Settings
from bridge.wiring import inbox_of

_FREE_MIN_BYTES: Final = 64 << 20
# Checkpoints of the write-ahead log and copies for backups need space too.
_FREE_MIN_SHARE: Final = 0.1
# SQLite's file locks and shared memory are not reliable on these.
_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "afs", "lustre"}
)
_MOUNTS: Final = Path("/proc/self/mountinfo")


async def check_inbox(settings: Settings, *, is_running: bool) -> CheckResult:
    """
    Check that the store is writable, without creating a missing one.

    Args:
        settings: They name the store.
        is_running: Whether a bridge runs with these settings, and has the store open.

    """
    inbox = inbox_of(settings)
    try:
        if not await inbox.exists():  # opening would create it
            text = f"{inbox.description} does not exist yet; bridge run will create it"
            return ok("inbox", text)
        await inbox.open()
        await inbox.check()
    except StoreInUseError as exc:
        if is_running:  # its readiness reports problems of the store
            return ok("inbox", f"{inbox.description} is open in the running bridge")
        fix = "stop that bridge, or BRIDGE_INBOX=sqlite:ANOTHER-FILE"
        return warn("inbox", exc.problem, fix=fix)
    except ConfigError as exc:
        fix = (
            "BRIDGE_INBOX=sqlite:/var/lib/bridge/inbox.sqlite3, or another path or URL"
        )
        return fail("inbox", str(exc), fix=fix, exit_code=ExitCode.USAGE)
    except StoreUnavailableError as exc:
        is_peer = is_redis(settings.inbox)
        exit_code = ExitCode.UNREACHABLE if is_peer else ExitCode.FAILED
        fix = _redis_fix(settings) if is_peer else _FILE_FIX
        return fail("inbox", str(exc), fix=fix, exit_code=exit_code)
    finally:
        await inbox.close()
    return ok("inbox", f"{inbox.description} is writable")


def _redis_fix(settings: Settings) -> str:
    node = parse_redis(settings.inbox).hosts[0]
    if is_loopback(node.name):
        return "sudo systemctl start redis-server   # or start another Redis there"
    return (
        f"redis-cli -h {node.name} -p {node.port} ping   # must answer PONG from here"
    )


_FILE_FIX: Final = "ls -ld the folder of BRIDGE_INBOX: the user of bridge run must be able to write there"


def check_disk(settings: Settings, *, mounts: Path = _MOUNTS) -> Iterator[CheckResult]:
    """Check the disk of the SQLite file, if the inbox is one. Blocks on disk I/O."""
    kind, _, name = settings.inbox.partition(":")
    folder = Path(name).absolute().parent
    if kind != "sqlite" or not folder.is_dir():
        return  # `check_inbox` reports the missing folder
    used = sum(
        file.stat().st_size
        for file in (Path(name), Path(f"{name}-wal"))
        if file.exists()
    )
    if Path(name).exists() and Path(name).stat().st_mode & 0o077:
        text = f"other users of this machine can open {name}"
        yield warn("access to the inbox", text, fix=f"chmod 600 {name}")
    yield check_disk_space(free_bytes=shutil.disk_usage(folder).free, used_bytes=used)
    file_system = _file_system(folder.resolve(), mounts)
    if file_system in _NETWORK or (file_system or "").startswith("fuse."):
        text = f"{folder} is on {file_system}, where SQLite's locks may not work"
        yield warn("disk of the inbox", text, fix="BRIDGE_INBOX=sqlite:/a/local/path")


def check_disk_space(*, free_bytes: int, used_bytes: int) -> CheckResult:
    """Compare the free space with the size of the inbox."""
    text = f"{free_bytes >> 20} MiB free, the file has {used_bytes >> 20} MiB"
    if free_bytes < max(_FREE_MIN_BYTES, used_bytes * _FREE_MIN_SHARE):
        fix = (
            "free some space, or lower BRIDGE_INBOX_MAX_MESSAGES and "
            "BRIDGE_INBOX_MAX_AGE"
        )
        return fail("disk space of the inbox", text, fix=fix)
    return ok("disk space of the inbox", text)


def _file_system(folder: Path, mounts: Path) -> str | None:
    """Return the type of the file system of `folder`; `None` if it is not known."""
    best, file_system = "", None
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
        # A later mount on the same point hides the earlier one.
        if folder.is_relative_to(point) and len(point) >= len(best):
            best, file_system = point, right.split()[0]
    return file_system
