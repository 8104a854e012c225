#!/usr/bin/env python3
"""
Run a program so that Ctrl-C is its own affair, and not that of the `make` around it.

On a terminal, Ctrl-C goes to the whole foreground group, and make would call a demo that
was ended on purpose an error. So the program gets a group of its own, and the terminal
for as long as it runs. However we or make are ended, the program is asked to end, too.
"""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
LOOK_AT_MAKE_EVERY_S = 0.5


def main() -> int:
    """Run the program named by the arguments; return its exit code."""
    end_with_parent()
    # Nobody would wake a program that Ctrl-Z stopped in a group that the shell never knew.
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # so that we may give the terminal
    program = subprocess.Popen(
        sys.argv[1:],
        process_group=0,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - no threads here
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: program.send_signal(number))
    has_terminal = os.isatty(0)
    if has_terminal:
        os.tcsetpgrp(0, program.pid)
    try:
        code = wait(program)
        return code if code >= 0 else 128 - code  # as a shell says "by signal"
    finally:
        if has_terminal:
            os.tcsetpgrp(0, os.getpgrp())


def end_with_parent() -> None:
    """Be asked to end (SIGTERM) when the parent goes away, however that happens."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def wait(program: "subprocess.Popen[bytes]") -> int:
    """Wait for the program, and pass on an interrupt that only make was sent."""
    # GNU make that gets SIGINT goes back to the default action for it, tells nobody, and
    # waits for its children, for ever if they were not in the group that was signalled.
    did_catch = catches_interrupt(os.getppid())
    while True:
        try:
            return program.wait(LOOK_AT_MAKE_EVERY_S)
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
