"""
Become another program, on given processors, that dies with whoever started it.

    python -m tests.bench.pinned 0 node server.js
"""

import ctypes
import os
import resource
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_PTRACER: Final = 0x59616D61
_ANYBODY: Final = -1


def main() -> None:
    """Do so."""
    processors, *command = sys.argv[1:]
    if processors != "any":
        os.sched_setaffinity(0, {int(word) for word in processors.split(",")})
    # The bench may be killed; what it started must not stay.
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The profiler is no parent of it; kernels with Yama want that allowed.
    prctl(_PR_SET_PTRACER, ctypes.c_long(_ANYBODY))
    # Ctrl-C is for the bench, which ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.execvp(command[0], command)  # noqa: S606 - that is what it is for


if __name__ == "__main__":
    main()
