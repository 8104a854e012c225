"""The schedule of faults."""

from dataclasses import dataclass
from itertools import islice

from tests.faults.suite.schedule import ScheduledFault, rounds


@dataclass(frozen=True)
class FaultStub:
    """A fault with the properties that the schedule needs."""

    subjects: frozenset[str]
    weight: int = 1


KINDS = [
    FaultStub(frozenset({"bridge"}), 3),
    FaultStub(frozenset({"bridge", "store"})),
    FaultStub(frozenset({"store"}), 2),
    FaultStub(frozenset({"broker"})),
    FaultStub(frozenset({"pages"}), 2),
]


def first_rounds(seed: int, number: int = 50) -> list[list[ScheduledFault]]:
    return list(islice(rounds(KINDS, seed=seed, is_short=False), number))


def test_the_same_seed_schedules_the_same_faults_at_the_same_times() -> None:
    """A run that fails can be repeated."""
    assert first_rounds(7) == first_rounds(7)
    assert first_rounds(7) != first_rounds(8)


def test_faults_of_one_round_never_share_a_subject() -> None:
    """One fault must not kill a part that another is starting."""
    for scheduled in first_rounds(1):
        subjects = [s for each in scheduled for s in KINDS[each.fault].subjects]
        assert len(subjects) == len(set(subjects))


def test_every_kind_occurs_as_often_as_its_weight() -> None:
    """The random generator decides when a fault occurs, not whether."""
    size = sum(kind.weight for kind in KINDS)
    drawn = [each.fault for scheduled in first_rounds(3) for each in scheduled][:size]

    assert [drawn.count(number) for number in range(len(KINDS))] == [3, 1, 2, 1, 2]


def test_the_short_form_schedules_each_kind_once() -> None:
    """`make test` runs the short form."""
    drawn = list(rounds(KINDS, seed=1, is_short=True))

    assert sorted(each.fault for scheduled in drawn for each in scheduled) == [
        0,
        1,
        2,
        3,
        4,
    ]
