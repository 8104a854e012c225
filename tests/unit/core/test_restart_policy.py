"""The decision after the end of a worker."""

import pytest

from bridge.core.restart_policy import (
    ATTEMPTS_MAX,
    SETTLED_S,
    GiveUp,
    RestartAfter,
    WorkerExit,
    decide_restart,
)

CRASHED = WorkerExit(code=-9, listened_s=1.0)


@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_first_start_that_is_refused_ends_the_bridge_with_the_same_status(
    code: int,
) -> None:
    """The settings are wrong for all workers, so a restart would not help."""
    step = decide_restart(
        WorkerExit(code, None), early_exits=1, has_any_listened=False, roll=0.5
    )

    assert step == GiveUp(code)


def test_invalid_settings_at_a_restart_do_not_end_the_other_workers() -> None:
    """The file of settings may be in the middle of an edit."""
    step = decide_restart(
        WorkerExit(2, None), early_exits=1, has_any_listened=True, roll=0.5
    )

    assert isinstance(step, RestartAfter)


def test_a_crash_at_the_first_start_is_followed_by_a_restart() -> None:
    """The kernel may have been out of memory for a moment."""
    step = decide_restart(
        WorkerExit(-9, None), early_exits=1, has_any_listened=False, roll=0.0
    )

    assert isinstance(step, RestartAfter)


def test_too_many_early_exits_end_the_bridge_with_status_1() -> None:
    """A service manager notices it, unlike an endless loop of restarts."""
    last = decide_restart(
        CRASHED, early_exits=ATTEMPTS_MAX - 1, has_any_listened=True, roll=0.5
    )
    over = decide_restart(
        CRASHED, early_exits=ATTEMPTS_MAX, has_any_listened=True, roll=0.5
    )

    assert isinstance(last, RestartAfter)
    assert over == GiveUp(1)


@pytest.mark.parametrize("early_exits", range(1, ATTEMPTS_MAX))
def test_delays_grow_and_half_of_each_is_random(early_exits: int) -> None:
    """Workers that ended for one reason do not restart in the same instant."""
    delays = [
        step.delay_s
        for roll in (0.0, 1.0)
        if isinstance(
            step := decide_restart(
                CRASHED, early_exits=early_exits, has_any_listened=True, roll=roll
            ),
            RestartAfter,
        )
    ]

    assert delays[0] == pytest.approx(delays[1] / 2)
    assert delays[1] == pytest.approx(0.1 * 3 ** (early_exits - 1))


def test_an_exit_after_a_long_time_is_not_early() -> None:
    """It says nothing about the next start."""
    assert not WorkerExit(-9, SETTLED_S).is_early
    assert WorkerExit(-9, SETTLED_S - 1).is_early
    assert WorkerExit(0, None).is_early


def test_an_exit_is_described_by_its_signal_or_status() -> None:
    """The text is used in the log and in the error of the supervisor."""
    assert str(WorkerExit(-9, None)) == "was ended by signal 9"
    assert str(WorkerExit(2, None)) == "ended with status 2"
