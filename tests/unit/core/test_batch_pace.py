"""The pace of batches: a share of a core, within a bound, and nothing for a lone message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.batch_pace import BatchPace

SHARE = 0.05
LONGEST_S = 0.01


def settle(
    pace: BatchPace, *, cpu_s: float, took_s: float, batches: int = 100
) -> list[float]:
    """Settle batches under constant load; return the times from one start to the next."""
    now_s = 1000.0
    steps = []
    for _ in range(batches):
        started_s = now_s
        now_s += took_s
        pace.note_batch(started_s=started_s, cpu_s=cpu_s)
        now_s += pace.wait_s(now_s)
        steps.append(now_s - started_s)
    return steps


def test_batches_take_their_share_of_a_core() -> None:
    """Twenty batches of 0.2 ms in 80 ms are 5 percent."""
    steps = settle(
        BatchPace(share=SHARE, longest_s=LONGEST_S), cpu_s=0.0002, took_s=0.001
    )

    assert steps[-1] == pytest.approx(0.0002 / SHARE, rel=0.01)


def test_expensive_batches_wait_no_longer_than_the_bound() -> None:
    """Latency gives way to processor time only so far."""
    steps = settle(BatchPace(share=SHARE, longest_s=LONGEST_S), cpu_s=0.1, took_s=0.001)

    assert max(steps) <= LONGEST_S + 1e-9
    assert steps[-1] == pytest.approx(LONGEST_S, rel=0.01)


def test_a_slow_store_sets_the_pace_alone() -> None:
    """Messages collect while it works; a further wait would only add to their latency."""
    steps = settle(
        BatchPace(share=SHARE, longest_s=LONGEST_S), cpu_s=0.0002, took_s=0.05
    )

    assert steps == pytest.approx([0.05] * len(steps))


def test_the_first_batch_and_one_after_a_pause_begin_at_once() -> None:
    """A lone message pays nothing, however expensive the batches before it were."""
    pace = BatchPace(share=SHARE, longest_s=LONGEST_S)
    assert pace.wait_s(0.0) == 0.0

    settle(pace, cpu_s=0.1, took_s=0.001)

    assert pace.wait_s(2000.0) == 0.0


def test_one_expensive_batch_does_not_set_the_pace() -> None:
    """A reconnect storm in the same process must not delay messages after it."""
    pace = BatchPace(share=SHARE, longest_s=LONGEST_S)
    settle(pace, cpu_s=0.00001, took_s=0.0001)

    pace.note_batch(started_s=1.0, cpu_s=5.0)

    assert pace.wait_s(1.0) < LONGEST_S / 4


@given(
    batches=st.lists(
        st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=50
    )
)
def test_no_batch_ever_waits_longer_than_the_bound(
    batches: list[tuple[float, float]],
) -> None:
    """Whatever the batches cost, and however long they took."""
    pace = BatchPace(share=SHARE, longest_s=LONGEST_S)
    now_s = 0.0
    for cpu_s, took_s in batches:
        pace.note_batch(started_s=now_s, cpu_s=cpu_s)

        assert 0 <= pace.wait_s(now_s + took_s) <= max(0.0, LONGEST_S - took_s) + 1e-9
        now_s += took_s
