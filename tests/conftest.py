"""
Fixtures and helpers of all tests: a real broker, a namespace, and waiting for conditions.

A missing RabbitMQ fails the run; no test is skipped.
"""

import asyncio
import gc
import os
import resource
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import suppress
from getpass import getuser
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from blockbuster import blockbuster_ctx
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tests.guard import TEMPORARY_ROOT, start_guard
from tests.local_node import LocalNode

# Some tests open a thousand windows, and shells usually allow 1,024 files.
_, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (_hard, _hard))

# Scales every time limit of the tests for slow machines. The name does not begin with
# BRIDGE_, because the bridge refuses unknown settings.
SLOW_FACTOR: Final = float(os.environ.get("TESTS_SLOW_FACTOR", "1"))

# The second plugin is for shards of earlier versions, and of RabbitMQ 4.2.
HASH_PLUGINS: Final = ("rabbitmq_sharding", "rabbitmq_consistent_hash_exchange")

_POLL_S: Final = 0.01

# One process runs a whole file: begun late, this one runs alone at the end.
_LONGEST_FILE: Final = "tests/faults/test_suite_short.py"

# One process runs a whole folder of these: its files share a demo, a browser or a node, which
# each process would start for itself.
_WHOLE_FOLDERS: Final = ("tests/browser/", "tests/integration/doctor/")


def pytest_configure(config: pytest.Config) -> None:
    """Start the guard of this process, and scale the time limit of each test."""
    start_guard()
    if config.getoption("timeout") is None:
        config.option.timeout = float(config.getini("timeout")) * SLOW_FACTOR


def pytest_unconfigure() -> None:
    """Remove pytest's folder for all runs, unless one of them has left files in it."""
    with suppress(KeyError, OSError):  # an unknown user; no such folder, or not empty
        folder = Path(os.environ[TEMPORARY_ROOT], f"pytest-of-{getuser()}")
        newest = folder / "pytest-current"
        # A process of xdist gets here before the folder of the run is removed.
        if newest.is_symlink() and not newest.exists():
            newest.unlink()
        folder.rmdir()


class FolderScheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives a process a file at a time, and some folders as a whole."""

    def _split_scope(self, nodeid: str) -> str:
        for folder in _WHOLE_FOLDERS:
            if nodeid.startswith(folder):
                return folder
        file: str = super()._split_scope(nodeid)
        return file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(
    config: pytest.Config, log: Producer
) -> LoadFileScheduling | None:
    """Replace the scheduler of `--dist loadfile`."""
    is_by_file = config.getoption("dist") == "loadfile"
    return FolderScheduling(config, log) if is_by_file else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Do not look for garbage among modules and tests, which all stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Run the longest file first, and refuse tests that share a node id.

    xdist would run only one of those.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(_LONGEST_FILE))
    shared = [
        node for node, n in Counter(item.nodeid for item in items).items() if n > 1
    ]
    if shared:
        message = f"several tests have the node id {shared[0]}"
        raise pytest.UsageError(message)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the end of the broker's log to a failure; the run deletes its folder."""
    report = yield
    node = getattr(item, "funcargs", {}).get("broker")
    if report.failed and isinstance(node, LocalNode):
        report.sections.append((f"Log of {node.name}", node.setup.log_tail()))
    return report


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def broker() -> AsyncIterator[LocalNode]:
    """Start one private RabbitMQ node for the run; `namespace` separates the tests."""
    async with LocalNode.start(
        plugins=HASH_PLUGINS, ready_within_s=90 * SLOW_FACTOR
    ) as node:
        # The queues of all tests stay. Each would measure itself every five seconds.
        await node.evaluate(
            "application:set_env(rabbit, quorum_tick_interval, 600000)."
        )
        yield node


@pytest.fixture(autouse=True)
def blocking_calls_fail(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail an integration test in which the bridge blocks the event loop."""
    if "integration" not in request.path.parts:
        yield
        return
    with blockbuster_ctx("bridge") as blocking:
        # Reads of /proc do not wait for a disk.
        for call in ("io.BufferedReader.read", "os.listdir"):
            blocking.functions[call].can_block_in("process_collector.py", "collect")
        # It runs once, before the first window.
        blocking.functions["os.unlink"].can_block_in("fd_passing.py", "run")
        yield


@pytest.fixture
def namespace() -> str:
    """Return the prefix of all names that this test uses on the broker."""
    return f"t{secrets.token_hex(4)}"


async def eventually(
    condition: Callable[[], object | Awaitable[object]], *, within_s: float = 10.0
) -> None:
    """
    Wait until `condition` returns a true value.

    Args:
        condition: Called every 10 ms; may be a coroutine function. It must be cheap and
            have no effects.
        within_s: The time limit, scaled by TESTS_SLOW_FACTOR.

    Raises:
        AssertionError: If it does not become true in time.

    """
    deadline = time.monotonic() + within_s * SLOW_FACTOR
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {condition}"
        await asyncio.sleep(_POLL_S)
