"""
Keep a session with the broker: connect, run it, and reconnect when it is lost.

`aio_pika.connect_robust` is not used. It waits a fixed time without jitter, supports one
URL, and keeps a dead channel on a living connection. Here each session starts on a new
connection.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import monotonic
from typing import Any, Final

import structlog
import tenacity

from bridge.amqp.connection import (
    BrokerAddress,
    BrokerConnection,
    Purpose,
    ReaderT,
    open_connection,
)
from bridge.errors import BridgeError, BrokerUnavailableError, first_error
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)

# After a session that lasted this long, the first attempt to reconnect is immediate.
_STABLE_AFTER_S: Final = 10.0
_BACKOFF_FIRST_S: Final = 0.5
_BACKOFF_MAX_S: Final = 15.0

# When a problem that lasts is logged again: the interval doubles up to this one.
_REPEAT_FIRST_S: Final = 15.0
_REPEAT_MAX_S: Final = 900.0
_PROBLEMS_MAX: Final = 50

Work = Callable[[], Coroutine[Any, Any, None]]


class OutageLog:
    """
    Logs why the broker cannot be used: each problem once, then at growing intervals.

    The connections of one bridge share it, because they usually have the same problem.
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._problems: dict[Purpose, str] = {}
        self._repeats: dict[str, tuple[float, float]] = {}  # when due, next interval

    @property
    def problem(self) -> str | None:
        """Why the connection that consumes is not open; ``None`` if nothing is known."""
        return self._problems.get(Purpose.CONSUME)

    def note_problem(self, purpose: Purpose, problem: str, *, attempt: int) -> None:
        """Note a failed attempt, and log it unless its problem was logged recently."""
        self._problems[purpose] = problem
        now_s = self._now()
        due_s, interval_s = self._repeats.get(problem, (now_s, _REPEAT_FIRST_S))
        if now_s < due_s:
            return
        if len(self._repeats) >= _PROBLEMS_MAX:
            self._repeats.clear()
        next_interval_s = min(2 * interval_s, _REPEAT_MAX_S)
        self._repeats[problem] = (now_s + interval_s, next_interval_s)
        log.warning("broker.waiting", purpose=purpose, problem=problem, attempt=attempt)

    def note_connected(self, purpose: Purpose) -> None:
        """Note that the broker was reached; every problem is logged again if it returns."""
        self._problems.pop(purpose, None)
        self._repeats.clear()


async def supervise(
    session: Callable[[BrokerConnection[ReaderT]], Awaitable[None]],
    *,
    address: BrokerAddress,
    purpose: Purpose,
    reader: Callable[[], ReaderT],
    metrics: Metrics,
    outages: OutageLog,
) -> None:
    """
    Connect and run `session`, again after each loss, until `session` returns.

    Pauses are random, up to a bound that grows with each failed attempt, so that many
    bridges do not reconnect at the same moment. A session that lasted for a while resets
    the bound.

    Raises:
        TopologyError: Or any other error of `session` that waiting does not fix.

    Cancellation:
        Safe; the connection is closed.

    """

    async def connect_and_run() -> bool:
        """Return whether the session is over; False reconnects without a pause."""
        connection = await open_connection(address, purpose=purpose, reader=reader)
        started_s = asyncio.get_running_loop().time()
        outages.note_connected(purpose)
        log.info("broker.connected", purpose=purpose, host=connection.url.host)
        try:
            await session(connection)
        except BrokerUnavailableError as exc:
            lasted_s = asyncio.get_running_loop().time() - started_s
            metrics.reconnects.labels(purpose).inc()
            log.warning("broker.lost", purpose=purpose, problem=str(exc))
            if lasted_s < _STABLE_AFTER_S:
                raise
            return False
        finally:
            await connection.disconnect()
        return True

    def log_pause(state: tenacity.RetryCallState) -> None:
        problem = state.outcome.exception() if state.outcome else None
        outages.note_problem(purpose, str(problem), attempt=state.attempt_number)

    is_over = False
    while not is_over:
        # Full jitter: the whole pause is random, also when the bound has been reached.
        is_over = await tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(BrokerUnavailableError),
            wait=tenacity.wait_random_exponential(_BACKOFF_FIRST_S, _BACKOFF_MAX_S),
            before_sleep=log_pause,
        )(connect_and_run)


async def first_to_end(works: Sequence[Work]) -> None:
    """
    Run all `works` until one of them ends, and cancel the others.

    Raises:
        BridgeError: The error of the first that failed.

    Cancellation:
        Passed on, even if a work fails at the same moment.

    """
    failures: list[BaseException] = []

    async def run(work: Work) -> None:
        # A failure must not reach the group. The group would cancel this task, and before
        # Python 3.13 it mixes that up with a cancellation by the caller: either the
        # caller's is lost, or this function is cancelled although the caller did not ask for it.
        try:
            await work()
        except* BridgeError as group:
            failures.append(first_error(group))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(work)) for work in works]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
    if failures:
        raise failures[0]
