"""Sessions with the broker: works that run together, and the log of an outage."""

import asyncio

import pytest
from structlog.testing import capture_logs

from bridge.amqp.connection import Purpose
from bridge.amqp.supervision import OutageLog, first_to_end
from bridge.errors import BrokerUnavailableError
from tests.clock import Clock


async def run_other_tasks(turns: int = 5) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


class Works:
    """A work that ends or fails on request, and one whose cancellation takes time."""

    def __init__(self, *, fails_when_cancelled: bool = False) -> None:
        self.may_fail = asyncio.Event()
        self.may_return = asyncio.Event()
        self.may_clean_up = asyncio.Event()
        self._fails_when_cancelled = fails_when_cancelled

    async def fail(self) -> None:
        """Fail on request."""
        await self.may_fail.wait()
        raise BrokerUnavailableError("consume", "the connection was lost")

    async def return_(self) -> None:
        """Return on request."""
        await self.may_return.wait()

    async def clean_up(self) -> None:
        """Run until cancelled, then clean up on request."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await self.may_clean_up.wait()
            if self._fails_when_cancelled:
                raise BrokerUnavailableError(
                    "renew", "the connection was lost"
                ) from None
            raise

    def start(self) -> "asyncio.Task[None]":
        """Run all of them."""
        works = [self.fail, self.return_, self.clean_up]
        return asyncio.create_task(first_to_end(works))


async def test_the_failure_of_one_work_is_raised() -> None:
    """The caller receives the error itself, not an exception group."""
    works = Works()
    running = works.start()
    works.may_fail.set()
    works.may_clean_up.set()

    with pytest.raises(BrokerUnavailableError, match="the connection was lost"):
        await running


async def test_a_failure_after_an_orderly_end_is_no_cancellation() -> None:
    """The intake would end as a cancelled task, which its supervisor does not restart."""
    works = Works(fails_when_cancelled=True)
    running = works.start()
    works.may_return.set()
    works.may_clean_up.set()

    with pytest.raises(BrokerUnavailableError, match="the connection was lost"):
        await running


async def test_a_cancellation_at_the_moment_of_a_failure_is_not_lost() -> None:
    """A bridge that is stopped while the broker goes away would never end."""
    works = Works()
    running = works.start()
    await run_other_tasks()
    works.may_fail.set()
    running.cancel()
    works.may_clean_up.set()

    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_cancellation_while_the_others_clean_up_is_not_lost() -> None:
    """Cleaning up may wait seconds for a broker that does not answer."""
    works = Works()
    running = works.start()
    await run_other_tasks()
    works.may_fail.set()
    await run_other_tasks()
    running.cancel()
    await run_other_tasks()
    works.may_clean_up.set()

    with pytest.raises(asyncio.CancelledError):
        await running


def test_each_problem_is_logged_once_and_then_at_growing_intervals() -> None:
    """Two connections that tried every second filled the log with one sentence."""
    clock = Clock()
    outages = OutageLog(now=clock)
    with capture_logs() as lines:
        for _ in range(600):
            for purpose in (Purpose.CONSUME, Purpose.PUBLISH):
                outages.note_problem(purpose, "refused", attempt=1)
            clock.now_s += 1
        assert str(outages.problem) == "refused"
        assert len(lines) == 6  # after 0, 15, 45, 105, 225 and 465 s

        outages.note_problem(Purpose.PUBLISH, "no such host", attempt=600)
        assert len(lines) == 7

        outages.note_connected(Purpose.CONSUME)
        assert outages.problem is None
        outages.note_problem(Purpose.CONSUME, "refused", attempt=1)
        assert len(lines) == 8


def test_problems_that_differ_each_time_do_not_fill_the_memory() -> None:
    """The texts come from the broker."""
    outages = OutageLog(now=Clock())

    for number in range(1000):
        outages.note_problem(Purpose.CONSUME, f"problem {number}", attempt=number)

    assert len(outages._repeats) <= 50
