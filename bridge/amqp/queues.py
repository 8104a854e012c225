"""
Inspect the queues of one namespace: how many messages and consumers they have.

A passive declare tells how many messages are ready and how many consumers there are, and
changes nothing. AMQP does not tell how many are unacked; for the queues that this bridge
consumes, its intake knows.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from aiormq.exceptions import AMQPChannelError, ChannelNotFoundEntity

from bridge.amqp.connection import (
    BrokerAddress,
    BrokerConnection,
    Purpose,
    broker_call,
    connected,
    problem_text,
)
from bridge.amqp.consume.intake import Intake
from bridge.amqp.dead_letters.operations import DeadLetterQueue
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.management import ManagementApi, ManagementError
from bridge.amqp.topology import Queue
from bridge.core.broker_names import BrokerNames
from bridge.core.contracts.operator.queues import QueueFacts, QueueRole, QueueSource

# Several consoles that ask once a second share one inspection.
_KEPT_S: Final = 1.0


class QueueInspector:
    """
    Inspects the queues, over a connection that it opens for each inspection.

    Args:
        address: Where the broker is.
        names: Of the queues.
        intake: Knows which queues there are, and what is in flight.
        dead_letters: Knows what a browse session has taken: it returns, so it counts.
        management: Adds unacked messages and rates, if given.

    """

    def __init__(
        self,
        address: BrokerAddress,
        names: BrokerNames,
        *,
        intake: Intake,
        dead_letters: DeadLetterQueue,
        management: ManagementApi | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._names = names
        self._intake = intake
        self._dead_letters = dead_letters
        self._management = management
        self._now = now
        self._lock = asyncio.Lock()
        self._kept: Sequence[QueueFacts] = ()
        self._kept_until = float("-inf")

    async def inspect(self) -> Sequence[QueueFacts]:
        """
        Return the state of each queue; a result younger than a second is reused.

        Raises:
            BrokerUnavailableError: If the broker is unreachable or too slow.

        Cancellation:
            Safe; the connection is closed.

        """
        async with self._lock:
            if self._now() >= self._kept_until:
                self._kept = await self._with_ages(await self._inspect())
                self._kept_until = self._now() + _KEPT_S
            return self._kept

    async def inspect_without_ages(self) -> Sequence[QueueFacts]:
        """Return the state of each queue as of now; errors as `inspect`."""
        async with self._lock:
            return await self._inspect()

    def replace_management(self, management: ManagementApi | None) -> None:
        """Use another login of the management API, or none."""
        self._management = management

    async def _inspect(self) -> Sequence[QueueFacts]:
        async with connected(
            self._address, purpose=Purpose.OPERATE, reader=FrameReader
        ) as connection:
            facts = [
                await self._facts(connection, queue)
                for queue in self._intake.wanted.queues
                if queue.name != self._names.bridges  # always empty
            ]
        if self._management is None:
            return facts
        return await self._enriched(facts, self._management)

    async def _with_ages(self, facts: Sequence[QueueFacts]) -> Sequence[QueueFacts]:
        """Add the age of the oldest dead letter; it may cost a browse session."""
        return [
            queue.model_copy(
                update={"oldest_s": await self._dead_letters.oldest_s(queue.depth)}
            )
            if queue.role is QueueRole.DEAD and queue.depth is not None
            else queue
            for queue in facts
        ]

    async def _enriched(
        self, facts: Sequence[QueueFacts], management: ManagementApi
    ) -> Sequence[QueueFacts]:
        enriched: list[QueueFacts] = []
        problem: str | None = None
        for queue in facts:
            if problem is None and queue.problem is None:
                try:
                    statistics = await management.queue(queue.name)
                except ManagementError as exc:
                    # The API would fail for the next queue too: it is not asked again, and
                    # every remaining queue reports the problem.
                    problem = f"the management API at {management.place}: {exc}"
                else:
                    more = {
                        "unacked": statistics.unacked,
                        "rates": statistics.rates,
                        "source": QueueSource.MANAGEMENT,
                    }
                    known = {k: v for k, v in more.items() if v is not None}
                    enriched.append(queue.model_copy(update=known))
                    continue
            enriched.append(
                queue.model_copy(update={"problem": queue.problem or problem})
            )
        return enriched

    async def _facts(
        self, connection: BrokerConnection[FrameReader], queue: Queue
    ) -> QueueFacts:
        name, role = queue.name, self._role(queue.name)
        is_inbound = role is QueueRole.INBOUND
        facts = QueueFacts(
            name=name,
            role=role,
            depth=None,
            unacked=None,
            consumers=None,
            oldest_s=self._intake.oldest_of(name) if is_inbound else None,
            oldest_at_most_s=None,
            rates=None,
            source=QueueSource.AMQP,
            problem=None,
        )
        # A refusal closes the channel, so each queue gets a channel of its own. A session on
        # the dead letters may begin or end during the call: the larger number is right.
        browsed = self._dead_letters.browsed_depth or 0
        async with broker_call(f"count {name}", timeout_s=self._address.timeout_s):
            channel = await connection.open_channel(confirms=False)
            try:
                reply = await channel.queue_declare(name, passive=True)
            except ChannelNotFoundEntity:
                problem = "does not exist; the bridge declares it when it connects"
                return facts.model_copy(update={"problem": problem})
            except AMQPChannelError as exc:
                return facts.model_copy(update={"problem": problem_text(exc)})
            await channel.close()
        depth = reply.message_count or 0
        if role is QueueRole.DEAD:
            depth = max(depth, browsed, self._dead_letters.browsed_depth or 0)
        # No message of a retry queue is older than its delay.
        delay_ms = queue.arguments.get("x-message-ttl")
        return facts.model_copy(
            update={
                "depth": depth,
                "consumers": reply.consumer_count or 0,
                "unacked": self._intake.in_flight_of(name) if is_inbound else None,
                "oldest_at_most_s": delay_ms / 1000
                if isinstance(delay_ms, int) and depth
                else None,
            }
        )

    def _role(self, name: str) -> QueueRole:
        if name == self._names.dead:
            return QueueRole.DEAD
        if name == self._names.unrouted:
            return QueueRole.UNROUTED
        if name == self._names.control:
            return QueueRole.CONTROL
        is_inbound = name.startswith(f"{self._names.inbound}.")
        return QueueRole.INBOUND if is_inbound else QueueRole.RETRY
