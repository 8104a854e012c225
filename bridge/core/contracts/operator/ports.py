"""What stands beside `/api/…` on the operator port: publishing, probes, metrics."""

from typing import Final

from pydantic import Field, RootModel

from bridge.core.contracts.base import Contract
from bridge.core.contracts.messages import PublishAccepted, PublishRequest
from bridge.core.contracts.operator.operation import NoBody, NoQuery, Operation


class Liveness(Contract):
    """The process answers. What it needs may be away; that is no reason to restart it."""

    live: bool = Field(description="True.")


class Readiness(Contract):
    """Whether the bridge does its work."""

    ready: bool = Field(description="Whether traffic should be sent here.")
    reasons: list[str] = Field(description="What keeps it from being ready.")


class MetricsText(RootModel[str]):
    """Prometheus' text format; docs/operations.md has a table of the metrics."""


PUBLISH: Final = Operation(
    method="POST",
    path="/api/publish",
    name="publish",
    summary="Publish a message; BRIDGE_API_KEY opens this too. 202 after the broker's confirm.",
    answers={202: PublishAccepted},
    query=NoQuery,
    body=PublishRequest,
    problems=(503,),
)
GET_LIVE: Final = Operation(
    method="GET",
    path="/health/live",
    name="getLive",
    summary="Restart the bridge if this is not answered. On the public port too.",
    answers={200: Liveness},
    query=NoQuery,
    body=NoBody,
    is_free=True,
)
GET_READY: Final = Operation(
    method="GET",
    path="/health/ready",
    name="getReady",
    summary="Send no traffic while this answers 503. On the public port too.",
    answers={200: Readiness, 503: Readiness},
    query=NoQuery,
    body=NoBody,
    is_free=True,
)
GET_METRICS: Final = Operation(
    method="GET",
    path="/metrics",
    name="getMetrics",
    summary="The metrics, for Prometheus.",
    answers={200: MetricsText},
    query=NoQuery,
    body=NoBody,
    media_type="text/plain",
)
OPERATIONS: Final = (PUBLISH, GET_LIVE, GET_READY, GET_METRICS)
