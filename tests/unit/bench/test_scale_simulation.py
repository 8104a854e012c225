"""The simulation of the worst day of a fleet."""

from dataclasses import replace

import pytest

from tests.bench.scale_model import Rules, Site, plan
from tests.bench.scale_simulation import Day, simulate
from tests.unit.bench.test_scale_model import COSTS

RULES = Rules()
QUIET = Day(campaign=1.0)


def test_the_same_seed_gives_the_same_result() -> None:
    """The tables in the docs must be reproducible."""
    fleet = plan(Site(1_000_000), COSTS, RULES)

    first = simulate(fleet, COSTS, RULES, Day(), seed=1)

    assert simulate(fleet, COSTS, RULES, Day(), seed=1) == first
    assert simulate(fleet, COSTS, RULES, Day(), seed=2) != first


@pytest.mark.parametrize("online", [10_000, 1_000_000, 5_000_000])
def test_a_planned_fleet_handles_its_worst_minute(online: int) -> None:
    """Half of each core is the reserve for random peaks and an uneven load balancer."""
    fleet = plan(Site(online), COSTS, RULES)

    day = simulate(fleet, COSTS, RULES, QUIET, seed=3)

    assert day.campaign_wait_s == 0
    assert day.recovered_s < 120


def test_a_fleet_that_is_too_small_falls_behind() -> None:
    """The simulation must detect overload."""
    fleet = plan(Site(5_000_000), COSTS, replace(RULES, load=1.2, windows_most=1e9))

    day = simulate(fleet, COSTS, RULES, QUIET, seed=3)

    assert day.busiest > 1
    assert day.campaign_wait_s > 1


def test_windows_of_a_dead_bridge_reconnect_within_the_jitter() -> None:
    """The jitter limits the rate of reconnects."""
    fleet = plan(Site(1_000_000), COSTS, RULES)
    windows = fleet.site.windows / fleet.bridges.count

    day = simulate(fleet, COSTS, RULES, Day(reconnect_s=10), seed=3)

    assert day.connects_per_s == pytest.approx(windows / 10, rel=0.25)


def test_a_longer_failover_means_a_longer_wait() -> None:
    """Messages of the meantime are handled after the failover."""
    fleet = plan(Site(2_000_000), COSTS, RULES)

    short = simulate(fleet, COSTS, RULES, Day(failover_s=5), seed=3)
    long = simulate(fleet, COSTS, RULES, Day(failover_s=60), seed=3)

    assert long.recovered_s > short.recovered_s
