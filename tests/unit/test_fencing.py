"""Fencing, with fakes: what is asked of whom, in which order, and how often."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from bridge.core.fence import Fence
from bridge.core.message import Message
from bridge.errors import (
    BrokerUnavailableError,
    OwnershipLostError,
    StoreUnavailableError,
)
from bridge.fencing import Fencing
from bridge.metrics import Metrics

MESSAGES = [Message("ann", "message", b"1", 1000.0)]


@dataclass
class FakeConsumer:
    """Answers, or raises what `failures` holds first."""

    queue: str
    journal: list[str]
    failures: list[Exception] = field(default_factory=list)
    fence: Fence | None = None

    async def confirm(self) -> None:
        """Write down that it was asked."""
        self.journal.append(f"confirm {self.queue}")
        if self.failures:
            raise self.failures.pop(0)


@dataclass
class FakeBatch:
    """Nothing but where it is from."""

    consumers: Sequence[FakeConsumer]


@dataclass
class FakeIntake:
    """Remembers what was given up."""

    given_up: list[str] = field(default_factory=list)

    def give_up(self, batch: FakeBatch, problem: str) -> None:
        """Remember it."""
        del batch
        self.given_up.append(problem)


@dataclass
class FakeInbox:
    """Gives out 1, 2, 3; raises what `failures` holds first."""

    journal: list[str]
    failures: list[Exception] = field(default_factory=list)
    token: int = 0

    async def claim(self, queue: str) -> Fence:
        """Count on."""
        self.journal.append(f"claim {queue}")
        self.token += 1
        return Fence(queue, self.token)

    async def append(
        self, messages: Sequence[Message], *, fences: Sequence[Fence]
    ) -> list[int | None]:
        """Store nothing."""
        self.journal.append(f"append {[tuple(fence) for fence in fences]}")
        if self.failures:
            raise self.failures.pop(0)
        return [1 for _ in messages]


class House:
    """Fencing and the fakes around it."""

    def __init__(self) -> None:
        self.journal: list[str] = []
        self.intake = FakeIntake()
        self.inbox = FakeInbox(self.journal)
        self.metrics = Metrics()
        self.fencing = Fencing(self.intake, self.inbox, metrics=self.metrics)

    def consumer(self, queue: str, *failures: Exception) -> FakeConsumer:
        """Begin to consume."""
        return FakeConsumer(queue, self.journal, list(failures))


@pytest.fixture
def house() -> House:
    return House()


async def test_a_consumer_claims_and_is_confirmed_once_before_its_first_append(
    house: House,
) -> None:
    """In this order, or a claim could be late; once, or each batch would pay for it."""
    batch = FakeBatch([house.consumer("q")])

    assert await house.fencing.append(batch, MESSAGES) == [1]
    assert await house.fencing.append(batch, MESSAGES) == [1]

    assert house.journal == [
        "claim q",
        "confirm q",
        "append [('q', 1)]",
        "append [('q', 1)]",
    ]


async def test_a_batch_of_several_queues_comes_under_the_token_of_each(
    house: House,
) -> None:
    """It is one step in the store, whoever it is from."""
    first, second = house.consumer("q"), house.consumer("r")
    await house.fencing.append(FakeBatch([first]), MESSAGES)
    await house.fencing.append(FakeBatch([second, first]), MESSAGES)

    assert house.journal[3:] == [
        "claim r",
        "confirm r",
        "append [('r', 2), ('q', 1)]",
    ]


async def test_a_token_that_the_broker_did_not_confirm_is_never_used(
    house: House,
) -> None:
    """It may have been given out after that of whoever has the queue now."""
    consumer = house.consumer("q", BrokerUnavailableError("ask", "it is gone"))
    batch = FakeBatch([consumer])

    with pytest.raises(BrokerUnavailableError):
        await house.fencing.append(batch, MESSAGES)
    assert house.journal == ["claim q", "confirm q"]
    await house.fencing.append(batch, MESSAGES)

    assert house.journal[2:] == ["claim q", "confirm q", "append [('q', 2)]"]


async def test_a_batch_that_came_too_late_ends_its_session(house: House) -> None:
    """All else that the session has in hand is too late as well; and it is counted."""
    house.inbox.failures.append(OwnershipLostError("q"))
    batch = FakeBatch([house.consumer("q")])

    with pytest.raises(OwnershipLostError):
        await house.fencing.append(batch, MESSAGES)

    assert house.intake.given_up == [str(OwnershipLostError("q"))]
    name = "bridge_handed_over_batches_total"
    assert house.metrics.registry.get_sample_value(name) == 1


async def test_a_store_that_is_away_costs_neither_token_nor_session(
    house: House,
) -> None:
    """The pump tries again, under the same token."""
    house.inbox.failures.append(StoreUnavailableError("redis:", "away"))
    batch = FakeBatch([house.consumer("q")])

    with pytest.raises(StoreUnavailableError):
        await house.fencing.append(batch, MESSAGES)
    await house.fencing.append(batch, MESSAGES)

    assert house.journal[2:] == ["append [('q', 1)]"] * 2
    assert house.intake.given_up == []
