"""Quantiles of a histogram, computed as Prometheus does."""

from math import inf

import pytest

from bridge.core.quantiles import quantile


@pytest.mark.parametrize(
    ("counts", "part", "expected"),
    [
        ((0, 0, 0), 0.5, None),
        ((10, 10, 10), 0.5, 0.5),
        ((0, 10, 10), 0.5, 1.5),
        ((0, 0, 10), 0.5, 2.0),
        ((5, 10, 10), 0.99, 1.98),
    ],
)
def test_a_quantile_lies_within_its_bucket(
    counts: tuple[int, ...], part: float, expected: float | None
) -> None:
    """Observations are even within a bucket; those above the last bound count as it."""
    buckets = list(zip((1.0, 2.0, inf), counts, strict=True))

    assert quantile(buckets, part) == (
        None if expected is None else pytest.approx(expected)
    )


def test_no_buckets_have_no_quantile() -> None:
    """There was no measurement yet."""
    assert quantile([], 0.5) is None
