"""Works of one session: the first that ends is the end of all, and so is a cancellation."""

import asyncio

import pytest

from bridge.amqp.consume.session import first_to_end
from bridge.errors import BrokerUnavailableError


async def turns(count: int = 5) -> None:
    """Let other tasks get on."""
    for _ in range(count):
        await asyncio.sleep(0)


class Works:
    """One that fails when it is told to, and one that takes its time to end."""

    def __init__(self) -> None:
        self.may_fail = asyncio.Event()
        self.may_end = asyncio.Event()

    async def fail(self) -> None:
        """Fail when told to."""
        await self.may_fail.wait()
        raise BrokerUnavailableError("consume", "the connection was lost")

    async def tidy(self) -> None:
        """End when told to, after being cancelled."""
        try:
            await asyncio.Event().wait()
        finally:
            await self.may_end.wait()

    def start(self) -> "asyncio.Task[None]":
        """Run both."""
        return asyncio.create_task(first_to_end([self.fail, self.tidy]))


async def test_the_failure_of_one_is_that_of_all() -> None:
    """And in its own words, not those of a group."""
    works = Works()
    running = works.start()
    works.may_fail.set()
    works.may_end.set()

    with pytest.raises(BrokerUnavailableError, match="the connection was lost"):
        await running


async def test_a_cancellation_in_the_moment_of_a_failure_is_not_lost() -> None:
    """A bridge that is told to end while the broker goes away would never end."""
    works = Works()
    running = works.start()
    await turns()
    works.may_fail.set()
    running.cancel()
    works.may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_cancellation_while_the_others_end_is_not_lost() -> None:
    """They may say goodbye to a broker that does not answer, for seconds."""
    works = Works()
    running = works.start()
    await turns()
    works.may_fail.set()
    await turns()
    running.cancel()
    await turns()
    works.may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await running
