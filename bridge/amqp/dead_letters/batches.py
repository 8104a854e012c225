"""What a job on dead letters holds at a time: how many, of which users, how fast."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from bridge.core.dead_letter import Letter, Letters
from bridge.core.message import Delivery

Matches = Callable[[Letter], bool]

# Bodies that are kept between reading a letter and settling it.
_BATCH_BYTES: Final = 16 << 20
_AT_ONCE: Final = 16


class Progress(Protocol):
    """Where a job tells how far it is, and hears that it should end."""

    @property
    def is_cancelled(self) -> bool:
        """Whether nothing new should be begun."""

    def advance(
        self, *, done: int = 0, failed: int = 0, error: str | None = None
    ) -> None:
        """So many more are done, or have failed."""

    async def pause(self, seconds: float) -> None:
        """Wait, unless the job is cancelled."""


@dataclass(slots=True)
class Held:
    """A letter between being read and being settled."""

    letter_id: str
    delivery: Delivery
    is_gone: bool = False

    @property
    def tag(self) -> int:
        """The delivery tag, by which it is acked."""
        return self.delivery.tag


def gather(
    batch: list[Held], letters: Letters, matches: Matches, *, at_most: int
) -> Callable[[Delivery], bool]:
    """Return what puts letters that match into `batch` until it is full."""
    size_bytes = 0

    def take(delivery: Delivery) -> bool:
        nonlocal size_bytes
        letter = letters.read(delivery)
        if matches(letter):
            batch.append(Held(letter.id, delivery))
            size_bytes += len(delivery.body)
        return len(batch) < at_most and size_bytes < _BATCH_BYTES

    return take


def apart(batch: Sequence[Held], *, at_most: int) -> Iterator[list[Held]]:
    """Join neighbours of different users: they may overtake each other, one user's not."""
    group: list[Held] = []
    keys: set[bytes] = set()
    for held in batch:
        key = held.delivery.routing_key
        if group and (key in keys or len(group) == at_most):
            yield group
            group, keys = [], set()
        group.append(held)
        keys.add(key)
    if group:
        yield group


class Pace:
    """Lets no more than so many a second pass."""

    def __init__(
        self, rate_per_s: float, progress: Progress, now: Callable[[], float]
    ) -> None:
        self._rate_per_s = rate_per_s
        self._progress = progress
        self._now = now
        self._free_at_s = now()

    @property
    def group_size(self) -> int:
        """How many may pass at a time, so that a second is at least ten steps."""
        return max(1, min(_AT_ONCE, int(self._rate_per_s / 10)))

    async def wait(self, count: int) -> None:
        """Wait until `count` more may pass."""
        now_s = self._now()
        if self._free_at_s > now_s:
            await self._progress.pause(self._free_at_s - now_s)
        self._free_at_s = max(self._free_at_s, now_s) + count / self._rate_per_s
