#!/usr/bin/env python3
"""
Run a program so that Ctrl-C reaches the program, but not the `make` that started it.

A terminal sends Ctrl-C to the whole foreground process group. make would then report a
demo that the user stopped as an error. Therefore the program gets a process group of its
own, which is the foreground group while it runs. When this process or make ends, the
program is terminated, too.
"""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
MAKE_POLL_S = 0.5


def main() -> int:
    """Run the program named by the arguments; return its exit code."""
    end_with_parent()
    # Ctrl-Z would stop a process group that the shell does not know and never resumes.
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # needed for tcsetpgrp below
    program = subprocess.Popen(
        sys.argv[1:],
        process_group=0,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - no threads here
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: program.send_signal(number))
    make = os.getppid()
    has_terminal = os.isatty(0)
    if has_terminal:
        os.tcsetpgrp(0, program.pid)
    try:
        code = wait(program)
    finally:
        # If make was killed, its shell has taken the terminal back, or is about to: to set
        # another group would end the shell at the next input.
        if has_terminal and os.getppid() == make and os.tcgetpgrp(0) == program.pid:
            os.tcsetpgrp(0, os.getpgrp())
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    print(
        f"{Path(sys.argv[1]).name} was ended by {name}; all its processes are stopped and its "
        "files removed",
        file=sys.stderr,
    )
    return 128 - code  # the shell's status for "ended by a signal"


def end_with_parent() -> None:
    """Receive SIGTERM when the parent ends, for any reason."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def wait(program: "subprocess.Popen[bytes]") -> int:
    """Wait for the program, and forward an interrupt that only make received."""
    # After SIGINT, GNU make restores the default action and waits for its children without
    # signaling them. Children in another process group would run on, and make would hang.
    did_catch = catches_interrupt(os.getppid())
    while True:
        try:
            return program.wait(MAKE_POLL_S)
        except subprocess.TimeoutExpired:
            if did_catch and not catches_interrupt(os.getppid()):
                did_catch = False
                program.send_signal(signal.SIGINT)


def catches_interrupt(pid: int) -> bool:
    """Whether process `pid` has a handler for SIGINT (proc(5): SigCgt, a mask in hex)."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGINT - 1) & 1)


if __name__ == "__main__":
    sys.exit(main())
