"""A short run of `make bench-fleet`: two bridges on one Redis."""

from dataclasses import replace
from pathlib import Path

from tests.bench.fleet import FleetResults, Round, figure_lines, goal_lines, measure
from tests.bench.fleet_setup import FleetBenchWorld, FleetSetup
from tests.bench.fleet_workloads import WORKLOADS
from tests.bench.servers import Processors
from tests.bench.workloads import Scale
from tests.local_node import LocalNode

TINY = Scale(backlog=300, seconds=0.2, rate=500, windows=6, warm_up=10, afterwards_s=0)


async def test_the_fleet_bench_measures_each_part_separately(
    broker: LocalNode, tmp_path: Path
) -> None:
    """A benchmark that is not tested is broken when it is needed."""
    world = FleetBenchWorld(broker, tmp_path, Processors("any", "any"))
    spread = replace(WORKLOADS["spread"], setups=(FleetSetup("pair", 2),))

    results = await measure(world, [spread], TINY, rounds=1)

    figures = results.rounds[0]["spread"]["pair"]
    assert all(figures[f"saturated_{part}us"] > 0 for part in ("", "broker_", "store_"))
    assert any(
        "| spread | pair | steady_us |" in line for line in figure_lines(results)
    )


def test_goals_are_ratios_within_a_round() -> None:
    """Two runs on one machine differ more than two figures of one round."""
    rounds: list[Round] = [
        {"spread": {"pair": {"steady_us": 2.0 * n}, "alone": {"steady_us": 1.0 * n}}}
        for n in (1, 100)
    ]

    lines = list(goal_lines(FleetResults({}, {}, rounds)))

    assert len(lines) == 3
    assert "| 1.6 | 2.00 | 2.00 to 2.00 | **no** |" in lines[-1]
