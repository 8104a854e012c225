"""
Assign the shards to the bridges, without any bridge knowing the others.

Every bridge consumes the queue of every shard, and RabbitMQ makes one consumer of each queue
active: the first one, so the first bridge is active everywhere. A bridge that is active on more
than its share releases the rest: it closes the channel, the next consumer of the queue becomes
active, and the bridge consumes again as the last one. If the next bridge has its share, it
releases the queue in turn; a queue has as many consumers as there are bridges, so that ends
after as many steps if any bridge has room. No bridge takes a shard actively, so the
assignment does not oscillate.

The share is the number of shards divided by the number of bridges, rounded up. RabbitMQ counts
the bridges: each consumes an empty queue. While a node is down, RabbitMQ 3.10.8 keeps counting
the consumers that were connected to it. Then a bridge may see room where there is none, and
gets back what it releases: it releases only a few times a minute. AMQP does not report whether
a consumer is active; only deliveries show it. An idle shard costs nothing and is not moved.
"""

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Final

import aiormq
import structlog

from bridge.amqp.connection import BrokerConnection, broker_call, ignore_message
from bridge.amqp.consume.consumer import Consumer
from bridge.amqp.consume.session import IntakeSession
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.shards.layout import ShardPlan
from bridge.errors import BrokerUnavailableError

log = structlog.get_logger(__name__)

# A bridge with room for its shards never has to release more often.
_RELEASES_MAX: Final = 5
_RELEASES_WITHIN_S: Final = 60.0
# After this many failed counts in a row the connection is replaced.
_FAILURES_MAX: Final = 3


def excess(
    consumers: Sequence[Consumer], *, shards: int, bridges: int
) -> list[Consumer]:
    """Return the consumers that a bridge must release: its least busy ones above the share."""
    share = -(-shards // max(1, bridges))
    active = [one for one in consumers if one.is_single_active and not one.is_draining]
    active.sort(key=lambda one: one.in_flight)
    return active[: max(0, len(active) - share)]


def is_rate_limited(released_s: Sequence[float], *, now_s: float) -> bool:
    """Whether so much was released lately that another release would be useless."""
    return (
        len(released_s) >= _RELEASES_MAX
        and now_s - released_s[-_RELEASES_MAX] < _RELEASES_WITHIN_S
    )


class ShardAssignment:
    """
    Keeps the consumers of one session at their share.

    Args:
        session: Consumes all shards.
        connection: Of the session; the bridges are counted on a channel of its own.
        plan: Names the queue that all bridges consume.
        shards: The number of shards.

    """

    def __init__(
        self,
        session: IntakeSession,
        connection: BrokerConnection[FrameReader],
        plan: ShardPlan,
        *,
        shards: int,
    ) -> None:
        self._session = session
        self._connection = connection
        self._plan = plan
        self._queue = plan.names.bridges
        self._shards = shards

    async def run(self) -> None:
        """
        Count the bridges and release the excess, until canceled.

        Raises:
            BrokerUnavailableError: If the broker is unreachable or too slow several times in a
                row; a single failure is no reason to lose all shards.

        Cancellation:
            Safe; the caller must close the session then.

        """
        failures = 0
        released_s: deque[float] = deque(maxlen=_RELEASES_MAX)
        doing = f"consume {self._queue}"
        async with broker_call(doing, timeout_s=self._plan.timeout_s):
            channel = await self._connection.open_channel(confirms=False)
            await channel.basic_consume(self._queue, ignore_message)
        while True:
            # With jitter: bridges that count at the same moment would all release to one.
            await asyncio.sleep(_jittered(self._plan.assignment_interval_s))
            if is_rate_limited(released_s, now_s=monotonic()):
                continue
            try:
                bridges = await self._count_bridges(channel)
            except BrokerUnavailableError:
                failures += 1
                if failures == _FAILURES_MAX:
                    raise
                continue
            failures = 0
            released = excess(
                self._session.consumers, shards=self._shards, bridges=bridges
            )
            if not released:
                continue
            released_s.append(monotonic())
            log.info(
                "shards.releasing",
                queues=[consumer.queue for consumer in released],
                bridges=bridges,
            )
            for consumer in released:
                consumer.drain()  # the session replaces it

    async def _count_bridges(self, channel: aiormq.Channel) -> int:
        async with broker_call(f"count {self._queue}", timeout_s=self._plan.timeout_s):
            reply = await channel.queue_declare(self._queue, passive=True)
        return reply.consumer_count or 1


def _jittered(seconds: float) -> float:
    return seconds * (0.5 + random.random())  # noqa: S311 - no secret
