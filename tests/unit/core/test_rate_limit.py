"""How much one window may send."""

from hypothesis import given
from hypothesis import strategies as st

from bridge.core.rate_limit import Allowance


def test_a_burst_of_twice_the_average_passes_and_no_more() -> None:
    """A page that starts up sends several at once; one that floods does not stop."""
    allowance = Allowance(per_second=5, left=10, at_s=0)

    assert [allowance.take(0) for _ in range(12)] == [True] * 10 + [False] * 2


def test_what_was_used_grows_back_with_time() -> None:
    """After a pause the page is as free as before."""
    allowance = Allowance(per_second=5, left=0, at_s=0)

    assert not allowance.take(0.1)
    assert allowance.take(0.2)
    assert not allowance.take(0.3)
    assert allowance.take(100)
    assert allowance.left == 9


@given(st.integers(1, 100), st.lists(st.floats(0, 5), max_size=300))
def test_no_pattern_of_sending_gets_more_than_the_average_and_one_burst(
    per_second: int, pauses_s: list[float]
) -> None:
    """The bound that the operator set, whatever the page does."""
    allowance = Allowance(per_second=per_second, left=2 * per_second, at_s=0)
    now_s = 0.0
    taken = 0
    for pause_s in pauses_s:
        now_s += pause_s
        taken += allowance.take(now_s)

    assert taken <= 2 * per_second + now_s * per_second + 1e-6
