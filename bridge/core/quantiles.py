"""Quantiles of a histogram, computed as Prometheus does."""

from collections.abc import Sequence
from math import isinf


def quantile(buckets: Sequence[tuple[float, float]], part: float) -> float | None:
    """
    Return the value below which `part` of all observations lie.

    Args:
        buckets: Pairs of an upper bound and the number of observations up to it, in
            ascending order; the last bound is infinite.
        part: Between 0 and 1.

    Returns:
        ``None`` if there was no observation. Observations are assumed to be evenly
        distributed within a bucket. Those above the last finite bound count as equal
        to it.

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
