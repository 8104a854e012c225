"""Which faults, when: from a seed alone, so that a seed repeats the same sequence. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Final, Protocol

_SHARES: Final = ((1, 0.3), (2, 0.4), (3, 0.3))
_OFFSET_AT_MOST_S: Final = 2.0


class Kind(Protocol):
    """What is scheduled."""

    @property
    def subjects(self) -> frozenset[str]:
        """What it needs for itself."""

    @property
    def weight(self) -> int:
        """How many of it a deck holds."""


@dataclass(frozen=True, slots=True)
class Turn:
    """
    One fault of a round.

    Attributes:
        fault: Its place in the list of faults.
        offset_s: When it begins, from the beginning of the round.
        seed: Of its own dice.

    """

    fault: int
    offset_s: float
    seed: int


def rounds(
    kinds: Sequence[Kind], *, seed: int, is_short: bool, decks: int = 1
) -> Iterator[list[Turn]]:
    """
    Yield rounds of faults that happen at a time, for ever; each `decks` times if `is_short`.

    Faults are dealt from a shuffled deck, so that each kind comes in its turn; those
    that share a subject never meet in a round.
    """
    dice = Random(seed)  # noqa: S311 - chance to be repeated, no secret
    for number in count():
        if is_short and number == decks:
            return
        deck = [
            place
            for place, kind in enumerate(kinds)
            for _ in range(1 if is_short else kind.weight)
        ]
        dice.shuffle(deck)
        while deck:
            yield _deal(kinds, deck, dice, is_short=is_short)


def _deal(
    kinds: Sequence[Kind], deck: list[int], dice: Random, *, is_short: bool
) -> list[Turn]:
    sizes, weights = zip(*_SHARES, strict=True)
    size = len(deck) if is_short else dice.choices(sizes, weights)[0]
    taken: set[str] = set()
    turns: list[Turn] = []
    for number in tuple(deck):
        if len(turns) == size:
            break
        subjects = kinds[number].subjects
        if subjects & taken:
            continue
        taken |= subjects
        deck.remove(number)
        offset_s = dice.random() * _OFFSET_AT_MOST_S if turns else 0.0
        turns.append(Turn(number, round(offset_s, 3), dice.getrandbits(32)))
    return turns
