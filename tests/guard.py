"""
End what a test run started with the run, however the run ends.

Fixtures end what they start where the run goes to its end. Where it does not (Ctrl-C
and SIGTERM with several processes, where each is killed at its work; kill -9), the
kernel leaves their children to nobody: servers, clients and browsers would run on.

So each process of the run has a guard: this file run as a program, with a pipe from
the process that it guards. It is told of every child, and when the pipe ends, the
process is gone, and it ends the children that are left and all their descendants. It
asks first: a browser's driver and a node's keeper tidy up after themselves. What
nobody tidied up lies in a folder for temporary files, which it removes.

Not PR_SET_PDEATHSIG, which would spare the guard: it tells of the end of the *thread*
that started a child, and servers are started and ended in threads that live shorter.
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

# Where temporary folders are: pytest's word for it.
ROOT_OF_ALL: Final = "PYTEST_DEBUG_TEMPROOT"

# What is asked to go and tidies up is gone in a second; a bridge that drains in ten.
_GO_WITHIN_S: Final = 20.0
_KILLED_WITHIN_S: Final = 5.0
_LOOK_EACH_S: Final = 0.02


# --- in the process that is guarded


def be_guarded() -> None:
    """Let all that this process starts from now on end with it. Call it once."""
    # What pytest keeps to be looked at stays where it was; it removes old ones itself.
    root = os.environ.setdefault(ROOT_OF_ALL, tempfile.gettempdir())
    folder = tempfile.mkdtemp(prefix="tests-", dir=root)
    # Some tests run programs as another user, who has to get through.
    Path(folder).chmod(0o711)
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = None
    theirs, ours = os.pipe()
    os.set_blocking(ours, False)  # children are told of in event loops
    with Path(os.devnull).open("r+b") as nowhere:
        # Not by Popen, which complains at the end of us that its process still runs.
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", __file__, folder],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs, 0),
                # Whoever waits for the end of our output must not wait for it.
                (os.POSIX_SPAWN_DUP2, nowhere.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, nowhere.fileno(), 2),
            ],
            setsid=True,  # Ctrl-C is not for it
        )
    os.close(theirs)

    class Popen(subprocess.Popen[Any]):
        """One that the guard is told of; asyncio and libraries take it from here, too."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            os.write(ours, b"%d\n" % self.pid)

    subprocess.Popen = Popen  # type: ignore[misc] # so that no test has to think of it


# --- the guard


def main() -> None:
    """Hear of children until the process that we guard is gone; then end them."""
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
        _signal(descriptor, signal.SIGCONT)  # a frozen one hears nothing
    _wait_for_end(family, within_s=_GO_WITHIN_S)
    for descriptor in family.values():
        _signal(descriptor, signal.SIGKILL)
    _wait_for_end(family, within_s=_KILLED_WITHIN_S)
    shutil.rmtree(sys.argv[1], ignore_errors=True)


def _watch(processes: dict[int, int], pids: Iterable[int]) -> None:
    """Add processes by id, with a descriptor each, which never means another process."""
    for pid in pids:
        if pid not in processes:
            with suppress(ProcessLookupError):
                processes[pid] = os.pidfd_open(pid)


def _signal(descriptor: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, number)


def _wait_for_end(family: dict[int, int], *, within_s: float) -> None:
    """Wait until all have ended, those as well that they start meanwhile."""
    until_s = time.monotonic() + within_s
    while True:
        _watch(family, _descendants(family))
        _forget_ended(family)
        if not family or time.monotonic() > until_s:
            return
        time.sleep(_LOOK_EACH_S)


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
    """Return the children of `pids`, and theirs, and so on."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                stat = (entry / "stat").read_text(errors="replace")
                parent = int(stat.rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    todo = list(pids)
    while todo:
        for child in children.get(todo.pop(), []):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


if __name__ == "__main__":
    main()
