"""A test run leaves temporary folders only where a test has failed."""

import os
import sys
import tempfile
from asyncio import create_subprocess_exec
from asyncio.subprocess import DEVNULL
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import eventually
from tests.guard import TEMPORARY_ROOT

_ROOT: Final = Path(__file__).parents[2]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Return the folder that a run has instead of /tmp."""
    with tempfile.TemporaryDirectory(prefix="run-") as folder:
        yield Path(folder)


def names_in(folder: Path) -> set[str]:
    """Return the names of everything in `folder`, at any depth."""
    return {path.name for path in folder.rglob("*")}


async def run(test: str, *, folder: Path, temporary: Path) -> int | None:
    """Run one test in two processes, with the fixtures of all tests; return its status."""
    path = folder / "test_run.py"
    path.write_text(test)
    process = await create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider"),
        *("-p", "xdist.plugin", "-p", "pytest_asyncio.plugin", "-p", "pytest_timeout"),
        *("-p", "tests.conftest", "-c", _ROOT / "pyproject.toml", path),
        cwd=_ROOT,
        env=os.environ
        | {
            "TMPDIR": str(temporary),
            TEMPORARY_ROOT: str(temporary),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        stdin=DEVNULL,
        stdout=DEVNULL,
    )
    return await process.wait()


async def test_a_run_that_passes_leaves_no_folder(
    tmp_path: Path, temporary: Path
) -> None:
    """The folders of a whole run have 40 MB, and /tmp may be in memory."""
    passes = "def test(tmp_path): (tmp_path / 'data').touch()"

    assert await run(passes, folder=tmp_path, temporary=temporary) == 0

    # The guards end shortly after the run.
    await eventually(lambda: not names_in(temporary))


async def test_the_folder_of_a_failed_test_is_kept(
    tmp_path: Path, temporary: Path
) -> None:
    """Logs in it may explain the failure."""
    fails = "def test(tmp_path): (tmp_path / 'data').touch(); assert False"

    assert await run(fails, folder=tmp_path, temporary=temporary) == 1

    assert "data" in names_in(temporary)
