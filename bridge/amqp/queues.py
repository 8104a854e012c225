"""
Looking at the queues of this bridge: how much is in them, who consumes them.

By AMQP: a passive declare tells how many messages are ready and how many consumers
there are, and changes nothing. What the broker does not tell that way, the bridge knows of
its own queue: what is in flight here.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from aiormq.exceptions import AMQPChannelError, ChannelNotFoundEntity

from bridge.amqp.connection import (
    BrokerAddress,
    BrokerConnection,
    Purpose,
    broker_call,
    open_connection,
    problem_text,
)
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.management import Management, ManagementError
from bridge.amqp.topology import Topology
from bridge.core.broker_names import BrokerNames
from bridge.core.contracts.operator.queues import QueueFacts, QueueRole, QueueSource

# Several consoles that look once a second share one look.
_KEPT_S: Final = 1.0


class InFlight(Protocol):
    """What the bridge knows of its own queues (broker/deliveries.py)."""

    @property
    def wanted(self) -> Topology:
        """Which queues there are, by the last look of the intake."""

    def in_flight_of(self, queue: str) -> int | None:
        """Deliveries of a queue that came and are not acked; `None` if not consumed."""

    def oldest_of(self, queue: str) -> float | None:
        """Seconds since the oldest of them came."""


class Standing(Protocol):
    """What is known of the dead letters while somebody looks (broker/dead_letters.py)."""

    @property
    def standing(self) -> int | None:
        """How many there are while some are out of the queue; ``None`` if none is out."""

    async def oldest_s(self, depth: int) -> float | None:
        """Since when the first of `depth` has been there, if that can be known."""


@dataclass(frozen=True, slots=True)
class _Counts:
    ready: int
    consumers: int


class QueueWatch:
    """
    Looks at the queues, over a connection of its own that lives as long as a look.

    Args:
        address: Where the broker is.
        names: Of the queues.
        intake: Knows which of them there are, and what is in flight.
        dead: Knows what a look holds: it comes back, so it counts as being there.
        management: Tells more, if there is one.

    """

    def __init__(
        self,
        address: BrokerAddress,
        names: BrokerNames,
        *,
        intake: InFlight,
        dead: Standing,
        management: Management | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._names = names
        self._intake = intake
        self._dead = dead
        self._management = management
        self._now = now
        self._one_at_a_time = asyncio.Lock()
        self._kept: Sequence[QueueFacts] = ()
        self._kept_until = float("-inf")

    async def look(self) -> Sequence[QueueFacts]:
        """
        Look at each queue; what was seen less than a second ago is told again.

        Raises:
            BrokerUnavailableError: If the broker is away or too slow.

        Cancellation:
            Safe; the connection is closed.

        """
        async with self._one_at_a_time:
            if self._now() >= self._kept_until:
                self._kept = await self._with_ages(await self._look())
                self._kept_until = self._now() + _KEPT_S
            return self._kept

    async def look_anew(self) -> Sequence[QueueFacts]:
        """Look at each queue now, as `look` does; nobody else is told what was seen."""
        async with self._one_at_a_time:
            return await self._look()

    async def _look(self) -> Sequence[QueueFacts]:
        connection = await open_connection(
            self._address, purpose=Purpose.OPERATE, reader=FrameReader
        )
        try:
            counts = {
                queue.name: await self._count(connection, queue.name)
                for queue in self._intake.wanted.queues
                if queue.name != self._names.bridges  # empty for ever
            }
        finally:
            await connection.leave()
        facts = [self._facts(name, found) for name, found in counts.items()]
        if self._management is None:
            return facts
        return await self._enriched(facts, self._management)

    async def _with_ages(self, facts: Sequence[QueueFacts]) -> Sequence[QueueFacts]:
        """Tell the age of the oldest dead letter, for people: a gauge is not worth a look."""
        return [
            queue.model_copy(
                update={"oldest_s": await self._dead.oldest_s(queue.depth)}
            )
            if queue.role is QueueRole.DEAD and queue.depth is not None
            else queue
            for queue in facts
        ]

    async def _enriched(
        self, facts: Sequence[QueueFacts], management: Management
    ) -> Sequence[QueueFacts]:
        enriched: list[QueueFacts] = []
        problem: str | None = None
        for queue in facts:
            if problem is None and queue.problem is None:
                try:
                    told = await management.queue(queue.name)
                except ManagementError as exc:
                    # Told once for each queue, and asked once: it would not be there for
                    # the next one either.
                    problem = f"the management API at {management.place}: {exc}"
                else:
                    more = {
                        "unacked": told.unacked,
                        "rates": told.rates,
                        "source": QueueSource.MANAGEMENT,
                    }
                    known = {k: v for k, v in more.items() if v is not None}
                    enriched.append(queue.model_copy(update=known))
                    continue
            enriched.append(
                queue.model_copy(update={"problem": queue.problem or problem})
            )
        return enriched

    async def _count(
        self, connection: BrokerConnection[FrameReader], name: str
    ) -> _Counts | str:
        # A refusal closes its channel, so each queue gets one of its own. A look at dead
        # letters may begin or end meanwhile.
        out = self._dead.standing or 0
        async with broker_call(f"look at {name}", timeout_s=self._address.timeout_s):
            channel = await connection.open_channel(confirms=False)
            try:
                told = await channel.queue_declare(name, passive=True)
            except ChannelNotFoundEntity:
                return "is not there; the bridge declares it when it connects"
            except AMQPChannelError as exc:
                return problem_text(exc)
            await channel.close()
        ready = told.message_count or 0
        if name == self._names.dead:
            ready = max(ready, out, self._dead.standing or 0)
        return _Counts(ready, told.consumer_count or 0)

    def _facts(self, name: str, found: _Counts | str) -> QueueFacts:
        role = self._role(name)
        is_own = role is QueueRole.INBOUND
        is_known = isinstance(found, _Counts)
        return QueueFacts(
            name=name,
            role=role,
            depth=found.ready if isinstance(found, _Counts) else None,
            unacked=self._intake.in_flight_of(name) if is_own and is_known else None,
            consumers=found.consumers if isinstance(found, _Counts) else None,
            oldest_s=self._intake.oldest_of(name) if is_own else None,
            oldest_at_most_s=self._delay_s(name, found),
            rates=None,
            source=QueueSource.AMQP,
            problem=found if isinstance(found, str) else None,
        )

    def _delay_s(self, name: str, found: _Counts | str) -> float | None:
        """Return how old a message of a retry queue may be: then it has left."""
        if isinstance(found, str) or not found.ready:
            return None
        delay_ms = next(
            (
                queue.arguments.get("x-message-ttl")
                for queue in self._intake.wanted.queues
                if queue.name == name
            ),
            None,
        )
        return delay_ms / 1000 if isinstance(delay_ms, int) else None

    def _role(self, name: str) -> QueueRole:
        if name == self._names.dead:
            return QueueRole.DEAD
        is_inbound = name.startswith(f"{self._names.inbound}.")
        return QueueRole.INBOUND if is_inbound else QueueRole.RETRY
