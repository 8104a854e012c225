"""
What every test may lean on: a real broker, a name of its own, and waiting without sleeping.

A missing RabbitMQ fails the run: nothing here skips.
"""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Final

import pytest
import pytest_asyncio
from blockbuster import blockbuster_ctx

from bridge.demo.private_node import LocalNode
from tests.guard import be_guarded

# Scales every limit of the tests for slow machines. Not BRIDGE_*: those are settings,
# and the bridge refuses those that it does not know.
SLOW_FACTOR: Final = float(os.environ.get("TESTS_SLOW_FACTOR", "1"))

# The second one for shards of earlier versions, and of RabbitMQ 4.2.
HASH_PLUGINS: Final = ("rabbitmq_sharding", "rabbitmq_consistent_hash_exchange")

_POLL_S: Final = 0.01


def pytest_configure(config: pytest.Config) -> None:
    """Let nothing outlive the run; scale the limit of each test like all others."""
    be_guarded()
    if config.getoption("timeout") is None:
        config.option.timeout = float(config.getini("timeout")) * SLOW_FACTOR


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what the broker logged last beside a failure: its folder goes with the run."""
    report = yield
    node = getattr(item, "funcargs", {}).get("broker")
    if report.failed and isinstance(node, LocalNode):
        report.sections.append((f"Log of {node.name}", node.setup.log_tail()))
    return report


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def broker() -> AsyncIterator[LocalNode]:
    """One private RabbitMQ node for the whole run; tests keep apart by `namespace`."""
    async with LocalNode.start(
        plugins=HASH_PLUGINS, ready_within_s=90 * SLOW_FACTOR
    ) as node:
        yield node


@pytest.fixture(autouse=True)
def blocking_calls_fail(request: pytest.FixtureRequest) -> Iterator[None]:
    """In integration tests, a call of the bridge that blocks the event loop is an error."""
    if "integration" not in request.path.parts:
        yield
        return
    with blockbuster_ctx("bridge") as blocking:
        # /proc is no disk: it never makes anybody wait.
        for call in ("io.BufferedReader.read", "os.listdir"):
            blocking.functions[call].can_block_in("process_collector.py", "collect")
        # Once, before the first window.
        blocking.functions["os.unlink"].can_block_in("fd_passing.py", "run")
        yield


@pytest.fixture
def namespace() -> str:
    """Return the first part of all names that this test uses on the broker."""
    return f"t{secrets.token_hex(4)}"


async def eventually(
    condition: Callable[[], object | Awaitable[object]], *, within_s: float = 10.0
) -> None:
    """
    Wait until `condition` returns something true, awaited if need be.

    Args:
        condition: Called every few milliseconds; cheap and without effects.
        within_s: The limit, scaled by TESTS_SLOW_FACTOR.

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
