"""Chooses faults and their times from a seed; the same seed repeats the sequence. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Final, Protocol

_SHARES: Final = ((1, 0.3), (2, 0.4), (3, 0.3))
_OFFSET_AT_MOST_S: Final = 2.0


class Schedulable(Protocol):
    """The properties of a fault that the schedule needs."""

    @property
    def subjects(self) -> frozenset[str]:
        """The parts it affects."""

    @property
    def weight(self) -> int:
        """How often it occurs in a cycle."""


@dataclass(frozen=True, slots=True)
class ScheduledFault:
    """
    One fault of a round.

    Attributes:
        fault: Its index in the list of faults.
        offset_s: When it starts, from the start of the round.
        seed: Seeds its random generator.

    """

    fault: int
    offset_s: float
    seed: int


def rounds(
    kinds: Sequence[Schedulable], *, seed: int, is_short: bool, cycles: int = 1
) -> Iterator[list[ScheduledFault]]:
    """
    Yield rounds of concurrent faults; endless, or `cycles` cycles if `is_short`.

    Faults are drawn from a shuffled cycle that holds each kind `weight` times, so that all
    kinds occur. Faults that share a subject are never in the same round.
    """
    rng = Random(seed)  # noqa: S311 - repeatable, not for secrets
    for number in count():
        if is_short and number == cycles:
            return
        cycle = [
            index
            for index, kind in enumerate(kinds)
            for _ in range(1 if is_short else kind.weight)
        ]
        rng.shuffle(cycle)
        while cycle:
            yield _draw_round(kinds, cycle, rng, is_short=is_short)


def _draw_round(
    kinds: Sequence[Schedulable], cycle: list[int], rng: Random, *, is_short: bool
) -> list[ScheduledFault]:
    sizes, weights = zip(*_SHARES, strict=True)
    size = len(cycle) if is_short else rng.choices(sizes, weights)[0]
    taken: set[str] = set()
    drawn: list[ScheduledFault] = []
    for number in tuple(cycle):
        if len(drawn) == size:
            break
        subjects = kinds[number].subjects
        if subjects & taken:
            continue
        taken |= subjects
        cycle.remove(number)
        offset_s = rng.random() * _OFFSET_AT_MOST_S if drawn else 0.0
        drawn.append(ScheduledFault(number, round(offset_s, 3), rng.getrandbits(32)))
    return drawn
