"""
Fencing: nothing is stored out of a queue that another bridge has by now.

A bridge may be frozen with deliveries in hand (SIGSTOP, a machine that is moved, a network
that hangs) for so long that RabbitMQ gives its queue to another. When it wakes up, it sends
to the store what it had in hand. Behind what the other one has stored meanwhile, these
messages would break the order of their users, and those without an id would be there twice.

So every consumer has a token, and a shared store takes no append under a smaller one than
it has seen from the same queue. Tokens must grow in the order in which consumers became
active. What is certain of that is only this: whoever has a delivery in hand has become
active already. Therefore, before the first append of a consumer:

1. The store gives out a token, larger than all before (`claim`).
2. The broker is asked something on the channel of the deliveries (`confirm`). If it answers,
   it had not cut us off when the token was given out, and whoever comes after us claims
   later. If it does not, this consumer is over, and its token is never used.

The claim alone keeps nobody out, because a bridge that wakes up may claim late: only an
append under a confirmed token does. That costs two round trips for each consumer, once, and
a steady batch nothing but a few bytes.

What is left: an append of the frozen bridge that comes before the first one of its
successor is stored. The successor then repeats all of it, and what comes behind, in order:
that is as if the first bridge had died between append and ack. And the answer of a RabbitMQ
node that is cut off from the others may be out of date: a consumer that these gave up
between its first delivery and its claim, which are milliseconds apart, may be confirmed.
"""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import structlog

from bridge.core.fence import Fence
from bridge.core.message import Message
from bridge.errors import OwnershipLostError
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)

B = TypeVar("B", bound="Batch")
B_contra = TypeVar("B_contra", bound="Batch", contravariant=True)


class Consumer(Protocol):
    """One consumer of one queue."""

    queue: str
    fence: Fence | None

    async def confirm(self) -> None:
        """Hear from the broker that it has not cut the consumer off."""


class Batch(Protocol):
    """Deliveries, and who brought them."""

    @property
    def consumers(self) -> Sequence[Consumer]:
        """Whose deliveries they are, each once."""


class Intake(Protocol[B_contra]):
    """Where deliveries come from (the room `broker`)."""

    def give_up(self, batch: B_contra, problem: str) -> None:
        """End the session that brought `batch`."""


class Inbox(Protocol):
    """A store that several bridges share (the room `inbox`)."""

    async def claim(self, queue: str) -> Fence:
        """Give out a token, larger than all before."""

    async def append(
        self, messages: Sequence[Message], *, fences: Sequence[Fence]
    ) -> Sequence[int | None]:
        """Store, or raise OwnershipLostError if a larger token was here."""


class Fencing(Generic[B]):
    """Appends to a shared store, each consumer under its own token."""

    def __init__(self, intake: Intake[B], inbox: Inbox, *, metrics: Metrics) -> None:
        self._intake = intake
        self._inbox = inbox
        self._metrics = metrics

    async def append(
        self, batch: B, messages: Sequence[Message]
    ) -> Sequence[int | None]:
        """
        Store messages of `batch`; see `append` of the store.

        Raises:
            OwnershipLostError: If another bridge has stored out of one of its queues. The
                session that brought `batch` ends then, and a new one begins.
            TransientError: If the store or the broker is away. May be called again.

        Cancellation: as that of the store.

        """
        fences: list[Fence] = []
        for consumer in batch.consumers:
            if consumer.fence is None:
                fence = await self._inbox.claim(consumer.queue)
                await consumer.confirm()
                consumer.fence = fence
            fences.append(consumer.fence)
        try:
            return await self._inbox.append(messages, fences=fences)
        except OwnershipLostError as exc:
            log.warning(
                "intake.handed_over",
                queue=exc.queue,
                messages=len(messages),
                problem=str(exc),
            )
            self._metrics.handed_over.inc()
            self._intake.give_up(batch, str(exc))
            raise
