"""The wall clock and its jumps."""

import time

import pytest
from structlog.testing import capture_logs

from bridge.clock import SteadyClock, real_time
from tests.contract.inbox.files import Clock

DAY_S = 86_400.0


@pytest.fixture
def clock() -> Clock:
    """Return a clock that the test moves."""
    return Clock()


def test_time_that_passes_is_no_jump(clock: Clock) -> None:
    """However long the process did not read the clock: real time passed as well."""
    steady = clock.steady
    clock.now_s += 8 * DAY_S

    reading = steady.read()

    assert reading.now_s == clock.now_s
    assert reading.steady_s > 365 * DAY_S
    assert reading.behind_s == steady.jump_count == 0


@pytest.mark.parametrize("step_s", [-60.0, 60.0])
def test_a_small_step_is_followed(clock: Clock, step_s: float) -> None:
    """NTP makes steps, and a minute more or less is within what retention promises."""
    steady = clock.steady
    clock.jump(step_s)

    assert steady.read().ago(DAY_S) == clock.now_s - DAY_S
    assert steady.jump_count == 0


@pytest.mark.parametrize("jump_s", [61.0, -61.0, 8 * DAY_S])
def test_a_jump_is_logged_and_counted_once(clock: Clock, jump_s: float) -> None:
    """An operator has to find out which of the two times is right."""
    steady = clock.steady
    clock.jump(jump_s)

    with capture_logs() as logs:
        steady.read()
        clock.now_s += 10
        reading = steady.read()

    assert steady.jump_count == 1
    assert reading.steady_s == 10
    assert reading.behind_s == max(0, jump_s)
    assert [(each["event"], each["ahead_s"]) for each in logs] == [
        ("clock.jumped", round(jump_s))
    ]


def test_a_process_that_is_stopped_between_two_readings_sees_no_jump() -> None:
    """The wall clock is read a minute later than real time once; a second look decides."""
    real = iter([0.0, 0.0, 100.0, 100.0])
    wall = iter([1000.0, 1100.0, 1100.0, 1100.0])
    steady = SteadyClock(wall=lambda: next(wall), real=lambda: next(real))

    assert steady.read().behind_s == 0
    assert steady.jump_count == 0


def test_several_jumps_leave_the_slowest_clock(clock: Clock) -> None:
    """Messages may have the stamps of each of them."""
    steady = clock.steady
    for jump_s in (DAY_S, -3 * DAY_S, 5 * DAY_S):
        clock.jump(jump_s)
        steady.read()

    assert steady.read().behind_s == 5 * DAY_S


def test_a_new_process_continues_the_doubts_of_the_last_one(clock: Clock) -> None:
    """A restart is no proof that the clock is right."""
    first = clock.steady
    clock.jump(DAY_S)
    clock.now_s += 30
    first.read()
    clock.now_s += 30
    stored = first.read().render()
    clock.now_s += 600

    second = clock.steady
    second.resume(stored)

    reading = second.read()
    assert (reading.steady_s, reading.behind_s) == (630, DAY_S)
    assert second.jump_count == 0


@pytest.mark.parametrize(("stopped_s", "behind_s"), [(3600, 0), (3601, 3601)])
def test_a_long_stop_counts_as_a_jump(
    clock: Clock, stopped_s: float, behind_s: float
) -> None:
    """It cannot be told from a clock that is ahead."""
    stored = clock.steady.read().render()
    clock.now_s += stopped_s
    steady = clock.steady

    with capture_logs() as logs:
        steady.resume(stored)

    assert steady.read().behind_s == behind_s
    assert [each["event"] for each in logs] == ["clock.unconfirmed"] * bool(behind_s)


def test_a_clock_that_starts_behind_the_store_is_in_doubt(clock: Clock) -> None:
    """When it is set right, the messages stored until then must not look old."""
    stored = clock.steady.read().render()
    clock.jump(-DAY_S)
    steady = clock.steady
    steady.resume(stored)
    clock.now_s += 5
    clock.jump(DAY_S)

    assert steady.read().behind_s == DAY_S


@pytest.mark.parametrize("stored", [None, "nonsense", "7"])
def test_without_a_stored_reading_the_wall_clock_is_trusted(
    clock: Clock, stored: str | None
) -> None:
    """A new store has none."""
    steady = clock.steady
    steady.resume(stored)

    assert steady.read().ago(DAY_S) == clock.now_s - DAY_S


def test_while_the_store_is_behind_its_clock_decides(clock: Clock) -> None:
    """The stamps of other bridges are closer to the server's time than to ours."""
    steady = clock.steady
    with capture_logs() as logs:
        for _ in range(2):
            clock.now_s += 50
            steady.compare(clock.now_s - 500)
    clock.now_s += 10

    reading = steady.read()
    assert (reading.steady_s, reading.behind_s) == (0, 500)
    assert [each["event"] for each in logs] == ["clock.ahead_of_store"]

    steady.compare(clock.now_s + DAY_S)

    assert steady.read().steady_s == 10


def test_a_clock_behind_the_store_is_reported_once(clock: Clock) -> None:
    """Other bridges judge what this one stores; it deletes nothing too early itself."""
    steady = clock.steady
    before = steady.read()
    with capture_logs() as logs:
        for ahead_s in (30, 500, 500, 0):
            steady.compare(clock.now_s + ahead_s)

    assert steady.read() == before
    assert [(each["event"], each["behind_s"]) for each in logs] == [
        ("clock.behind_store", 500),
        ("clock.behind_store", 0),
    ]


def test_real_time_passes() -> None:
    """It has another origin than the wall clock."""
    before = real_time()

    assert 0 < before <= real_time() < time.time()
