"""How much one window may send: a token bucket without a clock of its own."""

from dataclasses import dataclass


@dataclass(slots=True)
class Allowance:
    """
    So many events a second on average, and twice that in a burst.

    Attributes:
        per_second: The average that is allowed.
        left: What may be used now.
        at_s: When `left` was true, on whatever clock the caller uses.

    """

    per_second: float
    left: float
    at_s: float

    def take(self, now_s: float) -> bool:
        """Use one; false if there is none left at `now_s`."""
        grown = self.left + (now_s - self.at_s) * self.per_second
        self.left = min(grown, 2 * self.per_second)
        self.at_s = now_s
        if self.left < 1:
            return False
        self.left -= 1
        return True
