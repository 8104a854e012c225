"""
The works: what each server does, and what is measured while it does it.

Each work gets a server of its own, fresh from its start, and warms it up first.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import quantiles
from time import perf_counter
from typing import Final

from tests.bench.page_load import Windows
from tests.bench.publisher import Publisher
from tests.bench.servers import Server

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Scale:
    """
    How much there is to do.

    Attributes:
        backlog: Messages that wait before a saturated server may begin.
        slow_backlog: The same for plain Python, which takes ten times as long.
        seconds: How long a steady stream goes on.
        rate: Messages a second of it.
        crowd: Windows of the large crowd.
        crowd_rate: Messages a second for them.
        fanout: Windows of the one user.
        fanout_messages: Messages for them.
        fanout_rate: Of these in a second.
        windows: Of the usual works.
        few: Windows where growth begins.
        start_s: How long bridges of a fleet are left alone after their start: five seconds
            after it they measure their queues for the first time, which is some 12 ms of
            work, and comes again each half minute only.
        warm_up: Messages before anything is measured.
        afterwards_s: What follows a delivery counts, too: the bridge writes delivered
            marks half a second later.

    """

    backlog: int = 40_000
    slow_backlog: int = 8_000
    seconds: float = 5.0
    rate: float = 3000.0
    windows: int = 200
    few: int = 100
    crowd: int = 10_000
    crowd_rate: float = 2000.0
    fanout: int = 1000
    fanout_messages: int = 120
    fanout_rate: float = 25.0
    start_s: float = 0.0
    warm_up: int = 4000
    afterwards_s: float = 0.7


@dataclass
class Stage:
    """What a work has at hand."""

    server: Server
    windows: Windows
    publisher: Publisher
    scale: Scale
    seed: int

    async def open(self, users: list[str]) -> None:
        """Open a window for each of `users`."""
        await self.windows.open(self.server.port, users, syncs=self.server.kind.syncs)

    async def saturate(self, users: list[str], number: int) -> Figures:
        """Let messages pile up, then let the server go; one window for each user."""
        server = self.server
        await self.windows.reset()
        server.freeze()
        self.publisher.burst(server.kind.names.messages, users, number)
        cpu_us, began_s = server.cpu_us(), perf_counter()
        server.thaw()
        await self.windows.wait("events", number)
        took_s = perf_counter() - began_s
        await asyncio.sleep(self.scale.afterwards_s)
        return {
            "us": (server.cpu_us() - cpu_us) / number,
            "per_s": number / took_s,
        }

    async def flood(self, users: list[str], number: int) -> Figures:
        """Publish as fast as one worker can, while the server works."""
        server = self.server
        await self.windows.reset()
        cpu_us, began_s = server.cpu_us(), perf_counter()
        self.publisher.burst(server.kind.names.messages, users, number)
        await self.windows.wait("events", number)
        took_s = perf_counter() - began_s
        await asyncio.sleep(self.scale.afterwards_s)
        return {
            "us": (server.cpu_us() - cpu_us) / number,
            "per_s": number / took_s,
        }

    async def stream(self, users: list[str], rate: float) -> Figures:
        """Publish steadily; one window for each user."""
        server, windows = self.server, self.windows
        await windows.reset()
        await windows.time(on=True)
        cpu_us, began_s = server.cpu_us(), perf_counter()
        number = self.publisher.steadily(
            server.kind.names.messages,
            users,
            rate=rate,
            seconds=self.scale.seconds,
            seed=self.seed,
        )
        published_s = perf_counter() - began_s
        await windows.wait("events", number)
        await asyncio.sleep(self.scale.afterwards_s)
        used_us = server.cpu_us() - cpu_us
        cuts = quantiles(await windows.latencies_us(), n=100)
        await windows.time(on=False)
        return {
            "us": used_us / number,
            "p50_ms": cuts[49] / 1000,
            "p99_ms": cuts[98] / 1000,
            "rate": number / published_s,
        }

    async def fan_out(self, number: int) -> float:
        """Publish to one user, all of whose windows are open; µs a delivery."""
        scale, server = self.scale, self.server
        await self.windows.reset()
        before_us = server.cpu_us()
        self.publisher.beat(
            server.kind.names.messages, "ann", rate=scale.fanout_rate, number=number
        )
        await self.windows.wait("events", number * scale.fanout)
        await asyncio.sleep(self.scale.afterwards_s)
        return (server.cpu_us() - before_us) / (number * scale.fanout)

    async def warm_up(self, users: list[str], number: int) -> None:
        """Let the server find its shape: just-in-time compilers, pools, caches."""
        await self.windows.reset()
        self.publisher.burst(self.server.kind.names.messages, users, number)
        await self.windows.wait("events", number)
        await asyncio.sleep(self.scale.afterwards_s)

    @property
    def backlog(self) -> int:
        """Messages of a saturated work."""
        is_slow = self.server.kind.name == "python"
        return self.scale.slow_backlog if is_slow else self.scale.backlog


_REST_S: Final = 1.5


def users(number: int, *, first: int = 0) -> list[str]:
    """Name users."""
    return [f"user-{n}" for n in range(first, first + number)]


async def saturated(stage: Stage) -> Figures:
    """A backlog for 200 users with a window each."""
    some = users(stage.scale.windows)
    await stage.open(some)
    await stage.warm_up(some, stage.scale.warm_up)
    return await stage.saturate(some, stage.backlog)


async def few(stage: Stage) -> Figures:
    """What the large crowd gets, for 100 windows: where growth begins."""
    some = users(stage.scale.few)
    await stage.open(some)
    await stage.warm_up(some, stage.scale.warm_up)
    figures = await stage.stream(some, stage.scale.crowd_rate)
    full = await stage.saturate(some, stage.backlog)
    return figures | {"saturated_us": full["us"]}


async def flooded(stage: Stage) -> Figures:
    """As fast as one worker can publish, for 200 users with a window each."""
    some = users(stage.scale.windows)
    await stage.open(some)
    await stage.warm_up(some, stage.scale.warm_up)
    return await stage.flood(some, stage.backlog)


async def steady(stage: Stage) -> Figures:
    """3,000 messages a second for 200 users with a window each."""
    some = users(stage.scale.windows)
    await stage.open(some)
    await stage.warm_up(some, stage.scale.warm_up)
    return await stage.stream(some, stage.scale.rate)


async def fanout(stage: Stage) -> Figures:
    """One message at a time to 1,000 windows of one user."""
    await stage.open(["ann"] * stage.scale.fanout)
    await stage.fan_out(20)
    return {"us": await stage.fan_out(stage.scale.fanout_messages)}


async def crowd(stage: Stage) -> Figures:
    """10,000 windows: what each costs to let in and to keep, and 2,000 messages a second."""
    scale, server = stage.scale, stage.server
    first = scale.crowd // 20
    some = users(scale.crowd + first)
    await stage.open(some[:first])
    await stage.warm_up(some[:first], scale.warm_up // 2)
    cpu_us, rss_kib = server.cpu_us(), server.rss_kib()
    for user in some[first:]:
        stage.windows.token(user)  # signing is not what is measured, nor in its time
    await stage.open(some[first:])
    await asyncio.sleep(_REST_S)
    figures = {
        "connect_us": (server.cpu_us() - cpu_us) / scale.crowd,
        "window_kib": (server.rss_kib() - rss_kib) / scale.crowd,
    }
    figures |= await stage.stream(some, scale.crowd_rate)
    if server.kind.inbox:
        full = await stage.saturate(some, stage.backlog)
        figures["saturated_us"] = full["us"]
    return figures


WORKS: Final[dict[str, Callable[[Stage], Awaitable[Figures]]]] = {
    "saturated": saturated,
    "flooded": flooded,
    "steady": steady,
    "fanout": fanout,
    "crowd": crowd,
    "few": few,
}
