"""
The workloads that each server is measured with.

Each workload gets a newly started server and warms it up first.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import quantiles
from time import perf_counter
from typing import Final

from tests.bench.publisher import RawPublisher
from tests.bench.servers import PEERS, ROOT, Server
from tests.bench.window_process import WindowProcess

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Scale:
    """
    The size of the workloads.

    Attributes:
        backlog: Messages that wait before a saturated server starts.
        slow_backlog: The same for plain Python, which takes ten times as long.
        seconds: Duration of a steady stream.
        rate: Its messages per second.
        crowd: Windows of the workload `crowd`.
        crowd_rate: Its messages per second.
        requests: Requests of the workload `requests`.
        request_rate: Its requests per second.
        fanout: Windows of the single user of `fanout`.
        fanout_messages: Its messages.
        fanout_rate: Its messages per second.
        windows: Windows of the other workloads.
        few: Windows of `few`, the base for the growth up to `crowd`.
        start_s: Pause after the start of a fleet. Five seconds after its start a bridge
            measures its queues for the first time, which takes about 12 ms of CPU; the
            next time is half a minute later.
        warm_up: Messages before the measurement.
        afterwards_s: Pause before CPU time is read: the bridge writes delivered marks half
            a second after the deliveries, which belongs to their cost.

    """

    backlog: int = 40_000
    slow_backlog: int = 8_000
    seconds: float = 5.0
    rate: float = 3000.0
    windows: int = 200
    few: int = 100
    crowd: int = 10_000
    crowd_rate: float = 2000.0
    requests: int = 3000
    request_rate: float = 500.0
    fanout: int = 1000
    fanout_messages: int = 120
    fanout_rate: float = 25.0
    start_s: float = 0.0
    warm_up: int = 4000
    afterwards_s: float = 0.7


@dataclass
class Stage:
    """A running server with windows and a publisher."""

    server: Server
    windows: WindowProcess
    publisher: RawPublisher
    scale: Scale
    seed: int
    broker_url: str = ""

    async def open(
        self, users: list[str], *, concurrency: int = 50, acks: bool = False
    ) -> None:
        """Open a window for each of `users`; see `WindowProcess.open`."""
        await self.windows.open(
            self.server.port,
            users,
            syncs=self.server.kind.syncs,
            concurrency=concurrency,
            acks=acks,
        )

    async def saturate(
        self,
        users: list[str],
        number: int,
        *,
        until: Callable[[], Awaitable[None]] | None = None,
    ) -> Figures:
        """
        Publish a backlog while the server is paused, then resume it; one window per user.

        With `until`, the messages ask for receipts, and the work ends when it returns.
        """
        server = self.server
        await self.windows.reset()
        server.pause()
        self.publisher.burst(
            server.kind.names.messages, users, number, receipts=until is not None
        )
        cpu_us, start_s = server.cpu_us(), perf_counter()
        server.resume()
        await self.windows.wait("events", number)
        if until is not None:
            await until()
        took_s = perf_counter() - start_s
        await asyncio.sleep(self.scale.afterwards_s)
        return {
            "us": (server.cpu_us() - cpu_us) / number,
            "per_s": number / took_s,
        }

    async def flood(self, users: list[str], number: int) -> Figures:
        """Publish as fast as one worker can while the server runs."""
        server = self.server
        await self.windows.reset()
        cpu_us, start_s = server.cpu_us(), perf_counter()
        self.publisher.burst(server.kind.names.messages, users, number)
        await self.windows.wait("events", number)
        took_s = perf_counter() - start_s
        await asyncio.sleep(self.scale.afterwards_s)
        return {
            "us": (server.cpu_us() - cpu_us) / number,
            "per_s": number / took_s,
        }

    async def stream(self, users: list[str], rate: float) -> Figures:
        """Publish at a steady rate; one window per user."""
        server, windows = self.server, self.windows
        await windows.reset()
        await windows.time(on=True)
        cpu_us, start_s = server.cpu_us(), perf_counter()
        number = self.publisher.steadily(
            server.kind.names.messages,
            users,
            rate=rate,
            seconds=self.scale.seconds,
            seed=self.seed,
        )
        published_s = perf_counter() - start_s
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
        """Publish to the user of all windows; return microseconds per delivery."""
        scale, server = self.scale, self.server
        await self.windows.reset()
        before_us = server.cpu_us()
        self.publisher.beat(
            server.kind.names.messages, "ann", rate=scale.fanout_rate, number=number
        )
        await self.windows.wait("events", number * scale.fanout)
        await asyncio.sleep(self.scale.afterwards_s)
        return (server.cpu_us() - before_us) / (number * scale.fanout)

    async def reconnect(self, users: list[str]) -> float:
        """Close all windows, open them with the same tokens; return microseconds a window."""
        server = self.server
        await self.windows.close()
        await asyncio.sleep(_REST_S)
        before_us = server.cpu_us()
        await self.open(users)
        await asyncio.sleep(self.scale.afterwards_s)
        return (server.cpu_us() - before_us) / len(users)

    async def ask(self, number: int) -> None:
        """Send requests from the windows at a steady rate, and wait for all answers."""
        await self.windows.command(
            do="ask",
            event=REQUEST_EVENT,
            data={"id": 17, "text": "x" * REQUEST_TEXT_CHARACTERS},
            number=number,
            rate=self.scale.request_rate,
        )
        await self.windows.wait("answers", number)

    async def warm_up(self, users: list[str], number: int) -> None:
        """Warm up just-in-time compilers, pools and caches."""
        await self.windows.reset()
        self.publisher.burst(self.server.kind.names.messages, users, number)
        await self.windows.wait("events", number)
        await asyncio.sleep(self.scale.afterwards_s)

    @property
    def backlog(self) -> int:
        """The messages of a saturated workload."""
        is_slow = self.server.kind.name == "python"
        return self.scale.slow_backlog if is_slow else self.scale.backlog


_REST_S: Final = 1.5
_WORKER_START_S: Final = 30.0
_RECEIPTS_S: Final = 120.0
REQUEST_EVENT: Final = "job.cancel"
REQUEST_TEXT_CHARACTERS: Final = 100


def users(number: int, *, first: int = 0) -> list[str]:
    """Return the names of `number` users."""
    return [f"user-{n}" for n in range(first, first + number)]


async def saturated(stage: Stage) -> Figures:
    """Publish a backlog for 200 users with one window each."""
    some = users(stage.scale.windows)
    await stage.open(some)
    await stage.warm_up(some, stage.scale.warm_up)
    return await stage.saturate(some, stage.backlog)


async def few(stage: Stage) -> Figures:
    """Measure the messages of `crowd` with 100 windows, as the base of the growth."""
    some = users(stage.scale.few)
    await stage.open(some)
    await stage.warm_up(some, stage.scale.warm_up)
    figures = await stage.stream(some, stage.scale.crowd_rate)
    full = await stage.saturate(some, stage.backlog)
    return figures | {"saturated_us": full["us"]}


async def flooded(stage: Stage) -> Figures:
    """Publish as fast as one worker can to 200 users with one window each."""
    some = users(stage.scale.windows)
    await stage.open(some)
    await stage.warm_up(some, stage.scale.warm_up)
    return await stage.flood(some, stage.backlog)


async def steady(stage: Stage) -> Figures:
    """Publish 3,000 messages a second to 200 users with one window each."""
    some = users(stage.scale.windows)
    await stage.open(some)
    await stage.warm_up(some, stage.scale.warm_up)
    return await stage.stream(some, stage.scale.rate)


async def requests(stage: Stage) -> Figures:
    """Send requests from 200 windows to a worker that replies at once."""
    scale, server = stage.scale, stage.server
    await stage.open(users(scale.windows))
    async with worker(stage, "worker.js", {"REQUESTS": server.kind.names.requests}):
        await stage.ask(max(1, scale.requests // 3))
        before_us = server.cpu_us()
        await stage.ask(scale.requests)
        used_us = server.cpu_us() - before_us
    cuts = quantiles(await stage.windows.latencies_us(), n=100)
    return {
        "us": used_us / scale.requests,
        "p50_ms": cuts[49] / 1000,
        "p99_ms": cuts[98] / 1000,
    }


async def receipts(stage: Stage) -> Figures:
    """Do what `saturated` does, with a receipt for each message, for a worker that reads them."""
    some = users(stage.scale.windows)
    await stage.open(some)
    await stage.warm_up(some, stage.scale.warm_up)
    facts = {"EVENTS": stage.server.kind.names.events, "EXPECT": str(stage.backlog)}
    async with worker(stage, "receipts.js", facts) as line:
        return await stage.saturate(
            some, stage.backlog, until=lambda: line("done", within_s=_RECEIPTS_S)
        )


@asynccontextmanager
async def worker(
    stage: Stage, script: str, facts: Mapping[str, str]
) -> AsyncIterator[Callable[..., Awaitable[None]]]:
    """Run a worker in Node on the processors of the broker; yield what waits for a line of it."""
    process = await asyncio.create_subprocess_exec(
        *("node", str(PEERS / script)),
        env=os.environ
        | {
            "AMQP_URL": stage.broker_url,
            "EVENT": REQUEST_EVENT,
            "NODE_PATH": str(ROOT / "tests" / "node_modules"),
            **facts,
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )

    async def line(text: str, *, within_s: float) -> None:
        assert process.stdout is not None
        async with asyncio.timeout(within_s):
            found = await process.stdout.readline()
        if found.decode().strip() != text:
            message = f"the worker {script} has failed, see above"
            raise RuntimeError(message)

    try:
        await line("ready", within_s=_WORKER_START_S)
        yield line
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def fanout(stage: Stage) -> Figures:
    """Publish single messages to a user with 1,000 windows."""
    await stage.open(["ann"] * stage.scale.fanout)
    await stage.fan_out(20)
    return {"us": await stage.fan_out(stage.scale.fanout_messages)}


async def crowd(stage: Stage) -> Figures:
    """
    Measure 10,000 windows: connects, idle memory, reconnects, 2,000 messages a second.

    The reconnects are before the messages: a bridge would replay those that no window has
    proved to have received, and other servers would not.
    """
    scale, server = stage.scale, stage.server
    first = scale.crowd // 20
    some = users(scale.crowd + first)
    await stage.open(some[:first])
    await stage.warm_up(some[:first], scale.warm_up // 2)
    cpu_us, rss_kib = server.cpu_us(), server.rss_kib()
    for user in some[first:]:
        stage.windows.token(user)  # outside of the measured time
    await stage.open(some[first:])
    await asyncio.sleep(_REST_S)
    figures = {
        "connect_us": (server.cpu_us() - cpu_us) / scale.crowd,
        "window_kib": (server.rss_kib() - rss_kib) / scale.crowd,
    }
    figures["reconnect_us"] = await stage.reconnect(some)
    figures |= await stage.stream(some, scale.crowd_rate)
    if server.kind.inbox:
        full = await stage.saturate(some, stage.backlog)
        figures["saturated_us"] = full["us"]
    return figures


WORKLOADS: Final[dict[str, Callable[[Stage], Awaitable[Figures]]]] = {
    "saturated": saturated,
    "flooded": flooded,
    "steady": steady,
    "fanout": fanout,
    "crowd": crowd,
    "few": few,
    "requests": requests,
    "receipts": receipts,
}
