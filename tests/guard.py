"""
Ends all processes that a test run started, even if the run is interrupted.

Fixtures stop the servers that they start. They do not run if the process of the tests is
killed: by kill -9, or by Ctrl-C and SIGTERM with several processes. Servers, clients and
browsers would then continue to run.

Each process of the run therefore has a guard: this file as a program, connected by a pipe.
The process writes the id of every child into the pipe. When the pipe closes, the process
has ended, and the guard ends the remaining children and their descendants. It sends SIGTERM
first, so that a browser's driver and a node's keeper can clean up. Finally it removes the
folder for temporary files.

PR_SET_PDEATHSIG would need no guard, but it reacts to the end of the *thread* that started
a child, and some servers are started in threads that end before them.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

# Pytest's variable for the root of its temporary folders.
TEMPORARY_ROOT: Final = "PYTEST_DEBUG_TEMPROOT"

_IN_MEMORY: Final = "/dev/shm"  # noqa: S108 - each run makes a folder of its own there
_ROOM_BYTES: Final = 1024**3  # a run needs a tenth of it

# Most processes clean up and end within a second; a bridge drains for up to ten.
_TERMINATED_WITHIN_S: Final = 20.0
_KILLED_WITHIN_S: Final = 5.0
_POLL_S: Final = 0.02


# --- in the guarded process


def start_guard() -> None:
    """End all later children of this process together with it. Call it once."""
    # Pytest keeps the folders of failed tests there, and removes old ones itself.
    root = os.environ.setdefault(TEMPORARY_ROOT, _temporary_root())
    folder = tempfile.mkdtemp(prefix="tests-", dir=root)
    # Some tests run programs as another user, who needs access.
    Path(folder).chmod(0o711)
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = None
    theirs, ours = os.pipe()
    os.set_blocking(ours, False)  # event loops write to it
    with Path(os.devnull).open("r+b") as null:
        # Popen would warn at the end of this process that the guard still runs.
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", __file__, folder],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs, 0),
                # A reader of this process's output must not wait for the end of the guard.
                (os.POSIX_SPAWN_DUP2, null.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, null.fileno(), 2),
            ],
            setsid=True,  # Ctrl-C must not end the guard
        )
    os.close(theirs)

    class Popen(subprocess.Popen[Any]):
        """Reports each process to the guard; asyncio and libraries use it, too."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            os.write(ours, b"%d\n" % self.pid)

    subprocess.Popen = Popen  # type: ignore[misc]  # covers every test


def _temporary_root() -> str:
    """
    Return a folder in memory if it has room, unless TMPDIR names another.

    Brokers and stores wait for the disk at each commit. No test notices the difference: a
    process that is killed loses nothing that it has written, in memory or on a disk.
    """
    usual = tempfile.gettempdir()
    try:
        folder = os.statvfs(_IN_MEMORY)
    except OSError:
        return usual
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    has_room = min(folder.f_bavail * folder.f_frsize, free_bytes) >= _ROOM_BYTES
    may_run = os.access(_IN_MEMORY, os.W_OK) and not folder.f_flag & os.ST_NOEXEC
    return _IN_MEMORY if has_room and may_run and "TMPDIR" not in os.environ else usual


# --- the guard


def main() -> None:
    """Collect children until the guarded process has ended, then end them."""
    children: dict[int, int] = {}
    unread = b""
    while chunk := os.read(0, 65536):
        *lines, unread = (unread + chunk).split(b"\n")
        _forget_ended(children)
        _watch(children, map(int, lines))
    family = dict(children)
    _watch(family, _descendants(family))
    for descriptor in children.values():
        _signal(descriptor, signal.SIGTERM)
        _signal(descriptor, signal.SIGCONT)  # a frozen process handles no signal
    _wait_for_end(family, within_s=_TERMINATED_WITHIN_S)
    for descriptor in family.values():
        _signal(descriptor, signal.SIGKILL)
    _wait_for_end(family, within_s=_KILLED_WITHIN_S)
    shutil.rmtree(sys.argv[1], ignore_errors=True)


def _watch(processes: dict[int, int], pids: Iterable[int]) -> None:
    """Add processes with a descriptor each, which cannot refer to a later process."""
    for pid in pids:
        if pid not in processes:
            with suppress(ProcessLookupError):
                processes[pid] = os.pidfd_open(pid)


def _signal(descriptor: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, number)


def _wait_for_end(family: dict[int, int], *, within_s: float) -> None:
    """Wait until all have ended, including the processes that they still start."""
    until_s = time.monotonic() + within_s
    while True:
        _watch(family, _descendants(family))
        _forget_ended(family)
        if not family or time.monotonic() > until_s:
            return
        time.sleep(_POLL_S)


def _forget_ended(processes: dict[int, int]) -> None:
    poll = select.poll()
    for descriptor in processes.values():
        poll.register(descriptor, select.POLLIN)
    ended = {descriptor for descriptor, _ in poll.poll(0)}
    for pid, descriptor in list(processes.items()):
        if descriptor in ended:
            os.close(descriptor)
            del processes[pid]


def _descendants(pids: Iterable[int]) -> set[int]:
    """Return all descendants of `pids`."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                stat = (entry / "stat").read_text(errors="replace")
                parent = int(stat.rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        for child in children.get(waiting.pop(), []):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


if __name__ == "__main__":
    main()
