"""Whether the bridge stays flat: a million messages, a hundred thousand connects."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from tests.bench.run import open_stage, open_world
from tests.bench.servers import KINDS
from tests.bench.works import Scale, Stage, users

_STEPS: Final = 100
_MESSAGES: Final = 10_000  # in each step
_CONNECTS: Final = 1000  # in each step
# Few enough that all inboxes are full long before the first tenth is over.
_READERS: Final = 50
_PASSERS_BY: Final = 1000
_REST_S: Final = 0.3
_AT_MOST: Final = 1.05


@dataclass
class Growth:
    """
    The resident memory of one server, noted after each step.

    Attributes:
        server: Its name.
        messages: In all.
        connects: In all; each was closed again.
        rss_mib: After each step.

    """

    server: str
    messages: int
    connects: int
    rss_mib: list[float] = field(default_factory=list)

    @property
    def after_a_tenth(self) -> float:
        """What it was then; the middle of some, since it goes up and down."""
        tenth = len(self.rss_mib) // 10
        return median(self.rss_mib[tenth - 1 : tenth + 4])

    @property
    def at_the_end(self) -> float:
        """What it came to."""
        return median(self.rss_mib[-5:])

    @property
    def ratio(self) -> float:
        """How much more it is than after the first tenth."""
        return self.at_the_end / self.after_a_tenth


async def run(
    servers: Sequence[str] | None, share: float, *, tell: Callable[[str], None]
) -> Sequence[str]:
    """
    Measure the bridges (or `servers`), and return the table.

    Args:
        servers: By name; ``None`` for both bridges.
        share: Of the usual number of messages and connects, for trying it out.
        tell: Told how it goes.

    """
    lines = [
        "| server | messages | connects and closes | MiB after the first tenth | at the end | ratio | ≤ 1.05 |",
        "|---|---|---|---|---|---|---|",
    ]
    async with open_world(tell) as world:
        for name in servers or ("memory", "sqlite"):
            async with open_stage(world, name, Scale(), seed=0) as stage:
                growth = await _grow(stage, share, tell)
            lines.append(
                f"| {KINDS[name].title} | {growth.messages:,} | {growth.connects:,} "
                f"| {growth.after_a_tenth:.1f} | {growth.at_the_end:.1f} "
                f"| {growth.ratio:.3f} | {'yes' if growth.ratio <= _AT_MOST else '**no**'} |"
            )
    return lines


async def _grow(stage: Stage, share: float, tell: Callable[[str], None]) -> Growth:
    server, windows = stage.server, stage.windows
    messages, connects = int(_MESSAGES * share), int(_CONNECTS * share)
    readers = users(_READERS)
    passers_by = users(_PASSERS_BY, first=_READERS)
    await stage.open(readers)
    growth = Growth(server.kind.name, messages * _STEPS, connects * _STEPS)
    for step in range(_STEPS):
        await windows.reset()
        stage.publisher.burst(server.kind.names.messages, readers, messages)
        await windows.wait("events", messages)
        first = step * connects
        await stage.open(
            [passers_by[(first + n) % _PASSERS_BY] for n in range(connects)]
        )
        await windows.close(keep=_READERS)
        await asyncio.sleep(_REST_S)
        growth.rss_mib.append(server.rss_kib() / 1024)
        if step % 10 == 9:
            tell(f"{server.kind.name}: {step + 1} % done, {growth.rss_mib[-1]:.1f} MiB")
    return growth
