"""`GET /api/queues`: the queues of this bridge and what is in them."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from bridge.core.contracts.base import Contract, listed
from bridge.core.contracts.operator.operation import (
    NoBody,
    Operation,
    Page,
    PageQuery,
)


class QueueRole(StrEnum):
    """What a queue is for."""

    INBOUND = "inbound"
    RETRY = "retry"
    DEAD = "dead"


class QueueSource(StrEnum):
    """Who told about a queue."""

    AMQP = "amqp"
    MANAGEMENT = "management"


class Rates(Contract):
    """Messages a second, as the management API averages them."""

    in_per_s: float = Field(description="Published to the queue.")
    out_per_s: float = Field(description="Delivered from it, acked or not.")


class QueueFacts(Contract):
    """One queue."""

    name: str = Field(description="On the broker.")
    role: Annotated[QueueRole, listed(QueueRole)] = Field(description="What it is for.")
    depth: int | None = Field(
        description="Messages in it that are ready; null with a problem."
    )
    unacked: int | None = Field(
        description="Delivered and not acked; null where nobody told."
    )
    consumers: int | None = Field(description="How many; null with a problem.")
    oldest_s: float | None = Field(
        description="Seconds since the oldest message came. Inbound: the oldest delivery in "
        "flight, since this bridge took it; null while nothing is in flight here. Dead: since "
        "the first letter was set aside; null while others look at them. Retry: null, see "
        "`oldest_at_most_s`."
    )
    oldest_at_most_s: float | None = Field(
        description="Of a retry queue that is not empty, its delay: older ones have left it."
    )
    rates: Rates | None = Field(description="Null without the management API.")
    source: Annotated[QueueSource, listed(QueueSource)] = Field(
        description="Who told: a passive declare, or the management API besides."
    )
    problem: str | None = Field(description="Why something is not known.")


GET_QUEUES: Final = Operation(
    method="GET",
    path="/api/queues",
    name="listQueues",
    summary="The queues of this bridge: depth, consumers, what is in flight.",
    answers={200: Page[QueueFacts]},
    query=PageQuery,
    body=NoBody,
    problems=(503,),
)
OPERATIONS: Final = (GET_QUEUES,)
