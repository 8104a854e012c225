"""
Replace this process by a program that runs on given processors and dies with its parent.

    python -m tests.bench.run_pinned 0 node server.js
"""

import ctypes
import os
import resource
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_PTRACER: Final = 0x59616D61
_ANY_PROCESS: Final = -1


def main() -> None:
    """Pin this process and execute the program of the arguments."""
    processors, *command = sys.argv[1:]
    if processors != "any":
        os.sched_setaffinity(0, {int(word) for word in processors.split(",")})
    # The program must not outlive a bench that is killed.
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The profiler is not its parent: kernels with Yama must allow it to attach.
    prctl(_PR_SET_PTRACER, ctypes.c_long(_ANY_PROCESS))
    # The bench handles Ctrl-C and ends this program.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.execvp(command[0], command)  # noqa: S606 - it is the purpose of this program


if __name__ == "__main__":
    main()
