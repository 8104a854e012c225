"""The number of shards that a bridge releases."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest

from bridge.amqp.connection import BrokerConnection
from bridge.amqp.consume.consumer import Consumer
from bridge.amqp.consume.session import IntakeSession
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.shards.assignment import ShardAssignment, excess
from bridge.amqp.shards.layout import ShardPlan
from bridge.core.broker_names import BrokerNames


@dataclass
class StubConsumer:
    """The state of a consumer that the assignment reads."""

    is_single_active: bool = True
    is_draining: bool = False
    in_flight: int = 0
    queue: str = "q"
    released: int = 0

    def drain(self) -> None:
        """Count the release, and become active again."""
        self.released += 1


@dataclass
class StubSession:
    """A session that gets back every shard that it releases."""

    consumers: list[StubConsumer] = field(
        default_factory=lambda: [StubConsumer(), StubConsumer()]
    )


class StubChannel:
    """A channel of a broker that counts a second bridge, which is unreachable."""

    async def basic_consume(self, *_: object) -> None:
        """Do nothing."""

    async def queue_declare(self, *_: object, **__: object) -> SimpleNamespace:
        """Report two consumers."""
        return SimpleNamespace(consumer_count=2)


class StubConnection:
    """A connection with one stub channel."""

    async def open_channel(self, *, confirms: bool) -> StubChannel:
        """Open the channel."""
        assert not confirms
        return StubChannel()


@pytest.mark.parametrize(
    ("active", "shards", "bridges", "released"),
    [
        (8, 8, 1, 0),
        (8, 8, 2, 4),
        (8, 8, 3, 5),  # the share is 3
        (3, 8, 3, 0),
        (2, 2, 5, 1),
        (8, 8, 0, 0),  # the broker has not counted this bridge yet
    ],
)
def test_shards_above_the_share_are_released(
    active: int, shards: int, bridges: int, released: int
) -> None:
    """The share is rounded up, so that all shares together cover all shards."""
    consumers = [
        StubConsumer(is_single_active=number < active) for number in range(shards)
    ]

    above = excess(cast("list[Consumer]", consumers), shards=shards, bridges=bridges)

    assert len(above) == released


def test_the_least_busy_consumers_are_released_once() -> None:
    """A release has to wait for deliveries in flight, and one that leaves is released."""
    consumers = [
        StubConsumer(in_flight=9),
        StubConsumer(in_flight=1),
        StubConsumer(is_draining=True),
    ]

    above = excess(cast("list[Consumer]", consumers), shards=2, bridges=2)

    assert [one.in_flight for one in above] == [1]


async def test_releases_stop_if_the_shards_always_come_back() -> None:
    """RabbitMQ 3.10.8 counts bridges that were connected to a node that is down."""
    session = StubSession()
    assignment = ShardAssignment(
        cast("IntakeSession", session),
        cast("BrokerConnection[FrameReader]", StubConnection()),
        ShardPlan(BrokerNames("x"), (), assignment_interval_s=0.0),
        shards=2,
    )
    running = asyncio.ensure_future(assignment.run())

    for _ in range(1000):  # many more turns of the loop than five releases take
        await asyncio.sleep(0)
    running.cancel()

    assert sum(one.released for one in session.consumers) == 5
