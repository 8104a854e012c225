"""Durations, as operators and producers write them: ``500ms 30s 5m 2h 7d``."""

import re
from typing import Final

# Few digits, because float() takes milliseconds for thousands of them.
_DURATION: Final = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)(ms|s|m|h|d)?")
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, None: 1}


def parse_duration_s(value: object) -> float:
    """
    Parse a duration: a number of seconds, or a number with a unit: ``500ms 30s 5m 2h 7d``.

    Raises:
        ValueError: If `value` is neither.

    """
    match = _DURATION.fullmatch(str(value).strip())
    if match is None:
        message = (
            f"{value!r} is not a duration, expected for example 500ms, 30s, 5m or 7d"
        )
        raise ValueError(message)
    return float(match[1]) * _SECONDS[match[2]]


def render_duration(duration_s: float) -> str:
    """Render a duration for `parse_duration_s`, in the largest unit without a fraction."""
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(duration_s, _SECONDS[unit])
        if count and not rest:
            return f"{count:.0f}{unit}"
    return f"{duration_s * 1000:g}ms" if duration_s < 1 else f"{duration_s}s"
