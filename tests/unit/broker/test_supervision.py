"""How work is ended from outside, and how its errors come out."""

import asyncio

import pytest

from bridge.broker.supervision import run_until
from bridge.errors import TopologyError


async def test_closing_ends_the_work() -> None:
    """`close` is asked for from another task than the one that runs."""
    closing = asyncio.Event()
    was_cancelled = asyncio.Event()

    async def work() -> None:
        closing.set()
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()

    await run_until(closing, work())

    assert was_cancelled.is_set()


async def test_work_that_fails_is_heard_of_as_it_is() -> None:
    """The start of the bridge must end with the sentence, not with a group of errors."""

    async def work() -> None:
        raise TopologyError("queue", "differs", "delete it")

    with pytest.raises(TopologyError):
        await run_until(asyncio.Event(), work())


async def test_work_that_is_done_needs_no_closing() -> None:
    """A session that ended on purpose ends its supervision."""

    async def work() -> None:
        pass

    await run_until(asyncio.Event(), work())
