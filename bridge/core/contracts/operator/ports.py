"""Publishing, probes and metrics on the operator port."""

from typing import Final

from pydantic import Field, RootModel

from bridge.core.contracts.base import Contract
from bridge.core.contracts.messages import PublishAccepted, PublishRequest
from bridge.core.contracts.operator.operation import Operation


class Liveness(Contract):
    """The process answers. An unavailable broker or store is no reason for a restart."""

    live: bool = Field(description="True.")


class Readiness(Contract):
    """Whether the bridge is ready."""

    ready: bool = Field(description="Whether to send traffic to this bridge.")
    reasons: list[str] = Field(description="Why it is not ready.")
    warnings: list[str] = Field(
        description="What needs attention although messages are delivered, as a dead letter "
        "that cannot be published now."
    )


class MetricsText(RootModel[str]):
    """Metrics in Prometheus's text format; docs/operations.md lists them."""


PUBLISH: Final = Operation(
    method="POST",
    path="/api/publish",
    name="publish",
    summary="Publish a message; BRIDGE_API_KEY is valid too. 202 after the broker's confirm.",
    answers={202: PublishAccepted},
    body=PublishRequest,
    problems=(503,),
)
GET_LIVE: Final = Operation(
    method="GET",
    path="/health/live",
    name="getLive",
    summary="Liveness probe: restart the bridge if it fails. On the public port too.",
    answers={200: Liveness},
    is_free=True,
)
GET_READY: Final = Operation(
    method="GET",
    path="/health/ready",
    name="getReady",
    summary="Readiness probe: send no traffic while it answers 503. On the public port too.",
    answers={200: Readiness, 503: Readiness},
    is_free=True,
)
GET_METRICS: Final = Operation(
    method="GET",
    path="/metrics",
    name="getMetrics",
    summary="Show the metrics for Prometheus.",
    answers={200: MetricsText},
    media_type="text/plain",
)
OPERATIONS: Final = (PUBLISH, GET_LIVE, GET_READY, GET_METRICS)
