"""Quantiles of a histogram, as Prometheus reckons them."""

from collections.abc import Sequence
from math import isinf


def quantile(buckets: Sequence[tuple[float, float]], part: float) -> float | None:
    """
    Return below which value `part` of all observations lie, even within a bucket.

    Args:
        buckets: Upper bound, ascending, the last one infinite, and how many observations
            were not above it.
        part: Between 0 and 1.

    Returns:
        ``None`` if there was no observation. What lies above the last finite bound
        counts as being there.

    """
    if not buckets or buckets[-1][1] <= 0:
        return None
    wanted = part * buckets[-1][1]
    low, below = 0.0, 0.0
    for high, count in buckets:
        if count >= wanted and count > below:
            break
        low, below = high, count
    return (
        low if isinf(high) else low + (high - low) * (wanted - below) / (count - below)
    )
