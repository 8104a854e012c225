"""The token bucket that limits what one client may send."""

from hypothesis import given
from hypothesis import strategies as st

from bridge.core.rate_limit import TokenBucket


def test_a_burst_of_twice_the_average_passes_and_no_more() -> None:
    """A page that starts up sends several events at once; a flood does not stop."""
    bucket = TokenBucket(per_second=5, tokens=10, updated_s=0)

    assert [bucket.take(0) for _ in range(12)] == [True] * 10 + [False] * 2


def test_tokens_refill_with_time() -> None:
    """After a long pause the full burst is available again."""
    bucket = TokenBucket(per_second=5, tokens=0, updated_s=0)

    assert not bucket.take(0.1)
    assert bucket.take(0.2)
    assert not bucket.take(0.3)
    assert bucket.take(100)
    assert bucket.tokens == 9


@given(st.integers(1, 100), st.lists(st.floats(0, 5), max_size=300))
def test_no_sending_pattern_exceeds_the_average_plus_one_burst(
    per_second: int, pauses_s: list[float]
) -> None:
    """The operator's limit holds for every client."""
    bucket = TokenBucket(per_second=per_second, tokens=2 * per_second, updated_s=0)
    now_s = 0.0
    taken = 0
    for pause_s in pauses_s:
        now_s += pause_s
        taken += bucket.take(now_s)

    assert taken <= 2 * per_second + now_s * per_second + 1e-6
