"""Fencing, with fakes: which calls it makes, in which order, and how often."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import pytest

from bridge.amqp.consume.consumer import Consumer
from bridge.amqp.consume.session import Batch, IntakeSession
from bridge.core.fencing_token import FencingToken
from bridge.core.message import Message
from bridge.errors import (
    BrokerUnavailableError,
    OwnershipLostError,
    StoreUnavailableError,
)
from bridge.fencing import Fencing
from bridge.inbox.redis.store import RedisInbox
from bridge.metrics import Metrics

MESSAGES = [Message("ann", "message", b"1", 1000.0)]


@dataclass(eq=False)
class FakeConsumer:
    """Records confirmations; raises `failures` one by one."""

    queue: str
    calls: list[str]
    failures: list[Exception]
    problems: list[str] = field(default_factory=list)

    def give_up(self, problem: str) -> None:
        """Record the problem."""
        self.problems.append(problem)

    async def confirm(self) -> None:
        """Record the call."""
        self.calls.append(f"confirm {self.queue}")
        if self.failures:
            raise self.failures.pop(0)


@dataclass
class FakeInbox:
    """Issues the tokens 1, 2, 3; `append` raises `failures` one by one."""

    calls: list[str]
    failures: list[Exception] = field(default_factory=list)
    token: int = 0

    async def claim(self, queue: str) -> FencingToken:
        """Issue the next token."""
        self.calls.append(f"claim {queue}")
        self.token += 1
        return FencingToken(queue, self.token)

    async def append(
        self, messages: Sequence[Message], *, tokens: Sequence[FencingToken]
    ) -> list[int | None]:
        """Record the tokens."""
        self.calls.append(f"append {[tuple(token) for token in tokens]}")
        if self.failures:
            raise self.failures.pop(0)
        return [1 for _ in messages]


class FencingHarness:
    """Fencing and the fakes around it, which share one record of calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.inbox = FakeInbox(self.calls)
        self.metrics = Metrics()
        self.fencing = Fencing(cast("RedisInbox", self.inbox), metrics=self.metrics)

    def consumer(self, queue: str, *failures: Exception) -> Consumer:
        """Return a consumer whose confirmations raise `failures` first."""
        return cast("Consumer", FakeConsumer(queue, self.calls, list(failures)))

    async def append(self, *consumers: Consumer) -> Sequence[int | None]:
        """Append a batch that these consumers received."""
        last_tags = [(consumer, 1) for consumer in consumers]
        batch = Batch((), cast("IntakeSession", None), last_tags)
        return await self.fencing.append(batch, MESSAGES)


@pytest.fixture
def harness() -> FencingHarness:
    return FencingHarness()


async def test_a_consumer_claims_and_is_confirmed_once_before_its_first_append(
    harness: FencingHarness,
) -> None:
    """In this order, because a claim may be late; once, to keep batches cheap."""
    consumer = harness.consumer("q")

    assert await harness.append(consumer) == [1]
    assert await harness.append(consumer) == [1]

    assert harness.calls == [
        "claim q",
        "confirm q",
        "append [('q', 1)]",
        "append [('q', 1)]",
    ]


async def test_a_batch_of_several_queues_is_appended_under_the_token_of_each(
    harness: FencingHarness,
) -> None:
    """The store checks all tokens in one step."""
    first, second = harness.consumer("q"), harness.consumer("r")
    await harness.append(first)
    await harness.append(second, first)

    assert harness.calls[3:] == [
        "claim r",
        "confirm r",
        "append [('r', 2), ('q', 1)]",
    ]


async def test_a_token_that_the_broker_did_not_confirm_is_never_used(
    harness: FencingHarness,
) -> None:
    """It may have been issued after the token of the bridge that consumes the queue now."""
    consumer = harness.consumer("q", BrokerUnavailableError("ask", "it is gone"))

    with pytest.raises(BrokerUnavailableError):
        await harness.append(consumer)
    assert harness.calls == ["claim q", "confirm q"]
    await harness.append(consumer)

    assert harness.calls[2:] == ["claim q", "confirm q", "append [('q', 2)]"]


async def test_only_the_consumer_whose_queue_was_lost_gives_up(
    harness: FencingHarness,
) -> None:
    """The whole session failed, and the broker redelivered the messages of all shards."""
    harness.inbox.failures.append(OwnershipLostError("q"))
    lost, other = FakeConsumer("q", [], []), FakeConsumer("r", [], [])

    with pytest.raises(OwnershipLostError):
        await harness.append(cast("Consumer", other), cast("Consumer", lost))

    assert lost.problems == [str(OwnershipLostError("q"))]
    assert other.problems == []
    name = "bridge_handed_over_batches_total"
    assert harness.metrics.registry.get_sample_value(name) == 1


async def test_a_store_that_is_away_costs_neither_token_nor_session(
    harness: FencingHarness,
) -> None:
    """The pipeline tries again, under the same token."""
    harness.inbox.failures.append(StoreUnavailableError("redis:", "away"))
    consumer = FakeConsumer("q", harness.calls, [])

    for _ in range(2):
        with suppress(StoreUnavailableError):
            await harness.append(cast("Consumer", consumer))

    assert harness.calls[2:] == ["append [('q', 1)]"] * 2
    assert consumer.problems == []
