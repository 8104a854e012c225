"""What a bridge has to give away."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import aiormq
import pytest

from bridge.amqp.consume.consumer import ConsumerSession
from bridge.amqp.consume.session import IntakeSession
from bridge.amqp.shards import assignment as spreading
from bridge.amqp.shards.assignment import Spreading, excess
from tests.conftest import eventually


@dataclass
class Consumer:
    """As far as it is looked at."""

    is_active: bool = True
    is_leaving: bool = False
    in_flight: int = 0
    queue: str = "q"


@dataclass
class Session:
    """A bridge whose shards all come back, because nobody else is there."""

    consumers: list[Consumer] = field(default_factory=lambda: [Consumer(), Consumer()])
    given: int = 0

    async def give_away(self, _: Consumer) -> None:
        """Count it."""
        self.given += 1

    async def consume(self, _: str) -> None:
        """Get it back."""


class Channel:
    """Of a broker that counts a bridge that is not there."""

    async def basic_consume(self, *_: object) -> None:
        """Do nothing."""

    async def queue_declare(self, *_: object, **__: object) -> SimpleNamespace:
        """Say that there are two."""
        return SimpleNamespace(consumer_count=2)


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


async def test_what_comes_back_each_time_is_not_given_away_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker counts bridges that were connected to a node that is down (3.10.8)."""
    looks = 0

    def count() -> float:
        nonlocal looks
        looks += 1
        return 0.5

    monkeypatch.setattr(spreading, "_LOOK_EACH_S", 0.0)
    monkeypatch.setattr(spreading, "_AWAY_S", 0.0)
    monkeypatch.setattr("bridge.amqp.shards.assignment.random.random", count)
    session = Session()
    task = asyncio.ensure_future(
        Spreading(
            cast("IntakeSession", session),
            cast("aiormq.Channel", Channel()),
            queue="q",
            shards=2,
            timeout_s=10,
        ).run()
    )

    await eventually(lambda: looks > 100)
    task.cancel()

    assert session.given == 5
