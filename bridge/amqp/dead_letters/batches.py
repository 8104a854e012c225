"""Batches of dead letters: bounded in memory, in order per user, at a limited rate."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from bridge.core.dead_letter import DeadLetterReader, StoredDeadLetter
from bridge.core.message import Delivery

# Bodies that are kept between reading a dead letter and settling it.
_BATCH_MAX_BYTES: Final = 16 << 20
_GROUP_MAX: Final = 16


class JobProgress(Protocol):
    """The operator's job, which records progress and may be canceled."""

    @property
    def is_cancelled(self) -> bool:
        """Whether no new work must be started."""

    def advance(
        self, *, done: int = 0, failed: int = 0, error: str | None = None
    ) -> None:
        """Add to the numbers of dead letters that are done or have failed."""

    async def pause(self, seconds: float) -> None:
        """Wait, or return early if the job is canceled."""


@dataclass(frozen=True, slots=True)
class PendingDeadLetter:
    """A dead letter between being read and being settled."""

    id: str
    delivery: Delivery


def collect(
    batch: list[PendingDeadLetter],
    reader: DeadLetterReader,
    matches: Callable[[StoredDeadLetter], bool],
    *,
    at_most: int,
) -> Callable[[Delivery], bool]:
    """Return a function that adds matching deliveries to `batch` until it is full."""
    size_bytes = 0

    def take(delivery: Delivery) -> bool:
        nonlocal size_bytes
        stored = reader.read(delivery)
        if matches(stored):
            batch.append(PendingDeadLetter(stored.id, delivery))
            size_bytes += len(delivery.body)
        return len(batch) < at_most and size_bytes < _BATCH_MAX_BYTES

    return take


def concurrent_groups(
    batch: Sequence[PendingDeadLetter], *, at_most: int
) -> Iterator[list[PendingDeadLetter]]:
    """
    Split `batch` into runs of neighbors with different users.

    A group is published concurrently, so messages of one user must not share it: they could
    overtake each other.
    """
    group: list[PendingDeadLetter] = []
    keys: set[bytes] = set()
    for pending in batch:
        key = pending.delivery.routing_key
        if group and (key in keys or len(group) == at_most):
            yield group
            group, keys = [], set()
        group.append(pending)
        keys.add(key)
    if group:
        yield group


class RedrivePace:
    """Keeps a redrive at or below a rate."""

    def __init__(
        self, rate_per_s: float, progress: JobProgress, now: Callable[[], float]
    ) -> None:
        self._rate_per_s = rate_per_s
        self._progress = progress
        self._now = now
        self._next_at_s = now()

    @property
    def group_size(self) -> int:
        """How many may be published concurrently; a second has at least ten groups."""
        return max(1, min(_GROUP_MAX, int(self._rate_per_s / 10)))

    async def wait(self, count: int) -> None:
        """Wait until `count` more may be published, or the job is canceled."""
        now_s = self._now()
        if self._next_at_s > now_s:
            await self._progress.pause(self._next_at_s - now_s)
        self._next_at_s = max(self._next_at_s, now_s) + count / self._rate_per_s
