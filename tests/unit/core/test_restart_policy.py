"""What follows the end of a worker."""

import pytest

from bridge.core.restart_policy import (
    ATTEMPTS_MAX,
    SETTLED_S,
    Ended,
    GiveUp,
    StartAgain,
    next_start,
)

CRASHED = Ended(code=-9, listened_s=1.0)


@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_first_start_that_is_refused_ends_the_bridge_with_the_same_status(
    code: int,
) -> None:
    """Wrong settings are wrong for all workers, and stay so: 2 means the same as ever."""
    step = next_start(
        Ended(code, None), quick_ends=1, was_any_listening=False, roll=0.5
    )

    assert step == GiveUp(code)


def test_settings_that_went_wrong_later_do_not_end_the_workers_that_run() -> None:
    """One place is tried again first: whoever edits a file may be half way."""
    step = next_start(Ended(2, None), quick_ends=1, was_any_listening=True, roll=0.5)

    assert isinstance(step, StartAgain)


def test_a_crash_at_the_first_start_is_tried_again() -> None:
    """The kernel may have been out of memory for a moment."""
    step = next_start(Ended(-9, None), quick_ends=1, was_any_listening=False, roll=0.0)

    assert isinstance(step, StartAgain)


def test_too_many_quick_ends_give_up_with_status_1() -> None:
    """Whoever watches the bridge learns of it, instead of a loop in the dark."""
    last = next_start(
        CRASHED, quick_ends=ATTEMPTS_MAX - 1, was_any_listening=True, roll=0.5
    )
    over = next_start(
        CRASHED, quick_ends=ATTEMPTS_MAX, was_any_listening=True, roll=0.5
    )

    assert isinstance(last, StartAgain)
    assert over == GiveUp(1)


@pytest.mark.parametrize("quick_ends", range(1, ATTEMPTS_MAX))
def test_pauses_grow_and_half_of_each_is_random(quick_ends: int) -> None:
    """Workers that one cause has ended do not come back in the same instant."""
    pauses = [
        step.after_s
        for roll in (0.0, 1.0)
        if isinstance(
            step := next_start(
                CRASHED, quick_ends=quick_ends, was_any_listening=True, roll=roll
            ),
            StartAgain,
        )
    ]

    assert pauses[0] == pytest.approx(pauses[1] / 2)
    assert pauses[1] == pytest.approx(0.1 * 3 ** (quick_ends - 1))


def test_a_worker_that_lived_long_was_well() -> None:
    """Its end says nothing about the next start."""
    assert not Ended(-9, SETTLED_S).is_quick
    assert Ended(-9, SETTLED_S - 1).is_quick
    assert Ended(0, None).is_quick


def test_an_end_says_how_it_was() -> None:
    """For the log, and for the last words of the bridge."""
    assert str(Ended(-9, None)) == "was ended by signal 9"
    assert str(Ended(2, None)) == "ended with status 2"
