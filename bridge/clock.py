"""
The clock of everything that becomes too old: a wall clock whose jumps are noticed.

Real time is measured by a clock that cannot be set and that also runs while the machine is
suspended. If the wall clock differs by more than a minute from what real time predicts, it
has jumped. Nothing says which of the two times is right, so both are used: messages are
stamped with the wall clock, and judged by the earlier time until they are old enough by
both (core/clock_reading.py). If the wall clock jumps back, nothing was deleted. If it stays,
the messages from before the jump reach their age in real time, and the later ones have the
right stamps.

Real time does not outlive a process. So a store keeps the last reading, and a bridge that
opens the store resumes it. More than an hour between the two counts as a jump, because a
bridge that was stopped for days cannot tell that from a clock that is days ahead.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Final

import structlog

from bridge.core.clock_reading import ClockReading, parse_clock_reading

log = structlog.get_logger(__name__)

# Smaller steps are followed without notice: NTP makes them, and clocks of machines differ.
STEP_MAX_S: Final = 60.0
# A bridge that was stopped for so long still trusts the wall clock when it starts.
STOPPED_MAX_S: Final = 3600.0
# On Linux CLOCK_MONOTONIC stops while the machine is suspended, elsewhere it does not.
_REAL_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


# Returns the seconds since the machine booted, also those of its suspension.
real_time: Final = partial(time.clock_gettime, _REAL_CLOCK)


@dataclass(frozen=True, slots=True)
class _ClockState:
    """
    What is known of the wall clock, replaced as a whole because threads share it.

    Attributes:
        offset_s: Unix time minus real time, as of the last jump.
        lowest_offset_s: The lowest that it has been.
        jumped_s: The real time of the last jump; the default is thousands of years ago.
        is_ahead: Whether the wall clock is ahead of the store's clock.
        is_behind: Whether it is behind.

    """

    offset_s: float
    lowest_offset_s: float
    jumped_s: float = -1e11
    is_ahead: bool = False
    is_behind: bool = False


class SteadyClock:
    """
    The wall clock, read together with what its ages are worth. Any thread may use it.

    Attributes:
        wall_s: Returns Unix time alone, for stamps that nothing is judged by.

    """

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        real: Callable[[], float] = real_time,
    ) -> None:
        """
        Trust the wall clock as it is now.

        Args:
            wall: Returns Unix time; may jump.
            real: Returns seconds that pass steadily.

        """
        self.jump_count = 0
        self.wall_s: Final = wall
        self._real = real
        self._changing = Lock()
        offset_s = wall() - real()
        self._state = _ClockState(offset_s, offset_s)

    def real_s(self) -> float:
        """Return seconds of real time, for intervals."""
        return self._real()

    def read(self) -> ClockReading:
        """Return the time; log and count a jump since the last reading."""
        state, now_s, real_s = self._state, self.wall_s(), self._real()
        if not -STEP_MAX_S <= now_s - real_s - state.offset_s <= STEP_MAX_S:
            with self._changing:
                state, now_s, real_s = self._note_jump()
        behind_s = now_s - real_s - state.lowest_offset_s
        return ClockReading(
            now_s,
            0.0 if state.is_ahead else real_s - state.jumped_s,
            behind_s if behind_s > 0 else 0.0,
        )

    def _note_jump(self) -> tuple[_ClockState, float, float]:
        # Again: another thread may have noted it, or the process was stopped for a minute
        # between two readings.
        state, now_s, real_s = self._state, self.wall_s(), self._real()
        offset_s = now_s - real_s
        ahead_s = offset_s - state.offset_s
        if abs(ahead_s) > STEP_MAX_S:
            self.jump_count += 1
            log.warning("clock.jumped", ahead_s=round(ahead_s))
            lowest_s = min(state.lowest_offset_s, offset_s)
            state = self._state = replace(
                state, offset_s=offset_s, lowest_offset_s=lowest_s, jumped_s=real_s
            )
        return state, now_s, real_s

    def resume(self, stored: str | bytes | None) -> None:
        """Continue from the last reading that a store holds; ``None`` if it has none."""
        if stored is None:
            return
        try:
            then = parse_clock_reading(stored)
        except (TypeError, ValueError):
            log.warning("clock.unreadable", stored=str(stored))
            return
        now = self.read()
        stopped_s = now.now_s - then.now_s
        if -STEP_MAX_S <= stopped_s <= STOPPED_MAX_S:
            steady_s, behind_s = then.steady_s + max(0.0, stopped_s), then.behind_s
        else:
            log.warning("clock.unconfirmed", stopped_s=round(stopped_s))
            steady_s, behind_s = 0.0, then.behind_s + max(0.0, stopped_s)
        with self._changing:
            state, real_s = self._state, self._real()
            self._state = replace(
                state,
                lowest_offset_s=min(state.lowest_offset_s, state.offset_s - behind_s),
                jumped_s=max(state.jumped_s, real_s - steady_s),
            )

    def compare(self, other_s: float) -> None:
        """
        Judge ages by the store's clock, which shows `other_s`, while the wall clock is ahead of it.

        While the wall clock is behind, this bridge deletes nothing too early, but the messages
        that it stores look older to other bridges.
        """
        ahead_s = self.read().now_s - other_s
        is_ahead, is_behind = ahead_s > STEP_MAX_S, ahead_s < -STEP_MAX_S
        with self._changing:
            state, real_s = self._state, self._real()
            if is_ahead != state.is_ahead:
                log.warning("clock.ahead_of_store", ahead_s=round(ahead_s))
            if is_behind != state.is_behind:
                log.warning("clock.behind_store", behind_s=round(-ahead_s))
            if is_ahead:
                lowest_s = min(state.lowest_offset_s, other_s - real_s)
                state = replace(state, lowest_offset_s=lowest_s, jumped_s=real_s)
            self._state = replace(state, is_ahead=is_ahead, is_behind=is_behind)
