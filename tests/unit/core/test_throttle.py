"""Wrong guesses of a secret lead to pauses; the right one does not."""

import pytest

from bridge.core.throttle import Throttle


def fail(throttle: Throttle, address: str, *, times: int, now_s: float = 0) -> float:
    """Fail `times` times at `now_s`, and return the pause that follows."""
    for _ in range(times):
        throttle.note_failure(address, now_s)
    return throttle.wait_s(address, now_s)


def test_the_first_failures_lead_to_no_pause() -> None:
    """People mistype."""
    assert fail(Throttle(free_tries=5), "10.0.0.1", times=4) == 0


def test_each_further_failure_doubles_the_pause_up_to_the_longest() -> None:
    """An attacker gets a few hundred tries per day at most."""
    throttle = Throttle(free_tries=5, longest_s=10)

    pauses = [fail(throttle, "10.0.0.1", times=1) for _ in range(9)]

    assert pauses == [0, 0, 0, 0, 1, 2, 4, 8, 10]
    assert fail(throttle, "10.0.0.1", times=10_000) == 10


def test_a_pause_passes_with_time() -> None:
    """The time to wait is the rest of the pause."""
    throttle = Throttle(free_tries=1)
    fail(throttle, "10.0.0.1", times=3)

    assert throttle.wait_s("10.0.0.1", 1.5) == 2.5
    assert throttle.wait_s("10.0.0.1", 4) == 0


def test_old_failures_are_forgotten() -> None:
    """The next failure counts as the first one."""
    throttle = Throttle(free_tries=2, longest_s=1000, forget_s=60)
    fail(throttle, "10.0.0.1", times=12)

    assert throttle.wait_s("10.0.0.1", 60) == 0
    assert fail(throttle, "10.0.0.1", times=1, now_s=60) == 0


def test_the_right_secret_resets_the_count() -> None:
    """Forgetting an address that never failed has no effect."""
    throttle = Throttle(free_tries=1)
    fail(throttle, "10.0.0.1", times=3)

    throttle.forget("10.0.0.1")
    throttle.forget("10.0.0.2")

    assert throttle.wait_s("10.0.0.1", 0) == 0


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("unknown", "unknown", True),
    ],
)
def test_all_addresses_of_a_host_share_one_count(
    one: str, other: str, is_same: bool
) -> None:
    """An IPv6 host can use every address of its /64 network."""
    throttle = Throttle(free_tries=1)

    fail(throttle, one, times=1)

    assert (throttle.wait_s(other, 0) > 0) is is_same


def test_the_number_of_addresses_is_bounded() -> None:
    """The address whose last failure is oldest is forgotten first."""
    throttle = Throttle(free_tries=1, at_most=2)

    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.3"):
        fail(throttle, address, times=1)

    waits = [throttle.wait_s(f"10.0.0.{n}", 0) for n in (1, 2, 3)]
    assert [wait > 0 for wait in waits] == [True, False, True]
