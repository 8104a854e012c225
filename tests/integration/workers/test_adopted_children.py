"""Children that bridge adopts, as PID 1 of a container does."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import eventually
from tests.integration.workers.conftest import Program, program
from tests.local_node import LocalNode
from tests.processes import is_alive
from tests.redis_server import RedisServer

# Makes the process a parent for orphans, as PID 1 is, leaves it a child that ended and two
# orphans that run, and then becomes bridge.
_LIKE_PID_1: Final = """
import ctypes, os, subprocess, sys
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
sleep = "sleep 600 >/dev/null 2>&1 </dev/null &"
subprocess.Popen(["sh", "-c", f"{sleep} {sleep} exit 3"])
os.execv(sys.executable, [sys.executable, "-m", "bridge", *sys.argv[1:]])
"""


def children(running: Program) -> dict[int, str]:
    """Return the names of the direct children, by process id; zombies have names, too."""
    pid = running.process.pid
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    names = {}
    for one in found:
        with suppress(OSError):  # it was reaped meanwhile
            names[int(one)] = Path(f"/proc/{one}/comm").read_text().strip()
    return names


@pytest.mark.parametrize("workers", [1, 2])
async def test_adopted_children_do_not_stay_as_zombies(
    broker: LocalNode, namespace: str, redis_server: RedisServer, workers: int
) -> None:
    """A container with a health check of a shell script would run out of process ids."""
    launcher = (sys.executable, "-c", _LIKE_PID_1)
    async with program(
        broker, namespace, redis_server, workers=workers, launcher=launcher
    ) as running:
        names = list(children(running).values())
        orphans = [p for p, name in children(running).items() if name == "sleep"]
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
        assert len(orphans) == 2, names

        def are_reaped() -> bool:
            return not {"sleep", "sh"} & set(children(running).values())

        await eventually(are_reaped, within_s=20)

        # The exit status of a worker still reaches the supervisor, which starts another one.
        before = running.workers()
        if workers > 1:
            os.kill(before[0], signal.SIGKILL)
            await eventually(
                lambda: len(set(running.workers()) - set(before)) == 1, within_s=30
            )
            await eventually(running.is_ready, within_s=30)
        assert not is_alive(orphans[0])
