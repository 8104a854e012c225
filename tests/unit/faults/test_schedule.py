"""The dealer of faults: what a seed promises."""

from dataclasses import dataclass
from itertools import islice

from tests.faults.suite.schedule import Turn, rounds


@dataclass(frozen=True)
class Kind:
    """A fault as the dealer sees it."""

    subjects: frozenset[str]
    weight: int = 1


KINDS = [
    Kind(frozenset({"bridge"}), 3),
    Kind(frozenset({"bridge", "store"})),
    Kind(frozenset({"store"}), 2),
    Kind(frozenset({"broker"})),
    Kind(frozenset({"pages"}), 2),
]


def first_rounds(seed: int, number: int = 50) -> list[list[Turn]]:
    return list(islice(rounds(KINDS, seed=seed, is_short=False), number))


def test_the_same_seed_deals_the_same_faults_at_the_same_moments() -> None:
    """A run that fails can be repeated."""
    assert first_rounds(7) == first_rounds(7)
    assert first_rounds(7) != first_rounds(8)


def test_faults_of_one_round_never_share_a_subject() -> None:
    """Nobody can kill what another one is starting."""
    for turns in first_rounds(1):
        subjects = [s for turn in turns for s in KINDS[turn.fault].subjects]
        assert len(subjects) == len(set(subjects))


def test_every_kind_comes_as_often_as_its_weight_says() -> None:
    """Chance decides when, not whether."""
    size = sum(kind.weight for kind in KINDS)
    dealt = [turn.fault for turns in first_rounds(3) for turn in turns][:size]

    assert [dealt.count(number) for number in range(len(KINDS))] == [3, 1, 2, 1, 2]


def test_the_short_form_deals_each_kind_once_and_ends() -> None:
    """For `make test`."""
    dealt = list(rounds(KINDS, seed=1, is_short=True))

    assert sorted(turn.fault for turns in dealt for turn in turns) == [0, 1, 2, 3, 4]
