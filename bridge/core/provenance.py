"""
The time at which a message was published, and the trace that it belongs to.

Producers may write anything here. The values are used for metrics and traces only, and
invalid ones are ignored.
"""

import re
from typing import Final

from bridge.core.properties import Properties, header_bytes, header_int
from bridge.enums import HEADER_PUBLISHED_MS, HEADER_TRACE_PARENT

# W3C Trace Context, section 3.2: version, trace id, parent id, flags.
_TRACE_PARENT: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
# Clocks of two machines differ a little; a larger difference is an error.
_AHEAD_AT_MOST_S: Final = 1.0
_AGE_AT_MOST_S: Final = 10 * 366 * 86_400.0


def published_s(properties: Properties, now_s: float) -> float | None:
    """
    Return when the message was published, in Unix seconds; ``None`` if unknown.

    RabbitMQ's own header, in milliseconds, takes precedence over the property `timestamp`,
    which has whole seconds (AMQP 0-9-1 section 4.2.5.4). A time in the future or more than
    ten years ago is ignored.
    """
    at_s: float | None = None
    headers = properties.headers
    if headers is not None:
        at_ms = header_int(headers, HEADER_PUBLISHED_MS)
        at_s = None if at_ms is None else at_ms / 1000
    if at_s is None and properties.timestamp is not None:
        at_s = float(int.from_bytes(properties.timestamp, "big"))
    if at_s is None or not -_AHEAD_AT_MOST_S <= now_s - at_s <= _AGE_AT_MOST_S:
        return None
    return min(at_s, now_s)


def trace_parent(properties: Properties) -> str | None:
    """Return the producer's W3C `traceparent`; ``None`` if absent or invalid."""
    if properties.headers is None:
        return None
    value = header_bytes(properties.headers, HEADER_TRACE_PARENT)
    if value is None or not _TRACE_PARENT.fullmatch(value):
        return None
    return value.decode()
