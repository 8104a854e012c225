"""Time that stands still until a test moves it."""

from dataclasses import dataclass


@dataclass
class Clock:
    """Called, it tells `now_s`, which a test may set."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now_s
