"""
Spread the shards over the bridges, without any of them knowing another.

Every bridge consumes every shard's queue, and the broker makes one of them active. Who came
first is active everywhere. So a bridge that is active on more than its share gives the rest
away: it closes the channel, the next in the line becomes active, and it goes to the end of
the line. If that one has enough, it gives it on; a line is as long as there are bridges, so
what is too much ends after as many steps where there is room. Nobody takes a shard that he
was not given, so nothing swings.

The share is the number of shards over the number of bridges, rounded up. The broker counts
the bridges: each consumes an empty queue. While a node of it is down it goes on counting
those that were connected to that node (3.10.8), so there may seem to be room where there is
none, and what is given away comes back: a bridge gives something away a few times a minute
at most. Being active is not told by AMQP; being delivered
to is. An idle shard costs nothing and is not spread.
"""

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Final, Self

import aiormq
import structlog

from bridge.amqp.connection import BrokerConnection, broker_call
from bridge.amqp.consume.consumer import ConsumerSession
from bridge.amqp.consume.session import IntakeSession
from bridge.amqp.frame_reader import FrameReader
from bridge.errors import BrokerUnavailableError

log = structlog.get_logger(__name__)

_LOOK_EACH_S: Final = 1.0
# Before it stands in the line again; the next one is active by then.
_AWAY_S: Final = 0.2
# Where there is room, no bridge has to give more often.
_GIVINGS: Final = 5
_GIVINGS_WITHIN_S: Final = 60.0
# So many looks in a row may fail before the connection is given up for it.
_MISSED_MAX: Final = 3


def excess(
    consumers: Sequence[ConsumerSession], *, shards: int, bridges: int
) -> list[ConsumerSession]:
    """Return what a bridge has to give away; the least busy of what it is active on."""
    share = -(-shards // max(1, bridges))
    active = [one for one in consumers if one.is_active and not one.is_leaving]
    active.sort(key=lambda one: one.in_flight)
    return active[: max(0, len(active) - share)]


def is_restless(gave_s: Sequence[float], *, now_s: float) -> bool:
    """Whether something was given away so often lately that it is of no use."""
    return len(gave_s) >= _GIVINGS and now_s - gave_s[-_GIVINGS] < _GIVINGS_WITHIN_S


class Spreading:
    """
    Keeps a session at its share.

    Args:
        session: Consumes all shards.
        channel: On the same connection, for nothing else.
        queue: The empty queue that all bridges consume.
        shards: How many there are.
        timeout_s: For each single call to the broker.

    """

    def __init__(
        self,
        session: IntakeSession,
        channel: aiormq.Channel,
        *,
        queue: str,
        shards: int,
        timeout_s: float,
    ) -> None:
        self._session = session
        self._channel = channel
        self._queue = queue
        self._shards = shards
        self._timeout_s = timeout_s

    @classmethod
    async def open(
        cls,
        session: IntakeSession,
        connection: BrokerConnection[FrameReader],
        *,
        queue: str,
        shards: int,
        timeout_s: float,
    ) -> Self:
        """
        Open the channel that it needs; arguments as for the class.

        Raises:
            BrokerUnavailableError: If the broker is away or too slow.

        """
        async with broker_call("open a channel", timeout_s=timeout_s):
            channel = await connection.open_channel(confirms=False)
        return cls(session, channel, queue=queue, shards=shards, timeout_s=timeout_s)

    async def run(self) -> None:
        """
        Look, give away, stand in the line again, for ever.

        Raises:
            BrokerUnavailableError: If the broker is away or too slow, several times over: a
                look that fails is no reason to leave all shards to others.

        Cancellation:
            Safe; the session is to be ended then.

        """
        missed = 0
        gave_s: deque[float] = deque(maxlen=_GIVINGS)
        async with broker_call(f"consume {self._queue}", timeout_s=self._timeout_s):
            await self._channel.basic_consume(self._queue, _never_called)
        while True:
            # With jitter, so that bridges do not look all at once and all give to one.
            await asyncio.sleep(_LOOK_EACH_S * (0.5 + random.random()))  # noqa: S311 - no secret
            if is_restless(gave_s, now_s=monotonic()):
                continue
            try:
                bridges = await self._count_bridges()
            except BrokerUnavailableError:
                missed += 1
                if missed == _MISSED_MAX:
                    raise
                continue
            missed = 0
            given = excess(
                self._session.consumers, shards=self._shards, bridges=bridges
            )
            if not given:
                continue
            gave_s.append(monotonic())
            log.info(
                "shards.giving_away",
                queues=[consumer.queue for consumer in given],
                bridges=bridges,
            )
            async with asyncio.TaskGroup() as tasks:
                for consumer in given:
                    tasks.create_task(
                        self._pass_on(consumer), name=f"pass on {consumer.queue}"
                    )

    async def _count_bridges(self) -> int:
        async with broker_call(f"look at {self._queue}", timeout_s=self._timeout_s):
            told = await self._channel.queue_declare(self._queue, passive=True)
        return told.consumer_count or 1

    async def _pass_on(self, consumer: ConsumerSession) -> None:
        await self._session.give_away(consumer)
        await asyncio.sleep(_AWAY_S * (0.5 + random.random()))  # noqa: S311 - no secret
        await self._session.consume(consumer.queue)


async def _never_called(_message: object) -> None:
    """Stand in where the library wants a callback; the queue stays empty."""
