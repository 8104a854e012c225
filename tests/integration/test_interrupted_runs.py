"""Nothing is left of a test run that was interrupted: no process, no temporary folder."""

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
from tests.guard import ROOT_OF_ALL
from tests.integration import guarded_run
from tests.processes import family_of, is_alive

ROOT = Path(__file__).parents[2]
WITHIN_S = 40.0
# Those that the run needs; the others take seconds to load, in each process.
PLUGINS = ("-p", "xdist.plugin", "-p", "pytest_asyncio.plugin", "-p", "pytest_timeout")


@dataclass
class Run:
    """A run of two processes, with a test that never ends in each."""

    process: Process
    temporary: Path
    ready: Path

    def worker(self) -> int:
        """Return the id of the process that runs the test with the servers."""
        return int((self.ready / "servers").read_text())

    @asynccontextmanager
    async def leaving_nothing(self) -> AsyncIterator[None]:
        """Check that the end that it is put to leaves no process and no file."""
        family = family_of(self.process.pid)
        yield
        try:
            await eventually(lambda: not any(map(is_alive, family)), within_s=WITHIN_S)
        except AssertionError as exc:
            exc.add_note(f"left: {[told(pid) for pid in family if is_alive(pid)]}")
            raise
        await eventually(lambda: not list(self.temporary.iterdir()))


def told(pid: int) -> str:
    """Say what a process is, and where it waits."""
    folder = Path("/proc", str(pid))
    try:
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return f"{pid} {command} ({(folder / 'wchan').read_text()})"
    except OSError:
        return f"{pid}, gone meanwhile"


@asynccontextmanager
async def a_run(folder: Path) -> AsyncIterator[Run]:
    """Start one, and hand it out when both tests have started all they want."""
    ready = folder / "ready"
    ready.mkdir()
    # Not in `folder`: the path of a socket has a hundred characters at most.
    temporary = Path(tempfile.mkdtemp(prefix="run-"))
    own = {
        "TMPDIR": str(temporary),
        ROOT_OF_ALL: str(temporary),
        guarded_run.READY: str(ready),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    with (folder / "output").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider"),
            *PLUGINS,
            *("--basetemp", folder / "pytest", guarded_run.__file__),
            cwd=ROOT,
            env=os.environ | own,
            stdin=DEVNULL,
            stdout=output,
            start_new_session=True,  # as the foreground group of a terminal
        )
    try:
        await eventually(lambda: len(list(ready.iterdir())) == 2, within_s=60)
        yield Run(process, temporary, ready)
    finally:
        if process.returncode is None:
            process.kill()
        async with asyncio.timeout(30 * SLOW_FACTOR):
            await process.wait()
        await eventually(lambda: not list(temporary.iterdir()), within_s=WITHIN_S)
        await asyncio.to_thread(temporary.rmdir)


async def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """What happens every day; the servers of last week would hold ports and memory."""
    async with a_run(tmp_path) as run, run.leaving_nothing():
        os.killpg(run.process.pid, signal.SIGINT)


async def test_each_process_that_ends_takes_along_what_it_started(
    tmp_path: Path,
) -> None:
    """A run goes on without one of its own: what that left would be in the others' way."""
    async with a_run(tmp_path) as run:
        family = family_of(run.worker())
        os.kill(run.worker(), signal.SIGKILL)
        await eventually(lambda: not any(map(is_alive, family)), within_s=WITHIN_S)

        async with run.leaving_nothing():
            run.process.terminate()  # as a CI does that is out of time
