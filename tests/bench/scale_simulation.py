"""
A simulation of a planned fleet on its worst day, second by second, with a random seed.

The plan (scale_model) uses averages. In the simulation messages arrive randomly, windows
are distributed unevenly, a campaign multiplies the traffic for a while, and a bridge dies.
Its windows reconnect to the other bridges within the jitter of the pages; its shards are
not consumed until the broker activates the next consumer. Work that does not fit into its
second waits for the next one. The result is how long it waits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from random import Random
from typing import Final

from tests.bench.scale_model import Costs, PlannedFleet, Rules

_CORE_US: Final = 1e6


@dataclass(frozen=True, slots=True)
class Day:
    """
    The events of a day, in seconds from its start.

    Attributes:
        seconds: The duration of the simulation.
        campaign_s: The start of the campaign, which lasts `campaign_lasts_s`.
        campaign: Its traffic, relative to the worst minute of the plan.
        death_s: When one of the bridges dies.
        failover_s: How long its shards are not consumed.
        reconnect_s: The time within which its windows reconnect.

    """

    seconds: int = 240
    campaign_s: int = 30
    campaign_lasts_s: int = 20
    campaign: float = 1.5
    death_s: int = 120
    failover_s: int = 5
    reconnect_s: int = 30


@dataclass(frozen=True, slots=True)
class DayResult:
    """
    The result of a simulated day.

    Attributes:
        busiest: The highest load of any bridge's core in any second; 1 is a full core.
        campaign_wait_s: The longest wait of work at a bridge, until the death.
        death_wait_s: The longest wait after the death, without the failover itself.
        recovered_s: The seconds after the death until no work waited.
        connects_per_s: The most windows that reconnected in one second.

    """

    busiest: float
    campaign_wait_s: float
    death_wait_s: float
    recovered_s: int
    connects_per_s: float


@dataclass
class _Bridge:
    windows: float
    shards: int
    waiting_us: float = 0.0


def simulate(
    fleet: PlannedFleet, costs: Costs, rules: Rules, day: Day, *, seed: int
) -> DayResult:
    """Simulate `day` on `fleet`; deterministic for a seed."""
    rng = Random(seed)  # noqa: S311 - the same each time
    bridges = _distribute(fleet, rng)
    campaign_wait_s = death_wait_s = busiest = most_connects = 0.0
    held = late_us = 0.0  # messages of shards without a consumer
    orphans = 0.0
    dead_shards = 0
    recovered_s = 0
    for second in range(day.seconds):
        if second == day.death_s:
            dead = bridges.pop(rng.randrange(len(bridges)))
            orphans, dead_shards = dead.windows, dead.shards
        is_campaign = 0 <= second - day.campaign_s < day.campaign_lasts_s
        messages = _random_count(
            fleet.site.messages_per_s * (day.campaign if is_campaign else 1.0), rng
        )
        is_failing_over = 0 <= second - day.death_s < day.failover_s
        if is_failing_over:
            share = dead_shards / fleet.shards.count
            held += messages * share
            messages *= 1 - share
        elif held:
            _hand_over(bridges, dead_shards)
            messages, held, dead_shards = messages + held, 0.0, 0
        coming = 0.0
        since = second - day.death_s
        if 0 <= since < day.reconnect_s:
            coming = orphans / day.reconnect_s
            most_connects = max(most_connects, coming)
        busiest = max(
            busiest,
            _simulate_second(bridges, messages, coming, fleet, costs, rules, rng),
        )
        late_us = max(bridge.waiting_us for bridge in bridges)
        if second >= day.death_s:
            death_wait_s = max(death_wait_s, late_us / _CORE_US)
            if late_us or is_failing_over:
                recovered_s = second - day.death_s + 1
        else:
            campaign_wait_s = max(campaign_wait_s, late_us / _CORE_US)
    return DayResult(busiest, campaign_wait_s, death_wait_s, recovered_s, most_connects)


def _distribute(fleet: PlannedFleet, rng: Random) -> list[_Bridge]:
    """Distribute windows unevenly, like a load balancer, and shards evenly."""
    count = fleet.bridges.count
    weights = [rng.gauss(1.0, 0.05) for _ in range(count)]
    per_weight = fleet.site.windows / sum(weights)
    return [
        _Bridge(
            weight * per_weight,
            fleet.shards.count // count + (number < fleet.shards.count % count),
        )
        for number, weight in enumerate(weights)
    ]


def _hand_over(bridges: Sequence[_Bridge], shards: int) -> None:
    """Assign shards to the bridges with the fewest."""
    for _ in range(shards):
        min(bridges, key=lambda bridge: bridge.shards).shards += 1


def _simulate_second(
    bridges: Sequence[_Bridge],
    messages: float,
    coming: float,
    fleet: PlannedFleet,
    costs: Costs,
    rules: Rules,
    rng: Random,
) -> float:
    """Simulate one second of all bridges; return the load of the busiest."""
    site = fleet.site
    windows = sum(bridge.windows for bridge in bridges)
    shards = max(1, sum(bridge.shards for bridge in bridges))
    connects = site.connects_per_s / len(bridges) + coming / len(bridges)
    busiest = 0.0
    for bridge in bridges:
        share = bridge.windows / windows
        reached = _random_count(messages * share, rng)
        work_us = (
            messages * bridge.shards / shards * costs.append_us
            + reached * site.windows_each * costs.write_us
            + bridge.windows / rules.ping_s * costs.ping_us
            + connects * costs.connect_us
        )
        busiest = max(busiest, work_us / _CORE_US)
        bridge.waiting_us = max(0.0, bridge.waiting_us + work_us - _CORE_US)
        bridge.windows += coming / len(bridges)
    return busiest


def _random_count(mean: float, rng: Random) -> float:
    """Draw a number of events (Poisson, approximated by a normal distribution)."""
    if mean <= 0:
        return 0.0
    return max(0.0, mean + sqrt(mean) * rng.gauss(0.0, 1.0))
