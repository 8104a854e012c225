"""
A bridge whose inbox nobody shares takes the messages of its namespace alone, or waits.

Two inboxes on one namespace would split each user's messages: what one bridge stored, no
window at the other ever sees. So a bridge with `sqlite:` or `memory:` takes nothing while
any other bridge does, and bridges that share an inbox take nothing while it does. Whoever
came first stays; the other is not ready, says why, looks again, and takes over when the
first has gone, as in a restart.

A bridge with an inbox of its own consumes an empty queue, `<ns>.alone`, as long as it has
its connection; whoever wants to know counts the consumers. Each tells of itself first and
looks then, so of two that come in one moment at least one sees the other. It is a quorum
queue and not an exclusive one: the record of that can outlive a node that is lost (4.2 and
Khepri), and would keep out the very bridge that it was made for.

A bridge older than this, or of another program, is seen by what it consumes, and sees nobody.
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import aiormq
import structlog
from aiormq.exceptions import ChannelNotFoundEntity

from bridge.broker.connection import BrokerConnection, broker_call
from bridge.broker.frame_reader import FrameReader
from bridge.broker.shards import ShardDesk, ShardPlan
from bridge.broker.topology import QUORUM, Queue, declare_one
from bridge.errors import BrokerUnavailableError

log = structlog.get_logger(__name__)

_LOOK_EACH_S: Final = 0.5
_OWN_INBOX: Final = (
    "another bridge takes the messages of {}, and its inbox is its own: this one takes "
    "none before that has gone"
)
_SHARED_INBOX: Final = (
    "others take the messages of {}, and this bridge's inbox is its own: it takes none "
    "before they have gone; BRIDGE_INBOX=redis://... is shared"
)


class Neighbours:
    """
    The other bridges of a namespace, seen over one connection.

    All methods raise `BrokerUnavailableError` if the broker is away or too slow. Cancelling
    is safe.

    Args:
        connection: Lives on. What was claimed lasts as long.
        plan: Whose names they are.
        has_own_inbox: Whether nobody shares the inbox of who looks.

    """

    def __init__(
        self,
        connection: BrokerConnection[FrameReader],
        plan: ShardPlan,
        *,
        has_own_inbox: bool,
    ) -> None:
        self._connection = connection
        self._desk = ShardDesk(connection, plan)
        self._names = plan.names
        self._timeout_s = plan.timeout_s
        self._has_own_inbox = has_own_inbox
        self._claimed: tuple[aiormq.Channel, str | None] | None = None

    async def wait_until_gone(
        self, *, stopping: asyncio.Event, tell: Callable[[str | None], None]
    ) -> None:
        """
        Wait until nobody takes messages that we must not share, or until `stopping`.

        Args:
            stopping: Ends the wait, whoever is there.
            tell: Told who is in the way, and ``None`` in the end.

        Raises:
            TopologyError: If something else has the queue's name.

        """
        is_waiting = False
        try:
            while not stopping.is_set():
                problem = await self.in_the_way()
                if problem is None and await self._claim():
                    break
                if problem is not None and not is_waiting:
                    is_waiting = True
                    tell(problem)
                    log.warning("intake.waits_for_others", problem=problem)
                with suppress(TimeoutError):
                    # With jitter, or two that see each other would do so again.
                    async with asyncio.timeout(_LOOK_EACH_S * (0.5 + random.random())):  # noqa: S311 - no secret
                        await stopping.wait()
        finally:
            tell(None)
        if is_waiting and not stopping.is_set():
            log.info("intake.others_are_gone")

    async def in_the_way(self) -> str | None:
        """Say who takes messages that we, who take none yet, must not share."""
        if await self.count_alone():
            return _OWN_INBOX.format(self._names.namespace)
        if self._has_own_inbox and await self._is_inbound_consumed():
            return _SHARED_INBOX.format(self._names.namespace)
        return None

    async def keep_apart(self) -> None:
        """
        Watch, now that we consume, that it holds; for ever.

        Raises:
            BrokerUnavailableError: If what told of us is gone (its queue was deleted), or if
                somebody who takes all came in the moment in which we did: what we consume
                is given up for it, and begun anew.

        """
        name = self._names.alone
        if not self._has_own_inbox and await self.count_alone():
            problem = _OWN_INBOX.format(self._names.namespace)
            raise BrokerUnavailableError("consume", problem)
        while self._is_claim_whole():  # noqa: ASYNC110 - the library tells nobody
            await asyncio.sleep(_LOOK_EACH_S)
        raise BrokerUnavailableError(f"consume {name}", "is the queue deleted?")

    def _is_claim_whole(self) -> bool:
        if self._claimed is None:
            return True
        channel, tag = self._claimed
        return not channel.is_closed and tag in channel.consumers

    async def count_alone(self) -> int:
        """Return how many bridges say that they are alone: one, or none."""
        return await self._count_consumers(self._names.alone)

    async def _claim(self) -> bool:
        """
        Tell that we take the messages alone, if that is what we do.

        Returns:
            False if somebody else came in the same moment; nothing is told then.

        """
        if not self._has_own_inbox:
            return True
        channel = await self._channel()
        queue = Queue(self._names.alone, QUORUM)
        await declare_one(channel, queue, timeout_s=self._timeout_s)
        async with broker_call(f"consume {queue.name}", timeout_s=self._timeout_s):
            told = await channel.basic_consume(queue.name, _never_called)
        self._claimed = channel, told.consumer_tag
        if await self.count_alone() == 1 and not await self._is_inbound_consumed():
            return True
        async with broker_call(f"leave {queue.name}", timeout_s=self._timeout_s):
            await channel.close()
        return False

    async def _is_inbound_consumed(self) -> bool:
        layout = await self._desk.read()
        left = await self._desk.left_of_before(layout)
        for queue in (*left, *self._names.inbound_queues(layout.shards)):
            if await self._count_consumers(queue):
                return True
        return False

    async def _count_consumers(self, queue: str) -> int:
        # A refusal closes its channel, so each question gets one of its own.
        channel = await self._channel()
        async with broker_call(f"look at {queue}", timeout_s=self._timeout_s):
            try:
                told = await channel.queue_declare(queue, passive=True)
            except ChannelNotFoundEntity:
                return 0
            await channel.close()
        return told.consumer_count or 0

    async def _channel(self) -> aiormq.Channel:
        async with broker_call("open a channel", timeout_s=self._timeout_s):
            return await self._connection.open_channel(confirms=False)


async def _never_called(_message: object) -> None:
    """Stand in where the library wants a callback; the queue stays empty."""
