"""The figures of a run, and their medians, ratios and targets."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median, minimum and maximum of some values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarize `values`, which must not be empty."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Target:
    """
    A target for the ratio of two figures of one round, or for a figure itself.

    Attributes:
        text: The title in the report.
        server: The server of the numerator.
        work: The workload of the numerator.
        figure: The figure of the numerator.
        at_most: The target.
        against: The server of the denominator; ``None`` for a target of the figure itself.
        base: Workload and figure of the denominator, if they differ.

    """

    text: str
    server: str
    work: str
    figure: str
    at_most: float
    against: str | None
    base: tuple[str, str] | None = None


def _against_go() -> Iterable[Target]:
    for server, saturated, steady in (("memory", 0.8, 1.0), ("sqlite", 1.0, 1.25)):
        for text, work, at_most in (
            ("200 windows, saturated", "saturated", saturated),
            ("200 windows, 3,000 a second", "steady", steady),
            ("one message → 1,000 windows", "fanout", 0.7),
        ):
            yield Target(text, server, work, "us", at_most, "go")
    text = "memory of an idle window"
    yield Target(text, "memory", "crowd", "window_kib", 0.2, "go")


def _against_node() -> Iterable[Target]:
    for server, saturated, crowd in (("memory", 0.45, 0.9), ("sqlite", 0.60, 1.1)):
        for text, work, at_most in (
            ("200 windows, saturated", "saturated", saturated),
            ("200 windows, 3,000 a second", "steady", 1.0),
            ("10,000 windows, 2,000 a second", "crowd", crowd),
            ("one message → 1,000 windows", "fanout", 0.65),
        ):
            yield Target(text, server, work, "us", at_most, "node")
    for text, figure, at_most in (
        ("connect + auth", "connect_us", 0.4),
        ("reconnect with the same token", "reconnect_us", 0.25),
        ("memory of an idle window", "window_kib", 0.3),
    ):
        yield Target(text, "memory", "crowd", figure, at_most, "node")
    text = "saturated, with a receipt for each message"
    for server, at_most in (("memory", 1.0), ("sqlite", 1.25)):
        yield Target(text, server, "receipts", "us", at_most, "node")
    text = "request of a page to a worker and back"
    yield Target(text, "memory", "requests", "us", 1.0, "node")


def _other_targets() -> Iterable[Target]:
    text = "one message → 1,000 windows"
    for server, floor in (("memory", 1.35), ("sqlite", 1.45)):
        yield Target(text, server, "fanout", "us", floor, "floor")
    yield Target("200 windows, saturated", "memory", "saturated", "us", 0.08, "python")
    for server in ("memory", "sqlite"):
        text, base = "saturated, with receipts / without", ("saturated", "us")
        yield Target(text, server, "receipts", "us", 1.6, server, base)
        for figure, at_most_ms in (("p50_ms", 10.0), ("p99_ms", 25.0)):
            text = f"latency at 3,000 a second, {figure[:3]}, ms"
            yield Target(text, server, "steady", figure, at_most_ms, None)
        for figure, text in (("us", "2,000 a second"), ("saturated_us", "saturated")):
            title = f"growth: 10,000 windows / 100, {text}"
            base = ("few", figure)
            yield Target(title, server, "crowd", figure, 1.3, server, base)


TARGETS: Final = (*_against_node(), *_against_go(), *_other_targets())


@dataclass(frozen=True, slots=True)
class Ratio:
    """A target, and the ratio that was measured."""

    target: Target
    reached: Spread

    @property
    def is_reached(self) -> bool:
        """Whether the median is within the target."""
        return self.reached.median <= self.target.at_most


@dataclass
class Results:
    """
    All figures of a run.

    Attributes:
        machine: Hardware and software versions.
        scale: The size of the workloads.
        rounds: For each round: workload → server → figures.

    """

    machine: Mapping[str, str]
    scale: Mapping[str, float]
    rounds: list[dict[str, dict[str, Figures]]] = field(default_factory=list)

    def note(self, round_: int, work: str, server: str, figures: Figures) -> None:
        """Keep what one server did in one work of one round."""
        while len(self.rounds) <= round_:
            self.rounds.append({})
        self.rounds[round_].setdefault(work, {})[server] = figures

    def forget(self, round_: int) -> None:
        """Drop a round that is not whole, and what follows."""
        del self.rounds[round_:]

    def spread(self, work: str, server: str, figure: str) -> Spread | None:
        """Summarize a figure over the rounds; ``None`` if it was not measured."""
        values = [
            found
            for each in self.rounds
            if (found := _figure(each, work, server, figure)) is not None
        ]
        return Spread.of(values) if values else None

    def ratios(self) -> Iterable[Ratio]:
        """Yield the ratio of each target for which both figures were measured."""
        for target in TARGETS:
            base_work, base_figure = target.base or (target.work, target.figure)
            values = []
            for each in self.rounds:
                above = _figure(each, target.work, target.server, target.figure)
                below: float | None = 1.0
                if target.against is not None:
                    below = _figure(each, base_work, target.against, base_figure)
                if above is not None and below:
                    values.append(above / below)
            if values:
                yield Ratio(target, Spread.of(values))

    def as_json(self) -> dict[str, Any]:
        """Return everything, with the ratios, as JSON values."""
        return {
            "machine": dict(self.machine),
            "scale": dict(self.scale),
            "rounds": self.rounds,
            "ratios": [
                asdict(ratio) | {"is_reached": ratio.is_reached}
                for ratio in self.ratios()
            ],
        }


def _figure(
    round_: Mapping[str, Mapping[str, Figures]], work: str, server: str, figure: str
) -> float | None:
    return round_.get(work, {}).get(server, {}).get(figure)
