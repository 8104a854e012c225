"""
What a message says of its own past: when it was published, and by which trace.

A producer may write anything here, so nothing is decided by it: it is for operators'
graphs alone, and what makes no sense is as if it were not there.
"""

import re
from typing import Final

from bridge.core.properties import Properties, header_bytes, header_int
from bridge.enums import HEADER_PUBLISHED_MS, HEADER_TRACE_PARENT

# W3C Trace Context, section 3.2: version, trace id, parent id, flags.
_TRACE_PARENT: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
# A clock that is this far ahead is wrong; one that is a little ahead is a clock.
_AHEAD_AT_MOST_S: Final = 1.0
_AGE_AT_MOST_S: Final = 10 * 366 * 86_400.0


def published_s(properties: Properties, now_s: float) -> float | None:
    """
    Return when the message was published, in Unix seconds; `None` if nobody knows.

    RabbitMQ's own header, in milliseconds, is taken before the property `timestamp`,
    which has whole seconds by AMQP 0-9-1 section 4.2.5.4. A time in the future, or one
    that is ten years old, is no time.
    """
    told_s: float | None = None
    headers = properties.headers
    if headers is not None:
        told_ms = header_int(headers, HEADER_PUBLISHED_MS)
        told_s = None if told_ms is None else told_ms / 1000
    if told_s is None and properties.timestamp is not None:
        told_s = float(int.from_bytes(properties.timestamp, "big"))
    if told_s is None or not -_AHEAD_AT_MOST_S <= now_s - told_s <= _AGE_AT_MOST_S:
        return None
    return min(told_s, now_s)


def trace_parent(properties: Properties) -> str | None:
    """Return the producer's W3C `traceparent`, if it is one."""
    if properties.headers is None:
        return None
    value = header_bytes(properties.headers, HEADER_TRACE_PARENT)
    if value is None or not _TRACE_PARENT.fullmatch(value):
        return None
    return value.decode()
