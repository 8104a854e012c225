"""`GET /api/queues`: the queues of this bridge and their numbers."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from bridge.core.contracts.base import Contract, listed
from bridge.core.contracts.operator.operation import Operation, Page, PageQuery


class QueueRole(StrEnum):
    """The role of a queue."""

    INBOUND = "inbound"
    RETRY = "retry"
    UNROUTED = "unrouted"
    DEAD = "dead"
    CONTROL = "control"
    EVENTS = "events"


class QueueSource(StrEnum):
    """The source of the numbers of a queue."""

    AMQP = "amqp"
    MANAGEMENT = "management"
    STORE = "store"


class Rates(Contract):
    """Messages per second, as averaged by the management API."""

    in_per_s: float = Field(description="Published to the queue.")
    out_per_s: float = Field(description="Delivered from it, acked or not.")


class QueueFacts(Contract):
    """
    One queue.

    The role `events` is not a queue on the broker but the events for workers that wait in the
    inbox store until the broker has them.
    """

    name: str = Field(description="The name on the broker.")
    role: Annotated[QueueRole, listed(QueueRole)] = Field(description="Its role.")
    depth: int | None = Field(description="Messages that are ready; null if unknown.")
    unacked: int | None = Field(description="Delivered and not acked; null if unknown.")
    consumers: int | None = Field(description="Number of consumers; null if unknown.")
    oldest_s: float | None = Field(
        description="Age of the oldest message in seconds. Inbound: since this bridge "
        "consumed the oldest delivery in flight; null if none is in flight here. Dead: since "
        "the oldest dead letter arrived; null while they are browsed elsewhere. Retry: null, see "
        "`oldest_at_most_s`. Events: since the oldest was decided."
    )
    oldest_at_most_s: float | None = Field(
        description="For a retry queue that is not empty, its delay: older messages have left it."
    )
    rates: Rates | None = Field(description="Rates; null without the management API.")
    source: Annotated[QueueSource, listed(QueueSource)] = Field(
        description="A passive declare, or the management API in addition; for events the inbox "
        "store."
    )
    problem: str | None = Field(description="Why numbers are missing, if any are.")


GET_QUEUES: Final = Operation(
    method="GET",
    path="/api/queues",
    name="listQueues",
    summary="List the queues of this bridge: depth, consumers, deliveries in flight.",
    answers={200: Page[QueueFacts]},
    query=PageQuery,
    problems=(503,),
)
OPERATIONS: Final = (GET_QUEUES,)
