"""`GET /api/overview`: how the bridge is, in numbers, at one glance."""

from typing import Final

from pydantic import Field

from bridge.core.contracts.base import Contract
from bridge.core.contracts.operator.operation import NoBody, NoQuery, Operation


class BrokerFacts(Contract):
    """The broker, seen from the consuming connection."""

    connected: bool = Field(description="Whether the bridge consumes from it now.")
    version: str | None = Field(description="What it says it is; null if never asked.")
    host: str | None = Field(description="Where it was reached last, without secrets.")


class InboxFacts(Contract):
    """The inbox store."""

    store: str = Field(description="As BRIDGE_INBOX names it.")
    problem: str | None = Field(description="What keeps it from being written.")


class Totals(Contract):
    """Counters since the bridge started; two readings make a rate."""

    consumed: int = Field(description="Deliveries taken from the broker.")
    emitted: int = Field(description="Messages written to windows, each counted.")
    replayed: int = Field(description="Messages written from the inbox at a connect.")
    dead: int = Field(description="Dead letters that this bridge made.")
    retried: int = Field(description="Deliveries put into a retry queue.")
    expired: int = Field(
        description="Messages not delivered because their time was over; each replay "
        "that meets one counts it again."
    )
    published: int = Field(description="Messages that came in over HTTP.")
    reconnects: int = Field(description="Connections to the broker that were lost.")


class Ages(Contract):
    """From taking a message to writing it to windows, in seconds; last one to two minutes."""

    p50: float = Field(description="Half of them were faster.")
    p99: float = Field(description="99 of 100 were faster.")


class RefusedOriginFacts(Contract):
    """Pages of one origin that were refused."""

    origin: str | None = Field(
        description="As the request told it; null if it told none. Anybody can write it."
    )
    count: int = Field(description="How often, since it is in the list.")
    last_s: float = Field(description="Unix time of the last time.")


class Overview(Contract):
    """How the bridge is."""

    version: str = Field(description="Of the bridge.")
    namespace: str = Field(description="First part of its names on the broker.")
    started_s: float = Field(description="Unix time of its start.")
    ready: bool = Field(description="As `/health/ready` says.")
    reasons: list[str] = Field(description="What keeps it from being ready.")
    broker: BrokerFacts = Field(description="The broker.")
    inbox: InboxFacts = Field(description="The inbox store.")
    windows: int = Field(description="Windows connected.")
    users: int = Field(
        description="Users with a window connected; one with windows at several workers "
        "is counted at each."
    )
    in_flight: int = Field(description="Deliveries taken and not yet settled.")
    totals: Totals = Field(description="Counters since the start.")
    age_s: Ages | None = Field(description="Null while nothing was written.")
    refused_origins: list[RefusedOriginFacts] = Field(
        description="The last 20 origins whose pages were refused, newest first."
    )


GET_OVERVIEW: Final = Operation(
    method="GET",
    path="/api/overview",
    name="getOverview",
    summary="How the bridge is, in numbers.",
    answers={200: Overview},
    query=NoQuery,
    body=NoBody,
)
OPERATIONS: Final = (GET_OVERVIEW,)
