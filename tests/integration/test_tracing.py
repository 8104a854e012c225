"""Spans of messages whose producers trace, sent to an OTLP collector."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from bridge.core.message import Delivery, Message, Rejection, Stored
from bridge.core.properties import Properties, render_properties, render_table
from bridge.core.settlement import DeadLetter
from bridge.enums import DeadLetterReason
from bridge.tracing import Tracing, open_tracing
from tests.conftest import eventually
from tests.integration.requests.conftest import (
    EVENT,
    request_settings,
    request_worker,
    requesting_bridge,
)
from tests.integration.running import (
    open_windows,
    open_worker,
    python_client,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
TRACE_PARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


class Collector:
    """An OTLP collector over HTTP that stores the spans it receives."""

    def __init__(self) -> None:
        spans = self.spans = []  # type: list[Span]

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()
    thread.join()


@pytest.fixture
def tracing(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Tracing:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    opened = open_tracing()
    assert opened is not None
    return opened


def message(trace_parent: str | None = TRACE_PARENT) -> Message:
    return Message(
        "alice", "order", b"1", taken_s=100.0, id="m-1", trace_parent=trace_parent
    )


def attributes(span: Span) -> dict[str, str | int]:
    return {
        each.key: each.value.string_value or each.value.int_value
        for each in span.attributes
    }


def test_the_bridge_adds_two_spans_to_the_trace_of_the_producer(
    collector: Collector, tracing: Tracing
) -> None:
    """An operator sees one trace from the worker to the page."""
    tracing.stored([message(), message(None)], [7, 8], now_s=100.25)
    tracing.written([Stored(message(), 7)], [3], now_s=100.5)
    tracing.close()

    process, deliver = collector.spans
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE_ID}
    assert {span.parent_span_id.hex() for span in collector.spans} == {PARENT_ID}
    assert (process.name, deliver.name) == ("process", "deliver")
    assert process.end_time_unix_nano - process.start_time_unix_nano == 250_000_000
    assert attributes(process)["bridge.offset"] == 7
    assert attributes(deliver)["bridge.windows"] == 3
    assert attributes(deliver)["messaging.message.id"] == "m-1"


def test_spans_contain_neither_users_nor_data(
    collector: Collector, tracing: Tracing
) -> None:
    """Traces are stored in other systems, and many people read them."""
    tracing.stored([message()], [1], now_s=101.0)
    tracing.close()

    assert b"alice" not in collector.spans[0].SerializeToString()


def test_a_dead_letter_is_an_error_of_its_trace(
    collector: Collector, tracing: Tracing
) -> None:
    """The span has the reason of the dead letter."""
    rejection = Rejection(DeadLetterReason.MALFORMED_BODY, "body is not JSON")
    headers = render_table({"traceparent": TRACE_PARENT})
    raw = render_properties(Properties(headers=headers))
    delivery = Delivery(
        1,
        redelivered=False,
        exchange=b"",
        routing_key=b"alice",
        raw_properties=raw,
        body=b"",
        queue="q",
    )
    tracing.dead_lettered(delivery, DeadLetter(rejection, attempt=1), now_s=100.0)
    tracing.close()

    (span,) = collector.spans
    assert span.status.message == "body is not JSON"
    assert attributes(span)["bridge.reason"] == "malformed_body"


def test_an_unsampled_trace_stays_unsampled(
    collector: Collector, tracing: Tracing
) -> None:
    """The producer decides which traces are sampled."""
    tracing.stored([message(TRACE_PARENT[:-1] + "0")], [1], now_s=101.0)
    tracing.close()

    assert collector.spans == []


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
            "OTEL_SDK_DISABLED": "true",
        },
    ],
)
def test_without_configuration_nothing_is_traced(environment: dict[str, str]) -> None:
    """Tracing needs the endpoint of a collector."""
    assert open_tracing(environment) is None


async def test_a_trace_continues_from_the_worker_to_windows_and_dead_letters(
    broker: LocalNode,
    namespace: str,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bridge reads the trace from the headers of the message."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    traced = Properties(headers=render_table({"traceparent": TRACE_PARENT}))
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        open_worker(broker, namespace) as worker,
        open_windows(running.listening.public_url, [running.token("ann")]) as windows,
    ):
        await worker.publish("ann", {"n": 1}, properties=traced)
        await worker.publish("ann", body=b"no JSON", properties=traced)
        await eventually(windows[0].data)
        await eventually(lambda: running.settled("dead_letter", "malformed_body") == 1)

    # The shutdown sends the remaining spans.
    await eventually(lambda: len(collector.spans) == 3)
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE_ID}
    outcomes = {attributes(span).get("bridge.outcome") for span in collector.spans}
    assert outcomes == {"stored", "dead_letter", None}
    (deliver,) = [span for span in collector.spans if span.name == "deliver"]
    assert attributes(deliver)["bridge.windows"] == 1


async def test_a_request_of_a_page_is_one_trace_with_its_worker(
    broker: LocalNode,
    namespace: str,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker receives the context; the span ends with the answer to the page."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    async with (
        requesting_bridge(request_settings(broker, namespace)) as running,
        request_worker(broker, namespace, answer=lambda data: data) as worker,
        python_client() as client,
    ):
        await client.connect(
            running.listening.public_url, auth={"token": running.token("ann")}
        )
        await client.call(EVENT, {"text": "hello"})
        (request,) = worker.requests

    await eventually(lambda: len(collector.spans) == 1)
    (span,) = collector.spans
    context = str(request.headers["traceparent"])
    assert context.startswith(f"00-{span.trace_id.hex()}-{span.span_id.hex()}-0")
    assert (span.name, attributes(span)["bridge.outcome"]) == ("request", "answered")
    assert attributes(span)["bridge.event"] == EVENT
    assert b"hello" not in span.SerializeToString()
    assert span.end_time_unix_nano > span.start_time_unix_nano


async def test_the_time_since_the_publish_is_measured(
    broker: LocalNode, namespace: str
) -> None:
    """RabbitMQ or the worker sends the time; without it, nothing is counted."""
    now_ms = int(time.time() * 1000)
    stamped = Properties(headers=render_table({"timestamp_in_ms": now_ms - 3000}))
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        open_worker(broker, namespace) as worker,
        open_windows(running.listening.public_url, [running.token("ann")]) as windows,
    ):
        await worker.publish("ann", 1)
        await eventually(lambda: len(windows[0].data()) == 1)
        count = running.sample("bridge_publish_to_page_seconds_count")
        await worker.publish("ann", 2, properties=stamped)
        await eventually(lambda: len(windows[0].data()) == 2)

        assert count == 0
        assert running.sample("bridge_publish_to_page_seconds_count") == 1
        assert running.sample("bridge_publish_to_page_seconds_sum") >= 3
