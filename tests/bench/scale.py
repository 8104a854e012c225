"""
Size a fleet from docs/scale.json: the tables and the picture of docs/scale.md.

    python -m tests.bench.scale                      prints the tables
    python -m tests.bench.scale --report docs/scale.md       writes them, and scale.png

Costs come from `python -m tests.bench.fleet --report docs/scale.md`.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
import orjson
from matplotlib import pyplot as plt

from tests.bench.report import write_part
from tests.bench.scale_model import (
    SOURCES,
    Costs,
    Part,
    PlannedFleet,
    Rules,
    Site,
    plan,
    read_costs,
    users_of_one,
)
from tests.bench.scale_simulation import Day, simulate
from tests.bench.servers import ROOT

SIZES: Final = (10_000, 1_000_000, 100_000_000)
MEASURED: Final = ROOT / "docs" / "scale.json"
_SEED: Final = 1
_GIB: Final = 2**30


def load_costs(path: Path = MEASURED) -> Costs:
    """Read the latest measurements."""
    return read_costs(orjson.loads(path.read_bytes()))


def table_lines(costs: Costs, rules: Rules) -> Iterable[str]:
    """Yield the table of fleets by the number of users."""
    fleets = [plan(Site(size), costs, rules) for size in SIZES]
    yield "| users online |" + "".join(f" {size:,} |" for size in SIZES)
    yield "|---|" + "---|" * len(SIZES)
    for title, cells in _rows(fleets, costs, rules):
        yield f"| {title} |" + "".join(f" {cell} |" for cell in cells)


def _rows(
    fleets: Sequence[PlannedFleet], costs: Costs, rules: Rules
) -> Iterable[tuple[str, Sequence[str]]]:
    yield "windows", [f"{each.site.windows:,.0f}" for each in fleets]
    yield (
        "messages a second, worst minute",
        [f"{each.site.messages_per_s:,.0f}" for each in fleets],
    )
    yield (
        "deliveries a second",
        [f"{each.site.deliveries_per_s:,.0f}" for each in fleets],
    )
    yield "**bridges** (processes)", [_part(each.bridges) for each in fleets]
    yield "cores that they use", [_number(each.bridge_cores) for each in fleets]
    yield "their memory, GiB", [_number(each.bridge_bytes / _GIB) for each in fleets]
    yield (
        "**Redis** shards, each with its replica",
        [_part(each.stores) for each in fleets],
    )
    yield (
        "cores that they use, replicas aside",
        [_number(each.store_cores) for each in fleets],
    )
    yield (
        "their memory, replicas aside, GiB",
        [_number(each.store_bytes / _GIB) for each in fleets],
    )
    yield (
        "**RabbitMQ** shards (`BRIDGE_SHARDS`)",
        [_part(each.shards) for each in fleets],
    )
    yield (
        "cores that it uses, on three nodes",
        [_number(each.broker_cores) for each in fleets],
    )
    yield "**load balancers**", [_part(each.balancers) for each in fleets]
    yield "network to the pages, Gbit/s", [_number(each.out_gbit) for each in fleets]
    yield "network inside, Gbit/s", [_number(each.inside_gbit) for each in fleets]
    days = [simulate(each, costs, rules, Day(), seed=_SEED) for each in fleets]
    yield (
        "simulated: the busiest bridge, of its core",
        [f"{day.busiest:.0%}" for day in days],
    )
    yield (
        "— the longest wait in the campaign, s",
        [f"{day.campaign_wait_s:.1f}" for day in days],
    )
    yield (
        "— the longest wait after a bridge died, s",
        [f"{day.death_wait_s:.1f}" for day in days],
    )
    yield "— back to normal after, s", [f"{day.recovered_s}" for day in days]
    yield (
        "— connects a second while its windows come back",
        [f"{day.connects_per_s:,.0f}" for day in days],
    )


def limit_lines(costs: Costs, rules: Rules) -> Iterable[str]:
    """Yield the table of the users that one of each part supports."""
    yield "| part | first limit | users online at this limit |"
    yield "|---|---|---|"
    limits = users_of_one(costs, rules)
    for name, number in limits.items():
        part, _, limit = name.partition(": ")
        yield f"| {part} | {limit} | {_rounded(number):,} |"


def cost_lines(costs: Costs) -> Iterable[str]:
    """Yield the table of the model's inputs, and where they were measured."""
    yield "| cost | figure | measured as |"
    yield "|---|---|---|"
    for name, (work, setup, figure, _) in SOURCES.items():
        value = getattr(costs, name)
        words, _, unit = name.rpartition("_")
        if words.endswith("_per"):
            words, unit = words.removesuffix("_per"), "a second"
        unit = {"us": "µs"}.get(unit, unit)
        if unit == "bytes" and value > 2**20:
            value, unit = value / 2**20, "MiB"
        yield (
            f"| {words.replace('_', ' ')} | {value:,.1f} {unit} "
            f"| `{work}`, {setup}: `{figure}` |"
        )


def _part(part: Part) -> str:
    return f"{part.count:,} ({part.limit})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _rounded(number: int) -> int:
    """Round to two significant digits, the precision of the measurements."""
    digits = max(0, len(str(number)) - 2)
    return int(round(number, -digits))


def draw(costs: Costs, rules: Rules, path: Path) -> None:
    """Plot the number of each part by users online, to a PNG at `path`."""
    mpl.use("Agg")
    sizes = [10 ** (4 + step / 10) for step in range(41)]
    fleets = [plan(Site(int(size)), costs, rules) for size in sizes]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, counts in (
        ("bridges", [each.bridges.count for each in fleets]),
        ("Redis shards", [each.stores.count for each in fleets]),
        ("RabbitMQ shards", [each.shards.count for each in fleets]),
        ("load balancers", [each.balancers.count for each in fleets]),
    ):
        axes.step(sizes, counts, where="post", label=name)
    axes.set(xscale="log", yscale="log", xlabel="users online", ylabel="how many")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    """Print the tables, and write them into a report."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--report", type=Path, help="a page with markers")
    given = parser.parse_args()
    costs, rules = load_costs(), Rules()
    parts = {
        "inputs": list(cost_lines(costs)),
        "sizes": list(table_lines(costs, rules)),
        "limits": list(limit_lines(costs, rules)),
    }
    for part, lines in parts.items():
        print("\n".join(lines), end="\n\n")
        if given.report is not None:
            write_part(given.report, part, lines)
    if given.report is not None:
        draw(costs, rules, given.report.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
