"""How often the pump begins a batch: at once after a pause, and not too often."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from bridge.core.message import Delivery, Message, MessageLimits
from bridge.metrics import Metrics
from bridge.pipeline import Pump
from tests.conftest import eventually

PACE_S = 0.2


@dataclass
class Gathered:
    """All deliveries that waited."""

    deliveries: Sequence[Delivery]


@dataclass
class Door:
    """An intake that one can put deliveries into."""

    waiting: list[Delivery] = field(default_factory=list)
    acked: list[int] = field(default_factory=list)

    def put(self, tag: int) -> None:
        """Let one arrive."""
        raw = b"\x00\x00"
        self.waiting.append(Delivery(tag, False, b"x", b"ann", raw, b"1", "q"))  # noqa: FBT003 - a field

    async def next_batch(self) -> Gathered:
        """Hand over all that waits."""
        await eventually(lambda: self.waiting)
        taken, self.waiting = self.waiting, []
        return Gathered(taken)

    def is_mark(self, _: Delivery) -> bool:
        """Never one."""
        return False

    def is_current(self, batch: Gathered) -> bool:
        """It always is."""
        return bool(batch.deliveries)

    async def ack(self, batch: Gathered) -> bool:
        """Note it."""
        self.acked.append(batch.deliveries[-1].tag)
        return True


@dataclass
class Store:
    """Notes how many came together."""

    sizes: list[int] = field(default_factory=list)

    async def append(self, messages: Sequence[Message]) -> Sequence[int | None]:
        """Store."""
        self.sizes.append(len(messages))
        return [1] * len(messages)

    async def note_trial(self, _: bytes) -> int:
        """Never here."""
        raise AssertionError

    def forget_trial(self, _: bytes) -> None:
        """Never here."""
        raise AssertionError


class Nobody:
    """A publisher that is not needed."""

    async def dead_letter(self, *_: object) -> None:
        """Never here."""
        raise AssertionError

    async def retry(self, *_: object, **__: object) -> None:
        """Never here."""
        raise AssertionError


async def test_the_first_is_stored_at_once_and_those_right_behind_it_together() -> None:
    """A lone message must not wait; of many, each commit for one would be dear."""
    door, store = Door(), Store()
    pump = Pump(
        intake=door,
        inbox=store,
        publisher=Nobody(),
        limits=MessageLimits(100),
        retry_delays_s=(1.0,),
        metrics=Metrics(),
        pace_s=PACE_S,
    )
    running = asyncio.ensure_future(pump.run())
    try:
        door.put(1)
        await eventually(lambda: store.sizes == [1])
        for tag in (2, 3, 4):
            door.put(tag)
            await asyncio.sleep(0)

        await eventually(lambda: 4 in door.acked)
    finally:
        running.cancel()

    assert store.sizes == [1, 3]
