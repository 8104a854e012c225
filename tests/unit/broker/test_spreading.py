"""What a bridge has to give away."""

from dataclasses import dataclass
from typing import cast

import pytest

from bridge.broker.consumer import ConsumerSession
from bridge.broker.spreading import excess


@dataclass
class Consumer:
    """As far as it is looked at."""

    is_active: bool = True
    is_leaving: bool = False
    in_flight: int = 0


@pytest.mark.parametrize(
    ("active", "shards", "bridges", "given"),
    [
        (8, 8, 1, 0),
        (8, 8, 2, 4),
        (8, 8, 3, 5),  # the share is 3
        (3, 8, 3, 0),
        (2, 2, 5, 1),
        (8, 8, 0, 0),  # the broker has not counted us yet
    ],
)
def test_what_is_over_the_share_is_given_away(
    active: int, shards: int, bridges: int, given: int
) -> None:
    """Rounded up, so that all shares together always hold all shards."""
    consumers = [Consumer(is_active=number < active) for number in range(shards)]

    away = excess(
        cast("list[ConsumerSession]", consumers), shards=shards, bridges=bridges
    )

    assert len(away) == given


def test_the_least_busy_are_given_away_and_none_twice() -> None:
    """What is in flight has to be settled first; one that leaves is given already."""
    consumers = [
        Consumer(in_flight=9),
        Consumer(in_flight=1),
        Consumer(is_leaving=True),
    ]

    away = excess(cast("list[ConsumerSession]", consumers), shards=2, bridges=2)

    assert [one.in_flight for one in away] == [1]
