"""
OpenTelemetry spans for messages whose producers trace, if the extra `otel` is installed.

A producer writes the W3C `traceparent` into the AMQP headers, as OpenTelemetry's libraries
for RabbitMQ do. The bridge adds two spans to that trace: `process`, from consuming the
message until it is stored or dead-lettered, and `deliver`, from consuming it until it is
written to windows. A replay has no span, because the inbox does not keep the trace.

A request from a page to a worker begins a trace of its own, with the span `request`, from the
page's event to its answer. The worker receives the trace context in the headers.

OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT` and others) configure the
export. Without an endpoint, tracing costs nothing.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from bridge.core.distribution import install_command
from bridge.core.message import Delivery, Message, Stored
from bridge.core.provenance import trace_parent
from bridge.core.settlement import DeadLetter
from bridge.enums import RequestOutcome

try:
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import (
        TraceContextTextMapPropagator,
    )
except ImportError:
    _IS_INSTALLED = False
else:
    _IS_INSTALLED = True

log = structlog.get_logger(__name__)

_ENDPOINTS: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
)
_CLOSE_MS: Final = 3000


def open_tracing(environment: Mapping[str, str] = os.environ) -> "Tracing | None":
    """
    Return the tracing that the environment configures; ``None`` if there is none.

    If tracing is configured but the extra is not installed, log a warning.
    """
    is_configured = any(environment.get(name) for name in _ENDPOINTS)
    if not is_configured or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if not _IS_INSTALLED:
        log.warning(
            "tracing.not_installed",
            fix=install_command("otel"),
        )
        return None
    name = environment.get("OTEL_SERVICE_NAME", "bridge")
    provider = TracerProvider(
        resource=Resource.create({"service.name": name}), shutdown_on_exit=False
    )
    # The processor has a bounded queue and a thread of its own. If the collector is down,
    # spans are lost and the bridge does not wait.
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


class Tracing:
    """Adds the spans of the bridge to the traces of producers."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("bridge")
        self._extract = TraceContextTextMapPropagator().extract

    def close(self) -> None:
        """Send the remaining spans. Blocks for up to 3 s: call it in a thread."""
        self._provider.force_flush(_CLOSE_MS)
        self._provider.shutdown()

    def stored(
        self,
        messages: Sequence[Message],
        offsets: Sequence[int | None],
        *,
        now_s: float,
    ) -> None:
        """Add spans of appended messages; an offset of ``None`` is a duplicate."""
        for message, offset in zip(messages, offsets, strict=True):
            if message.trace_parent is None:
                continue
            span = self._span("process", message.trace_parent, message.taken_s)
            span.set_attribute("bridge.outcome", "stored" if offset else "duplicate")
            self._describe(span, message)
            if offset:
                span.set_attribute("bridge.offset", offset)
            span.end(_ns(now_s))

    def dead_lettered(
        self, delivery: Delivery, letter: DeadLetter, *, now_s: float
    ) -> None:
        """Add the span of a delivery that became a dead letter."""
        parent = trace_parent(delivery.properties)
        if parent is None:
            return
        span = self._span("process", parent, now_s)
        span.set_attribute("bridge.outcome", "dead_letter")
        span.set_attribute("bridge.reason", letter.rejection.reason)
        span.set_status(Status(StatusCode.ERROR, letter.rejection.text))
        span.end(_ns(now_s))

    def written(
        self, news: Sequence[Stored], windows: Sequence[int], *, now_s: float
    ) -> None:
        """Add spans of messages, each of which was written to `windows` windows."""
        for stored, count in zip(news, windows, strict=True):
            message = stored.message
            if message.trace_parent is None:
                continue
            span = self._span("deliver", message.trace_parent, message.taken_s)
            self._describe(span, message)
            span.set_attribute("bridge.windows", count)
            span.end(_ns(now_s))

    def start_request(self, event: str, *, now_s: float) -> "tuple[Span, str]":
        """
        Start the span of a request from a page.

        Returns:
            The span, and the trace context for the worker's spans.

        """
        span = self._tracer.start_span(
            "request",
            context=Context(),
            kind=SpanKind.CLIENT,
            attributes={"messaging.system": "rabbitmq", "bridge.event": event},
            start_time=_ns(now_s),
        )
        of = span.get_span_context()
        return span, f"00-{of.trace_id:032x}-{of.span_id:016x}-{of.trace_flags:02x}"

    def end_request(
        self, span: "Span", outcome: RequestOutcome, *, now_s: float
    ) -> None:
        """End the span of a request with its outcome."""
        span.set_attribute("bridge.outcome", outcome)
        if outcome.is_error:
            span.set_status(Status(StatusCode.ERROR, outcome.explanation))
        span.end(_ns(now_s))

    def _span(self, name: str, trace_parent: str, start_s: float) -> "Span":
        return self._tracer.start_span(
            name,
            context=self._extract({"traceparent": trace_parent}),
            kind=SpanKind.CONSUMER,
            attributes={"messaging.system": "rabbitmq"},
            start_time=_ns(start_s),
        )

    def _describe(self, span: "Span", message: Message) -> None:
        span.set_attribute("bridge.event", message.event)
        if message.id is not None:
            span.set_attribute("messaging.message.id", message.id)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
