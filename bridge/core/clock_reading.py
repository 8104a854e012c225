"""
A reading of the wall clock that says which ages it proves.

The wall clock can jump: an operator sets it, or the machine gets a wrong time. A message
would then look days old. So an age counts only if real time confirms it: by the wall clock
if it has been steady for that long, otherwise by the slowest clock in force before.
"""

from dataclasses import dataclass
from math import inf

import orjson


@dataclass(slots=True)
class ClockReading:
    """
    The wall clock at an instant. Not frozen, because several are created for each batch.

    Attributes:
        now_s: Unix time.
        steady_s: How long the wall clock has not jumped, in real time.
        behind_s: How far the slowest clock that was in force before is behind `now_s`.

    """

    now_s: float
    steady_s: float = inf
    behind_s: float = 0.0

    @property
    def lowest_s(self) -> float:
        """Unix time by the slowest clock that has been in force."""
        return self.now_s - self.behind_s

    def ago(self, age_s: float) -> float:
        """Return a Unix time; what was stamped before it is really older than `age_s`."""
        return (self.now_s if age_s <= self.steady_s else self.lowest_s) - age_s

    def has_passed(self, deadline_s: float, *, since_s: float) -> bool:
        """
        Return whether a deadline has really passed.

        Args:
            deadline_s: Unix time.
            since_s: When the deadline was set, by the same clock.

        """
        if deadline_s > self.now_s:
            return False
        return 0 <= deadline_s - since_s <= self.steady_s or deadline_s <= self.lowest_s

    def render(self) -> str:
        """Return the text that `parse_clock_reading` reads."""
        return orjson.dumps((self.now_s, self.steady_s, self.behind_s)).decode()


def parse_clock_reading(text: str | bytes) -> ClockReading:
    """Return the reading that was rendered; raises ValueError if `text` is none."""
    now_s, steady_s, behind_s = map(float, orjson.loads(text))
    return ClockReading(now_s, steady_s, behind_s)
