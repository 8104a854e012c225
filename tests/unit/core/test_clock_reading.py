"""Ages and deadlines by a clock that may have jumped."""

import pytest

from bridge.core.clock_reading import ClockReading, parse_clock_reading

# The clock jumped ahead by 10,000 s, 100 s ago.
JUMPED = ClockReading(50_000.0, steady_s=100.0, behind_s=10_000.0)


@pytest.mark.parametrize(
    ("age_s", "ago_s"), [(0, 50_000), (100, 49_900), (101, 39_899), (1000, 39_000)]
)
def test_an_age_is_measured_by_the_slowest_clock_that_was_in_force(
    age_s: float, ago_s: float
) -> None:
    """Within the time since the jump that is the present one."""
    assert JUMPED.ago(age_s) == ago_s
    assert ClockReading(50_000.0).ago(age_s) == 50_000 - age_s


@pytest.mark.parametrize(
    ("deadline_s", "since_s", "has_passed"),
    [
        (50_001, 49_990, False),
        (50_000, 49_990, True),  # set after the jump
        (49_000, 48_900, True),  # 100 s have passed since it was set, whenever that was
        (49_000, 48_899, False),
        (40_000, 30_000, True),  # by both clocks
        (40_001, 30_000, False),
        (49_000, 49_990, False),  # a retry carries it: when it was set is unknown
        (40_000, 49_990, True),
    ],
)
def test_a_deadline_has_passed_if_it_has_in_real_time(
    deadline_s: float, since_s: float, *, has_passed: bool
) -> None:
    """So a jump expires nothing."""
    assert JUMPED.has_passed(deadline_s, since_s=since_s) is has_passed


def test_a_reading_can_be_stored() -> None:
    """The next process resumes it."""
    assert parse_clock_reading(JUMPED.render()) == JUMPED


@pytest.mark.parametrize("text", ["", "{", "[1]", "[1,2,3,4]", '["a",2,3]'])
def test_another_text_is_no_reading(text: str) -> None:
    """Someone may have edited the store."""
    with pytest.raises(ValueError, match=r"."):
        parse_clock_reading(text)
