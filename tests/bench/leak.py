"""Memory of the bridge over a million messages and a hundred thousand connections."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from tests.bench.run import open_stage, open_world
from tests.bench.servers import SERVER_KINDS
from tests.bench.workloads import Scale, Stage, users

_STEPS: Final = 100
_MESSAGES: Final = 10_000  # in each step
_CONNECTS: Final = 1000  # in each step
# Few enough that all inboxes are full long before the end of the first tenth.
_READERS: Final = 50
_VISITORS: Final = 1000
_REST_S: Final = 0.3
_RATIO_MAX: Final = 1.05


@dataclass
class Growth:
    """
    The resident memory of one server after each step.

    Attributes:
        server: Its name.
        messages: The total number of messages.
        connects: The total number of connections, all of them closed again.
        rss_mib: The resident memory after each step.

    """

    server: str
    messages: int
    connects: int
    rss_mib: list[float] = field(default_factory=list)

    @property
    def after_a_tenth(self) -> float:
        """The memory after the first tenth; a median, because it fluctuates."""
        tenth = len(self.rss_mib) // 10
        return median(self.rss_mib[tenth - 1 : tenth + 4])

    @property
    def at_the_end(self) -> float:
        """The memory at the end; a median, because it fluctuates."""
        return median(self.rss_mib[-5:])

    @property
    def ratio(self) -> float:
        """The memory at the end, relative to that after the first tenth."""
        return self.at_the_end / self.after_a_tenth


async def run(
    servers: Sequence[str] | None, share: float, *, report: Callable[[str], None]
) -> Sequence[str]:
    """
    Measure the servers and return the table.

    Args:
        servers: Names of servers; ``None`` means both bridges.
        share: The share of the usual number of messages and connections.
        report: Receives lines about the progress.

    """
    lines = [
        "| server | messages | connects and closes | MiB after the first tenth | at the end | ratio | ≤ 1.05 |",
        "|---|---|---|---|---|---|---|",
    ]
    async with open_world(report) as world:
        for name in servers or ("memory", "sqlite"):
            async with open_stage(world, SERVER_KINDS[name], Scale(), seed=0) as stage:
                growth = await _grow(stage, share, report)
            lines.append(
                f"| {SERVER_KINDS[name].title} | {growth.messages:,} | {growth.connects:,} "
                f"| {growth.after_a_tenth:.1f} | {growth.at_the_end:.1f} "
                f"| {growth.ratio:.3f} | {'yes' if growth.ratio <= _RATIO_MAX else '**no**'} |"
            )
    return lines


async def _grow(stage: Stage, share: float, report: Callable[[str], None]) -> Growth:
    server, windows = stage.server, stage.windows
    messages, connects = int(_MESSAGES * share), int(_CONNECTS * share)
    readers = users(_READERS)
    visitors = users(_VISITORS, first=_READERS)
    await stage.open(readers)
    growth = Growth(server.kind.name, messages * _STEPS, connects * _STEPS)
    for step in range(_STEPS):
        await windows.reset()
        stage.publisher.burst(server.kind.names.messages, readers, messages)
        await windows.wait("events", messages)
        first = step * connects
        await stage.open([visitors[(first + n) % _VISITORS] for n in range(connects)])
        await windows.close(keep=_READERS)
        await asyncio.sleep(_REST_S)
        growth.rss_mib.append(server.rss_kib() / 1024)
        if step % 10 == 9:
            report(
                f"{server.kind.name}: {step + 1} % done, {growth.rss_mib[-1]:.1f} MiB"
            )
    return growth
