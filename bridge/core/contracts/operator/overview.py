"""`GET /api/overview`: the state of the bridge in numbers."""

from typing import Final

from pydantic import Field

from bridge.core.contracts.base import Contract
from bridge.core.contracts.operator.operation import Operation


class BrokerFacts(Contract):
    """The broker, as the consuming connection sees it."""

    connected: bool = Field(description="Whether the bridge consumes from it now.")
    version: str | None = Field(
        description="Its product and version; null before the first connection."
    )
    host: str | None = Field(description="The host of the last connection.")


class InboxFacts(Contract):
    """The inbox store."""

    store: str = Field(description="The store as in BRIDGE_INBOX, without secrets.")
    problem: str | None = Field(description="Why it cannot be written; null if it can.")


class Totals(Contract):
    """Counters since the bridge started; two readings make a rate."""

    consumed: int = Field(description="Deliveries consumed from the broker.")
    emitted: int = Field(description="Messages written to windows, each counted.")
    replayed: int = Field(description="Messages written from the inbox at a connect.")
    dead: int = Field(description="Dead letters that this bridge made.")
    retried: int = Field(description="Deliveries put into a retry queue.")
    expired: int = Field(
        description="Messages that were not delivered because their deadline had passed; "
        "counted again by each replay that skips them."
    )
    published: int = Field(description="Messages that came in over HTTP.")
    reconnects: int = Field(description="Connections to the broker that were lost.")


class Ages(Contract):
    """Seconds from consuming a message to writing it, over the last one to two minutes."""

    p50: float = Field(description="The median.")
    p99: float = Field(description="The 99th percentile.")


class RefusedOriginFacts(Contract):
    """An origin whose pages were refused."""

    origin: str | None = Field(
        description="The origin in the request; null without one. It can be forged."
    )
    count: int = Field(description="Refusals since the origin is in the list.")
    last_s: float = Field(description="Unix time of the last refusal.")


class Overview(Contract):
    """The state of the bridge."""

    version: str = Field(description="The version of the bridge.")
    namespace: str = Field(description="The first part of its names on the broker.")
    port: int | None = Field(
        default=None,
        description="The public port in its settings; null from an older bridge.",
    )
    started_s: float = Field(description="Unix time of the start.")
    ready: bool = Field(description="Whether it is ready, as in `/health/ready`.")
    reasons: list[str] = Field(description="Why it is not ready.")
    broker: BrokerFacts = Field(description="The broker.")
    inbox: InboxFacts = Field(description="The inbox store.")
    windows: int = Field(description="Windows connected.")
    users: int = Field(
        description="Users with a connected window; one with windows at several workers "
        "is counted for each of them."
    )
    in_flight: int = Field(description="Deliveries that are not yet settled.")
    totals: Totals = Field(description="Counters since the start.")
    age_s: Ages | None = Field(description="Ages of messages, if any were written.")
    refused_origins: list[RefusedOriginFacts] = Field(
        description="The last 20 origins whose pages were refused, newest first."
    )


GET_OVERVIEW: Final = Operation(
    method="GET",
    path="/api/overview",
    name="getOverview",
    summary="Show the state of the bridge in numbers.",
    answers={200: Overview},
)
OPERATIONS: Final = (GET_OVERVIEW,)
