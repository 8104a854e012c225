"""The publish time and trace of a message, which may be invalid."""

import pytest

from bridge.core.properties import NO_PROPERTIES, Properties, render_table
from bridge.core.provenance import published_s, trace_parent

NOW_S = 1_700_000_000.0
TRACE_PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def with_headers(**headers: str | int) -> Properties:
    return Properties(headers=render_table(headers))


def with_timestamp(seconds: int) -> Properties:
    return Properties(timestamp=seconds.to_bytes(8, "big"))


def test_the_property_timestamp_has_whole_seconds() -> None:
    """AMQP 0-9-1 section 4.2.5.4."""
    assert published_s(with_timestamp(1_699_999_990), NOW_S) == NOW_S - 10


def test_the_header_of_rabbitmq_takes_precedence() -> None:
    """RabbitMQ's interceptor writes it when the message arrives."""
    properties = Properties(
        headers=render_table({"timestamp_in_ms": 1_699_999_999_750}),
        timestamp=(1_699_000_000).to_bytes(8, "big"),
    )

    assert published_s(properties, NOW_S) == NOW_S - 0.25


@pytest.mark.parametrize(
    "properties",
    [
        NO_PROPERTIES,
        with_timestamp(0),
        with_timestamp(int(NOW_S) * 1_000_000),  # microseconds, a common mistake
        with_timestamp(2**64 - 1),
        with_timestamp(int(NOW_S) + 5),
        with_headers(timestamp_in_ms=-1),
        with_headers(timestamp_in_ms="yesterday"),
    ],
)
def test_an_implausible_time_is_ignored(properties: Properties) -> None:
    """A graph of ages must not jump to 50,000 years."""
    assert published_s(properties, NOW_S) is None


def test_a_clock_slightly_ahead_gives_no_negative_age() -> None:
    """The clocks of two machines always differ by some milliseconds."""
    properties = with_headers(timestamp_in_ms=int(NOW_S * 1000) + 400)

    assert published_s(properties, NOW_S) == NOW_S


def test_a_valid_trace_context_is_returned_unchanged() -> None:
    """W3C Trace Context, section 3.2."""
    assert trace_parent(with_headers(traceparent=TRACE_PARENT)) == TRACE_PARENT


@pytest.mark.parametrize(
    "value",
    ["", "00", TRACE_PARENT.upper(), TRACE_PARENT + "-", "\n" + TRACE_PARENT, 7],
)
def test_an_invalid_trace_context_is_ignored(value: str | int) -> None:
    """Producers may send any bytes in this header."""
    assert trace_parent(with_headers(traceparent=value)) is None
    assert trace_parent(NO_PROPERTIES) is None
