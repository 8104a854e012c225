"""A token bucket without a clock of its own."""

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """
    Allows `per_second` events on average and bursts of twice that number.

    Attributes:
        per_second: The average rate.
        tokens: Events that are allowed now.
        updated_s: When `tokens` was computed, on the caller's clock.

    """

    per_second: float
    tokens: float
    updated_s: float

    def has_token(self, now_s: float) -> bool:
        """Return whether `take` would succeed at `now_s`."""
        return self.tokens + (now_s - self.updated_s) * self.per_second >= 1

    def take(self, now_s: float) -> bool:
        """Use one token; return false if none is left at `now_s`."""
        tokens = self.tokens + (now_s - self.updated_s) * self.per_second
        self.tokens = min(tokens, 2 * self.per_second)
        self.updated_s = now_s
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True
