"""
Keep a session with the broker: connect, run it, and begin anew when it is lost.

`aio_pika.connect_robust` is not used: it waits a fixed time without jitter, knows one
URL, and keeps a dead channel under a living connection (traps 1.1 rows 2, 2b, 13). Here a
session is either whole or gone, and the next one is made from nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import tenacity

from bridge.amqp.connection import (
    BrokerAddress,
    BrokerConnection,
    Purpose,
    ReaderT,
    open_connection,
)
from bridge.errors import BrokerUnavailableError
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)

# A session that lived this long was a good one: the next one is tried at once.
_STABLE_AFTER_S: Final = 10.0
_BACKOFF_FIRST_S: Final = 0.5
_BACKOFF_MAX_S: Final = 15.0


async def supervise(
    session: Callable[[BrokerConnection[ReaderT]], Awaitable[None]],
    *,
    address: BrokerAddress,
    purpose: Purpose,
    reader: Callable[[], ReaderT],
    metrics: Metrics,
) -> None:
    """
    Keep a session with the broker: connect, run `session`, and again when it is lost.

    Pauses grow from half a second to 15, the whole of them random, so that many bridges
    do not come back in one instant; they start anew after a session that lived. Returns
    when `session` returns.

    Raises:
        TopologyError: Or whatever else `session` raises that waiting does not mend.

    Cancellation:
        Safe; the connection is closed.

    """

    async def once() -> bool:
        connection = await open_connection(address, purpose=purpose, reader=reader)
        started_s = asyncio.get_running_loop().time()
        log.info("broker.connected", purpose=purpose, host=connection.url.host)
        try:
            await session(connection)
        except BrokerUnavailableError as exc:
            lived_s = asyncio.get_running_loop().time() - started_s
            metrics.reconnects.labels(purpose).inc()
            log.warning("broker.lost", purpose=purpose, problem=str(exc))
            if lived_s < _STABLE_AFTER_S:
                raise
            return False
        finally:
            await connection.leave()
        return True

    def tell(state: tenacity.RetryCallState) -> None:
        problem = state.outcome.exception() if state.outcome else None
        log.warning(
            "broker.waiting",
            purpose=purpose,
            problem=str(problem),
            attempt=state.attempt_number,
            pause_s=round(state.upcoming_sleep, 2),
        )

    is_over = False
    while not is_over:
        # Full jitter: it survives the cap, where a term added to it would not.
        is_over = await tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(BrokerUnavailableError),
            wait=tenacity.wait_random_exponential(_BACKOFF_FIRST_S, _BACKOFF_MAX_S),
            before_sleep=tell,
        )(once)
