"""
How soon a batch may begin after the last one.

Each batch has a price that does not depend on its size: a commit, a round trip, several
threads or processes that wake up. At a steady rate, fewer and larger batches are cheaper,
and users cannot perceive some milliseconds. So the time between two batches is a multiple of
the processor time that the last ones took: settling takes a fixed share of a core, at most,
until the pace reaches its bound. A store that is slow for other reasons stretches the pace
by itself, because the next batch begins after the last one has ended.

A message that comes after a pause is not delayed: the time has passed already.
"""

from typing import Final

# The weight of the last batch in the average, which one expensive batch must not rule.
_WEIGHT: Final = 1 / 8


class BatchPace:
    """
    Computes waits. All times are seconds of one monotonic clock.

    Args:
        share: The share of one core that batches may take, 0 to 1.
        longest_s: The bound on the time from the start of a batch to the next.

    """

    def __init__(self, *, share: float = 0.03, longest_s: float = 0.01) -> None:
        self._share = share
        self._longest_s = longest_s
        self._pace_s = 0.0
        self._next_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """Return how long to wait at `now_s` before the next batch begins, at least 0."""
        return max(0.0, self._next_s - now_s)

    def note_batch(self, *, started_s: float, cpu_s: float) -> None:
        """
        Record a batch.

        Args:
            started_s: When it began.
            cpu_s: The processor time that it took, of all threads.

        """
        wanted_s = min(cpu_s / self._share, self._longest_s)
        self._pace_s += (wanted_s - self._pace_s) * _WEIGHT
        self._next_s = started_s + self._pace_s
