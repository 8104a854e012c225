"""
Compare with an older commit: python -m tests.bench.older CHECKOUT [--rounds 40]

Measures what a plain message costs to store and to emit (`plain_costs.py`) by the code of
CHECKOUT, a folder made by `git worktree add CHECKOUT COMMIT`, and by the current code. A round
is one process of each, in changing order. The median of the ratios of the rounds counts. With
`redis:`, only the processor time of the bridge is measured.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
WORKS = {
    "emit, one message for each of 100 users": ("emit", "1"),
    "emit, ten messages for each of 10 users": ("emit", "10"),
    "append, `memory:`": ("memory",),
    "append, `sqlite:`": ("sqlite",),
    "append, `redis:`": ("redis",),
}


def run(checkout: Path, work: tuple[str, ...]) -> float:
    """Return what `work` costs with the code of a checkout, in microseconds."""
    if work == ("redis",):
        with (
            TemporaryDirectory() as folder,
            RedisServer.started(Path(folder), is_durable=False) as server,
        ):
            return run(checkout, ("redis", server.url))
    # -P: this folder is no place to import from.
    done = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("plain_costs.py")), *work],
        env=os.environ | {"PYTHONPATH": str(checkout)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(done.stdout)


def compare(checkout: Path, work: tuple[str, ...], rounds: int) -> list[float]:
    """Return the median costs before and now, and the median of the ratios."""
    before: list[float] = []
    now: list[float] = []
    for number in range(rounds):
        sides = [(checkout, before), (ROOT, now)]
        for place, costs in sides if number % 2 else reversed(sides):
            costs.append(run(place, work))
    ratios = [new / old for old, new in zip(before, now, strict=True)]
    return [statistics.median(each) for each in (before, now, ratios)]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    print("| µs a plain message | before | now | ratio |\n|---|---|---|---|")
    for name, work in WORKS.items():
        old, new, ratio = compare(options.checkout, work, options.rounds)
        print(f"| {name} | {old:.2f} | {new:.2f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
