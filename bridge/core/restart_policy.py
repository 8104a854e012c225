"""What becomes of a place whose worker has ended: another worker, or the end of all."""

from dataclasses import dataclass
from typing import Final

# A worker that lived so long was well: what ended it has nothing to do with its start.
SETTLED_S: Final = 30.0
ATTEMPTS_MAX: Final = 5
_BASE_S: Final = 0.1
_CAP_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Ended:
    """
    How a worker ended.

    Attributes:
        code: Its exit status; negative if a signal ended it.
        listened_s: How long it had been open for windows; ``None`` if it never was.

    """

    code: int
    listened_s: float | None

    @property
    def is_quick(self) -> bool:
        """Whether it ended soon after its start."""
        return self.listened_s is None or self.listened_s < SETTLED_S

    def __str__(self) -> str:
        if self.code < 0:
            return f"was ended by signal {-self.code}"
        return f"ended with status {self.code}"


@dataclass(frozen=True, slots=True)
class StartAgain:
    """Start another worker in its place, after a pause."""

    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the whole bridge with this exit status."""

    code: int


def next_start(
    ended: Ended, *, quick_ends: int, was_any_listening: bool, roll: float
) -> StartAgain | GiveUp:
    """
    Choose what follows the end of a worker that nobody asked to go.

    Args:
        ended: How it ended.
        quick_ends: How often in a row a worker of this place ended quickly, this time
            included.
        was_any_listening: Whether any worker of the bridge ever got as far as listening.
        roll: A random number in [0, 1).

    Returns:
        ``GiveUp`` with the worker's own status if the very first start is refused: wrong
        settings do not mend themselves. ``GiveUp`` with 1 at too many quick ends.
        Otherwise a pause between half the cap and the cap, which triples with each.

    """
    if not was_any_listening and ended.code > 0:
        return GiveUp(ended.code)
    if quick_ends >= ATTEMPTS_MAX:
        return GiveUp(1)
    cap_s = min(_CAP_S, _BASE_S * 3.0 ** max(0, quick_ends - 1))
    # Half of it stays random: workers that one cause has ended do not come back as one.
    return StartAgain(cap_s * (0.5 + 0.5 * roll))
