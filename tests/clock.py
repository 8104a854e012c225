"""A clock that a test moves."""

from dataclasses import dataclass


@dataclass
class Clock:
    """Returns `now_s` when it is called."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        """Return the current time."""
        return self.now_s
