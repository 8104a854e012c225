"""
A planned fleet on its worst day, second by second, by chance with a seed.

The plan (scale_model) speaks of averages. Here messages come by chance, windows lie
unevenly on the bridges, a campaign multiplies the traffic for a while, and a bridge dies:
its windows come back to the others within the pages' own jitter, its shards stand still
until the broker hands them to the next consumer. What has to be done and cannot be done
in its second waits for the next one, and how long it waits is what comes out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from random import Random
from typing import Final

from tests.bench.scale_model import Costs, Fleet, Rules

_CORE_US: Final = 1e6


@dataclass(frozen=True, slots=True)
class Day:
    """
    What happens. Seconds from the beginning.

    Attributes:
        seconds: How long it goes on.
        campaign_s: When everybody gets more, for `campaign_lasts_s`.
        campaign: How many times the traffic of the plan's worst minute.
        death_s: When one of the bridges dies.
        failover_s: How long its shards stand still.
        come_back_s: Within how long its windows have come back.

    """

    seconds: int = 240
    campaign_s: int = 30
    campaign_lasts_s: int = 20
    campaign: float = 1.5
    death_s: int = 120
    failover_s: int = 5
    come_back_s: int = 30


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    How the day went.

    Attributes:
        busiest: The highest load of any bridge's core in any second, 1 = all of it.
        campaign_wait_s: The longest that work waited at a bridge in the campaign.
        death_wait_s: The same from the bridge's death on, without the fail-over itself.
        recovered_s: How long after the death nothing waited any more.
        connects_per_s: The most windows that came back in one second.

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
    fleet: Fleet, costs: Costs, rules: Rules, day: Day, *, seed: int
) -> Outcome:
    """Let `day` happen to `fleet`; the same for the same seed."""
    chance = Random(seed)  # noqa: S311 - the same each time
    bridges = _share_out(fleet, chance)
    campaign_wait_s = death_wait_s = busiest = most_connects = 0.0
    held = late_us = 0.0  # messages of shards that stand still
    orphans = 0.0
    dead_shards = 0
    recovered_s = 0
    for second in range(day.seconds):
        if second == day.death_s:
            dead = bridges.pop(chance.randrange(len(bridges)))
            orphans, dead_shards = dead.windows, dead.shards
        is_campaign = 0 <= second - day.campaign_s < day.campaign_lasts_s
        messages = _drawn(
            fleet.site.messages_per_s * (day.campaign if is_campaign else 1.0), chance
        )
        stands_still = 0 <= second - day.death_s < day.failover_s
        if stands_still:
            share = dead_shards / fleet.shards.count
            held += messages * share
            messages *= 1 - share
        elif held:
            _hand_over(bridges, dead_shards)
            messages, held, dead_shards = messages + held, 0.0, 0
        coming = 0.0
        since = second - day.death_s
        if 0 <= since < day.come_back_s:
            coming = orphans / day.come_back_s
            most_connects = max(most_connects, coming)
        busiest = max(
            busiest, _turn(bridges, messages, coming, fleet, costs, rules, chance)
        )
        late_us = max(bridge.waiting_us for bridge in bridges)
        if second >= day.death_s:
            death_wait_s = max(death_wait_s, late_us / _CORE_US)
            if late_us or stands_still:
                recovered_s = second - day.death_s + 1
        else:
            campaign_wait_s = max(campaign_wait_s, late_us / _CORE_US)
    return Outcome(busiest, campaign_wait_s, death_wait_s, recovered_s, most_connects)


def _share_out(fleet: Fleet, chance: Random) -> list[_Bridge]:
    """Spread windows as a load balancer does that counts roughly, and shards in turn."""
    count = fleet.bridges.count
    weights = [chance.gauss(1.0, 0.05) for _ in range(count)]
    per_weight = fleet.site.windows / sum(weights)
    return [
        _Bridge(
            weight * per_weight,
            fleet.shards.count // count + (number < fleet.shards.count % count),
        )
        for number, weight in enumerate(weights)
    ]


def _hand_over(bridges: Sequence[_Bridge], shards: int) -> None:
    """Give shards to those that have fewest."""
    for _ in range(shards):
        min(bridges, key=lambda bridge: bridge.shards).shards += 1


def _turn(
    bridges: Sequence[_Bridge],
    messages: float,
    coming: float,
    fleet: Fleet,
    costs: Costs,
    rules: Rules,
    chance: Random,
) -> float:
    """Let one second go by at each bridge; return the load of the busiest."""
    site = fleet.site
    windows = sum(bridge.windows for bridge in bridges)
    shards = max(1, sum(bridge.shards for bridge in bridges))
    connects = site.connects_per_s / len(bridges) + coming / len(bridges)
    busiest = 0.0
    for bridge in bridges:
        share = bridge.windows / windows
        reached = _drawn(messages * share, chance)
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


def _drawn(mean: float, chance: Random) -> float:
    """Draw how many of something came by chance (Poisson; normal from 30 on is the same)."""
    if mean <= 0:
        return 0.0
    return max(0.0, mean + sqrt(mean) * chance.gauss(0.0, 1.0))
