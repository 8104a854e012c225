"""
A program that runs processes and a folder for its parent, and removes all with the parent.

processes.py starts it. The parent holds the write end of this program's standard input.
However the parent ends (return, exception, Ctrl-C, kill -9), the kernel closes that end.
This program then reads end-of-file, kills all its descendants and removes the folder. A
normal stop uses the same end-of-file, so every run exercises the path after a crash.

Process groups are not enough: the Erlang VM starts its port programs in sessions of their
own, and a daemon leaves any group. This program is a "child subreaper" instead (prctl(2)):
descendants that lose their parent become its children. It kills its children until none is
left, which finds all descendants and nothing else.

Commands and reports are JSON lines, on standard input and standard output:

    {"do": "start", "name", "program": [...], "environment": {...}}  -> {"started": name, "pid"}
    {"do": "signal", "name", "signal": 9}                            -> {"signalled": name}
    at the start                                                     -> {"folder": path}
    when a process ends                                              -> {"exited": name, "code"}
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36

# Killed processes end within milliseconds, except in uninterruptible disk sleep.
_END_TIMEOUT_S: Final = 10.0
# RabbitMQ reserves files for its queues, and accepts no connection when they are all reserved:
# with 1,024, which shells usually allow, after some hundred queues. Its packages set this much.
_FILES_MAX: Final = 65_536


class Keeper:
    """Runs the named processes and serves the parent's commands."""

    def __init__(self, folder: Path, *, wakeups: int) -> None:
        self._folder = folder
        self._wakeups = wakeups
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._unread = b""

    def run(self) -> None:
        """Serve commands until the parent ends or SIGTERM arrives."""
        self._report(folder=str(self._folder))
        commands = sys.stdin.fileno()
        while True:
            ready, _, _ = select.select([commands, self._wakeups], [], [])
            if self._wakeups in ready:
                if signal.SIGTERM in os.read(self._wakeups, 4096):
                    return
                self._reap()
            if commands in ready:
                chunk = os.read(commands, 65536)
                if not chunk:
                    return
                *lines, self._unread = (self._unread + chunk).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))

    def _obey(self, command: dict[str, Any]) -> None:
        name = command["name"]
        if command["do"] == "start":
            process = self._start(name, command["program"], command["environment"])
            self._processes[name] = process
            self._report(started=name, pid=process.pid)
        else:
            # The whole group, which includes a start script around the program. Its
            # leader is not reaped yet, so the kernel has not reused the number.
            if name in self._processes:
                os.killpg(self._processes[name].pid, command["signal"])
            self._report(signalled=name)

    def _start(
        self, name: str, program: list[str], environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.out").open("ab") as output:
            return subprocess.Popen(  # noqa: S603 - the parent names the program
                program,
                env=environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_keeper,  # noqa: PLW1509 - no threads here
            )

    def _reap(self) -> None:
        for pid, code in _ended_children():
            for name, process in list(self._processes.items()):
                if process.pid == pid:
                    process.returncode = code
                    del self._processes[name]
                    self._report(exited=name, code=code)

    def _report(self, **facts: object) -> None:
        line = json.dumps(facts) + "\n"
        # A parent that has ended reads nothing; standard input then ends this program.
        with contextlib.suppress(BrokenPipeError):
            os.write(sys.stdout.fileno(), line.encode())


def main() -> None:
    """Run until the parent ends; leave no process and no folder behind."""
    # The terminal sends Ctrl-C to the whole foreground group; the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wakeups, wakeups_in = os.pipe()
    os.set_blocking(wakeups_in, False)
    signal.set_wakeup_fd(wakeups_in)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, _FILES_MAX)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    folder = Path(tempfile.mkdtemp(prefix="bridge-node-"))
    try:
        Keeper(folder, wakeups=wakeups).run()
    finally:
        _end_children()
        shutil.rmtree(folder, ignore_errors=True)


def _end_children() -> None:
    """
    Kill all children, then the descendants they leave behind, until none is left.

    Without SIGTERM first: the folder is removed, so there is no data to save.
    """
    deadline = time.monotonic() + _END_TIMEOUT_S
    while time.monotonic() < deadline:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is not reused
        for _ in _ended_children():
            pass
        if not _children():
            return
        time.sleep(0.01)


def _children() -> list[int]:
    """Return the ids of all children, zombies included."""
    own_pid = os.getpid()
    found: list[int] = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended, or belongs to another user
        # proc(5): pid (name) state ppid; the name may hold spaces and parentheses.
        if int(stat.rpartition(")")[2].split()[1]) == own_pid:
            found.append(int(entry.name))
    return found


def _ended_children() -> Iterator[tuple[int, int]]:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def _die_with_keeper() -> None:
    """Ask the kernel to kill the new program if the keeper itself is killed."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    main()
