"""The decision after the end of a worker: restart it after a delay, or end the bridge."""

from dataclasses import dataclass
from typing import Final

# A worker that listened for this long had started well: its end says nothing about the
# next start.
SETTLED_S: Final = 30.0
ATTEMPTS_MAX: Final = 5
_BASE_S: Final = 0.1
_CAP_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """
    How a worker process ended.

    Attributes:
        code: Its exit status; negative if a signal ended it.
        listened_s: For how many seconds it listened; ``None`` if it never did.

    """

    code: int
    listened_s: float | None

    @property
    def is_early(self) -> bool:
        """Whether the worker ended soon after its start."""
        return self.listened_s is None or self.listened_s < SETTLED_S

    def __str__(self) -> str:
        if self.code < 0:
            return f"was ended by signal {-self.code}"
        return f"ended with status {self.code}"


@dataclass(frozen=True, slots=True)
class RestartAfter:
    """Start another process in the same slot after a delay."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the whole bridge with this exit status."""

    code: int


def decide_restart(
    ended: WorkerExit, *, early_exits: int, has_any_listened: bool, roll: float
) -> RestartAfter | GiveUp:
    """
    Choose the reaction to the unexpected end of a worker.

    Args:
        ended: How it ended.
        early_exits: How many times in a row the worker of this slot ended early, this
            time included.
        has_any_listened: Whether any worker of the bridge has ever listened.
        roll: A random number in [0, 1).

    Returns:
        ``GiveUp`` with the worker's own status if the very first start is refused, since
        the settings are wrong for all workers. ``GiveUp`` with 1 after too many early
        exits. Otherwise ``RestartAfter``, whose delay lies between half the cap and the
        cap. The cap triples with each early exit.

    """
    if not has_any_listened and ended.code > 0:
        return GiveUp(ended.code)
    if early_exits >= ATTEMPTS_MAX:
        return GiveUp(1)
    cap_s = min(_CAP_S, _BASE_S * 3.0 ** max(0, early_exits - 1))
    # Half of the delay is random, so that workers that ended for one reason do not all
    # restart in the same instant.
    return RestartAfter(cap_s * (0.5 + 0.5 * roll))
