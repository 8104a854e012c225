"""Plots of the figures."""

from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from tests.bench.results import Results
from tests.bench.servers import SERVER_KINDS

_COLORS: Final = {
    "memory": "#1b6ca8",
    "sqlite": "#5aa9e6",
    "node": "#8a8a8a",
    "node-each": "#b5b5b5",
    "go": "#7fb069",
    "python": "#c9b458",
    "bare": "#4d4d4d",
    "floor": "#333333",
}
_COSTS: Final = (
    ("saturated", "us", "200 windows,\nsaturated"),
    ("steady", "us", "200 windows,\n3,000/s"),
    ("crowd", "us", "10,000 windows,\n2,000/s"),
    ("fanout", "us", "one message →\n1,000 windows"),
)
_WINDOW_COSTS: Final = (
    ("crowd", "connect_us", "connect + auth, µs"),
    ("crowd", "window_kib", "idle window, KiB"),
    ("steady", "p50_ms", "latency p50 at 3,000/s, ms"),
    ("steady", "p99_ms", "latency p99 at 3,000/s, ms"),
)


def draw(results: Results, path: Path) -> None:
    """Draw costs of deliveries above, and of windows and latency below, to a PNG at `path`."""
    mpl.use("Agg")
    figure, rows = plt.subplots(2, 4, figsize=(12, 6.5), layout="constrained")
    for axes, row in zip(rows, (_COSTS, _WINDOW_COSTS), strict=True):
        for each, (work, name, title) in zip(axes, row, strict=True):
            _bars(each, results, work, name, title)
    figure.suptitle(
        "CPU of the server process: µs a delivery (above); windows and latency (below). "
        "Bars: medians; lines: least to most. Logarithmic.",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(axes: Axes, results: Results, work: str, name: str, title: str) -> None:
    names = [*SERVER_KINDS, "floor"]
    spreads = {server: results.spread(work, server, name) for server in names}
    known = {server: spread for server, spread in spreads.items() if spread}
    heights = [spread.median for spread in known.values()]
    below = [spread.median - spread.least for spread in known.values()]
    above = [spread.most - spread.median for spread in known.values()]
    bars = axes.bar(
        [_label(server) for server in known],
        heights,
        color=[_COLORS[server] for server in known],
        yerr=[below, above],
        capsize=2,
        error_kw={"elinewidth": 0.8},
    )
    axes.set_yscale("log")
    axes.bar_label(bars, fmt=_figure, fontsize=8, padding=2)
    axes.set_title(title, fontsize=9)
    axes.tick_params(axis="x", labelsize=7)
    axes.tick_params(axis="y", which="both", labelleft=False, labelsize=7)
    axes.margins(y=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _label(server: str) -> str:
    return {"memory": "bridge\nmemory", "sqlite": "bridge\nsqlite"}.get(server, server)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
