"""An interrupted test run leaves neither processes nor temporary folders."""

import asyncio
import os
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import SLOW_FACTOR, eventually
from tests.guard import TEMPORARY_ROOT
from tests.integration import guarded_run
from tests.processes import family_of, is_alive

ROOT = Path(__file__).parents[2]
WITHIN_S = 40.0
# Only the plugins that the run needs; loading all takes seconds in each process.
PLUGINS = ("-p", "xdist.plugin", "-p", "pytest_asyncio.plugin", "-p", "pytest_timeout")


@dataclass
class InterruptedRun:
    """A test run of two processes, each with a test that never ends."""

    process: Process
    temporary: Path
    ready: Path

    def servers_pid(self) -> int:
        """Return the id of the process that runs the test with the servers."""
        return int((self.ready / "servers").read_text())

    @asynccontextmanager
    async def leaves_nothing(self) -> AsyncIterator[None]:
        """Check that no process and no file is left after the block ends the run."""
        family = family_of(self.process.pid)
        yield
        try:
            await eventually(lambda: not any(map(is_alive, family)), within_s=WITHIN_S)
        except AssertionError as exc:
            exc.add_note(f"left: {[described(pid) for pid in family if is_alive(pid)]}")
            raise
        await eventually(lambda: not list(self.temporary.iterdir()))


def described(pid: int) -> str:
    """Return the command of a process, and the kernel function that it waits in."""
    folder = Path("/proc", str(pid))
    try:
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return f"{pid} {command} ({(folder / 'wchan').read_text()})"
    except OSError:
        return f"{pid}, which has ended"


@asynccontextmanager
async def start_run(folder: Path) -> AsyncIterator[InterruptedRun]:
    """Start a run, and wait until both tests have started their processes."""
    ready = folder / "ready"
    ready.mkdir()
    # Not in `folder`: the path of a socket has at most about 100 characters.
    temporary = Path(tempfile.mkdtemp(prefix="run-"))
    own = {
        "TMPDIR": str(temporary),
        TEMPORARY_ROOT: str(temporary),
        guarded_run.READY: str(ready),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    with (folder / "output").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            # A shell starts a program in the background with SIGINT ignored.
            *("env", "--default-signal=INT"),
            *(sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider"),
            *PLUGINS,
            *("--basetemp", folder / "pytest", guarded_run.__file__),
            cwd=ROOT,
            env=os.environ | own,
            stdin=DEVNULL,
            stdout=output,
            start_new_session=True,  # like the foreground process group of a terminal
        )
    try:
        await eventually(lambda: len(list(ready.iterdir())) == 2, within_s=60)
        yield InterruptedRun(process, temporary, ready)
    finally:
        if process.returncode is None:
            process.kill()
        async with asyncio.timeout(30 * SLOW_FACTOR):
            await process.wait()
        await eventually(lambda: not list(temporary.iterdir()), within_s=WITHIN_S)
        await asyncio.to_thread(temporary.rmdir)


async def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    """Left servers would use ports and memory for days."""
    async with start_run(tmp_path) as run, run.leaves_nothing():
        os.killpg(run.process.pid, signal.SIGINT)


async def test_a_killed_process_of_the_run_leaves_no_children(
    tmp_path: Path,
) -> None:
    """The run continues without it, and its children would disturb the other tests."""
    async with start_run(tmp_path) as run:
        family = family_of(run.servers_pid())
        os.kill(run.servers_pid(), signal.SIGKILL)
        await eventually(lambda: not any(map(is_alive, family)), within_s=WITHIN_S)

        async with run.leaves_nothing():
            run.process.terminate()  # like a CI job at its time limit
