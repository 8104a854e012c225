"""`GET /api/queues`: the queues of this bridge and what is in them."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from bridge.core.contracts.operator.operation import (
    NoBody,
    Operation,
    Page,
    PageQuery,
)
from bridge.core.contracts.words import Contract, listed


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
        description="Seconds since the oldest message came; null where nobody told. For "
        "the inbound queue, of the oldest delivery in flight, since it was taken."
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
