"""The profile of property tests: the same examples at each run, without a deadline."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings

from tests.unit.pipeline_fakes import Harness

settings.register_profile(
    "unit",
    deadline=None,  # a busy machine is not a fault of the code
    derandomize=True,  # a failure is reproducible
    database=None,
    # Building the Unicode tables of a fresh checkout takes seconds.
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unit")


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    """A pipeline with fakes around it, and a running outbox."""
    harness = Harness()
    running = asyncio.create_task(harness.outbox.run())
    yield harness
    running.cancel()
    with suppress(asyncio.CancelledError, MemoryError):
        await running
