"""
The figures that users of push servers ask for, each measured on a newly started server.

`figures.py` runs them and writes the tables.
"""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Final

import aio_pika

from tests.bench.idle_windows import idle_windows
from tests.bench.run import BenchWorld, open_stage
from tests.bench.servers import SERVER_KINDS, Server
from tests.bench.window_process import windows
from tests.bench.windows import masked
from tests.bench.workloads import Figures, Scale, Stage, users

_REST_S: Final = 1.5
_MEMORY: Final = "memory"  # in `idle`, with Redis instead
_BRIDGES: Final = (_MEMORY, "sqlite")
_ALL: Final = (*_BRIDGES, "node", "go")


@dataclass(frozen=True, slots=True)
class FigureScale:
    """
    The size of the workloads.

    Attributes:
        scale: Windows and warm-up, as in the bench.
        reader_rate: Messages per second to other users during a storm.
        broadcasts: Messages to all windows of one user.
        rate_from: The first rate that is tried, in messages per second.
        rate_step: Each rate relative to the one before.
        try_s: Duration of a try.
        hold_s: How long the highest rate is held.
        held_ms: The p99 up to which a rate counts as held.
        ack_rate: Messages per second to pages that ack.
        ack_s: Duration of their stream.
        idle: Idle windows.
        idle_s: How long their cost is measured: two pings of each.
        churn_s: Duration of mixed traffic.
        churn_step_s: Its windows change after each step.

    """

    scale: Scale
    reader_rate: float = 500.0
    broadcasts: int = 20
    rate_from: float = 2000.0
    rate_step: float = 1.25
    try_s: float = 10.0
    hold_s: float = 60.0
    held_ms: float = 100.0
    ack_rate: float = 1000.0
    ack_s: float = 600.0
    idle: int = 40_000
    idle_s: float = 50.0
    churn_s: float = 3600.0
    churn_step_s: float = 5.0


@dataclass(frozen=True, slots=True)
class FigureRun:
    """A server to measure, and where."""

    world: BenchWorld
    server: str
    size: FigureScale
    report: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FigureWork:
    """
    A workload.

    Attributes:
        do: Starts the server, measures, and returns the figures.
        servers: The servers that it can measure.
        titles: The rows of its table: figure, title, digits.

    """

    do: Callable[[FigureRun], Awaitable[Figures]]
    servers: tuple[str, ...]
    titles: tuple[tuple[str, str, int], ...]


# --- reconnect storms


async def storm(run: FigureRun) -> Figures:
    """
    Connect 10,000 windows at once while 200 others receive messages.

    The first time the server does not know their tokens, as after its own restart. The
    second time it does, as after the restart of a proxy.
    """
    scale = run.size.scale
    readers = users(scale.windows)
    crowd = users(scale.crowd, first=scale.windows)
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(
            open_stage(run.world, SERVER_KINDS[run.server], scale, seed=0)
        )
        # A process of its own, which gives way to the broker and the windows that are timed:
        # it stands for thousands of machines.
        others = await stack.enter_async_context(
            windows(run.world.pin.others, niceness=10)
        )
        await stage.open(readers)
        await stage.warm_up(readers, scale.warm_up)
        for user in crowd:
            others.token(user)  # outside of the measured time
        figures: dict[str, float] = {}
        for name in ("first", "again"):
            measured = await _storm(run, stage, replace(stage, windows=others), crowd)
            figures |= {f"{name}_{key}": value for key, value in measured.items()}
            await others.close()
            await asyncio.sleep(_REST_S)
    return figures


async def _storm(
    run: FigureRun, stage: Stage, storming: Stage, crowd: list[str]
) -> Figures:
    server, readers = stage.server, users(run.size.scale.windows)
    await stage.windows.reset()
    await stage.windows.time(on=True)
    forget_peak(server)
    is_over = threading.Event()

    def publish() -> int:
        number = 0
        while not is_over.is_set():
            number += stage.publisher.steadily(
                server.kind.names.messages,
                readers,
                rate=run.size.reader_rate,
                seconds=0.2,
                seed=number,
            )
        return number

    publishing = asyncio.ensure_future(asyncio.to_thread(publish))
    try:
        cpu_us, start_s = server.cpu_us(), perf_counter()
        retried = (await storming.windows.reset())["retried"]
        await storming.open(crowd, concurrency=len(crowd))
        took_s = perf_counter() - start_s
        used_us = server.cpu_us() - cpu_us
    finally:
        is_over.set()
        number = await publishing
    await stage.windows.wait("events", number)
    late_us = await stage.windows.latencies_us()
    await stage.windows.time(on=False)
    return {
        "s": took_s,
        "retries": (await storming.windows.reset())["retried"] - retried,
        "us": used_us / len(crowd),
        "peak_mib": peak_kib(server) / 1024,
        "p99_ms": quantiles(late_us, n=100)[98] / 1000,
        "most_ms": late_us[-1] / 1000,
    }


def forget_peak(server: Server) -> None:
    """Let the kernel count the largest resident memory from now on; see `proc(5)`."""
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")


def peak_kib(server: Server) -> int:
    """Return the largest resident memory, in KiB, since `forget_peak`."""
    for line in Path(f"/proc/{server.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise AssertionError(server.pid)


# --- idle windows


async def idle(run: FigureRun) -> Figures:
    """Measure memory and CPU of 40,000 idle windows."""
    return await idle_windows(run.world, run.size.idle, run.size.idle_s)


# --- one message to all windows of a user


async def broadcast(run: FigureRun) -> Figures:
    """Measure the time until the last of 10,000 windows of one user has a message."""
    scale = run.size.scale
    async with open_stage(run.world, SERVER_KINDS[run.server], scale, seed=0) as stage:
        await stage.open(["ann"] * scale.crowd)
        last_ms, half_ms = [], []
        for number in range(run.size.broadcasts + 1):
            await stage.windows.reset()
            await stage.windows.time(on=True)
            stage.publisher.beat(
                stage.server.kind.names.messages, "ann", rate=1, number=1
            )
            await stage.windows.wait("events", scale.crowd)
            late_us = await stage.windows.latencies_us()
            await asyncio.sleep(0.2)
            if number:  # the first one warms up
                last_ms.append(late_us[-1] / 1000)
                half_ms.append(late_us[len(late_us) // 2] / 1000)
    return {"last_ms": median(last_ms), "half_ms": median(half_ms)}


# --- the highest rate


async def rate(run: FigureRun) -> Figures:
    """Search the highest rate that is held with a p99 below 100 ms, by number of windows."""
    figures = {}
    for number in (run.size.scale.windows, 2000, run.size.scale.crowd):
        async with open_stage(
            run.world, SERVER_KINDS[run.server], run.size.scale, seed=0
        ) as stage:
            some = users(number)
            await stage.open(some)
            await stage.warm_up(some, run.size.scale.warm_up)
            figures[f"held_{number}"] = await _highest_rate(run, stage, some)
    return figures


async def _highest_rate(run: FigureRun, stage: Stage, some: list[str]) -> float:
    size = run.size
    tried = size.rate_from
    # A single pause of a shared machine must not end the search, so each rate has two tries.
    while await _is_held(run, stage, some, tried, size.try_s) or await _is_held(
        run, stage, some, tried, size.try_s
    ):
        tried *= size.rate_step
    while tried > size.rate_from / 4:
        tried /= size.rate_step
        await asyncio.sleep(_REST_S)
        if await _is_held(run, stage, some, tried, size.hold_s):
            return tried
    return 0.0


async def _is_held(
    run: FigureRun, stage: Stage, some: list[str], asked: float, seconds: float
) -> bool:
    trial = replace(stage, scale=replace(stage.scale, seconds=seconds))
    found = await trial.stream(some, asked)
    run.report(
        f"{run.server}, {len(some):,} windows, {asked:,.0f}/s for {seconds:g} s: "
        f"{found['rate']:,.0f}/s, p99 {found['p99_ms']:.1f} ms"
    )
    return found["p99_ms"] < run.size.held_ms and found["rate"] > 0.97 * asked


# --- publish to the page's own ack


async def acks(run: FigureRun) -> Figures:
    """Measure from a publish to the answered ack of the page, with manual acks."""
    size = run.size
    some = users(size.scale.windows)
    async with open_stage(
        run.world, SERVER_KINDS[run.server], size.scale, seed=0
    ) as stage:
        await stage.open(some, acks=True)
        await stage.warm_up(some, size.scale.warm_up)
        await stage.windows.reset()
        await stage.windows.time(on=True)
        number = stage.publisher.steadily(
            stage.server.kind.names.messages,
            some,
            rate=size.ack_rate,
            seconds=size.ack_s,
            seed=0,
        )
        await stage.windows.wait("timed", number)
        late_us = await stage.windows.latencies_us()
    cuts = quantiles(late_us, n=1000)
    return {
        "p50_ms": cuts[499] / 1000,
        "p99_ms": cuts[989] / 1000,
        "p999_ms": cuts[998] / 1000,
    }


# --- an hour of mixed traffic


async def mixed(run: FigureRun) -> Figures:
    """
    Publish to 250 users, some of them away, while windows come, go and stop reading.

    After ten minutes at 500 messages a second, all inboxes are full.

    Returns:
        Memory of the server, size of the store, and messages in the queues, after a sixth
        of the time and at the end.

    """
    size, world = run.size, run.world
    steady, churning = users(200), users(100, first=150)
    everyone = users(250)
    figures: Figures = {}
    steps = max(6, round(size.churn_s / size.churn_step_s))
    async with open_stage(world, SERVER_KINDS[run.server], size.scale, seed=0) as stage:
        await stage.open(steady)
        for step in range(steps):
            stalled = [_stalled_window(stage, user) for user in steady[:3]]
            try:
                await stage.open(churning)
                await asyncio.to_thread(
                    stage.publisher.steadily,
                    stage.server.kind.names.messages,
                    everyone,
                    rate=size.reader_rate,
                    seconds=size.churn_step_s,
                    seed=step,
                )
                await stage.windows.close(keep=len(steady))
            finally:
                for connection in stalled:
                    connection.close()
            if step + 1 in (steps // 6, steps):
                name = "end" if step + 1 == steps else "early"
                figures = {**figures, **await _sizes(stage, world, name)}
                run.report(f"{run.server}: step {step + 1} of {steps}, {figures}")
            elif step % 60 == 59:
                run.report(f"{run.server}: step {step + 1} of {steps}")
    return figures


def _stalled_window(stage: Stage, user: str) -> socket.socket:
    """Return a window that connects and then does not read."""
    connection = socket.create_connection(("127.0.0.1", stage.server.port), timeout=10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(
        b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    token = stage.windows.token(user).encode()
    connection.sendall(masked(b'40{"token":"%b"}' % token))
    return connection


async def _sizes(stage: Stage, world: BenchWorld, name: str) -> Figures:
    kind = stage.server.kind
    store = sum(
        path.stat().st_size for path in world.folder.glob(f"{kind.name}.sqlite3*")
    )
    waiting = 0
    async with await aio_pika.connect(world.broker_url) as connection:
        for queue in (kind.names.inbound_queue(), kind.names.dead):
            channel = await connection.channel()
            declared = await channel.declare_queue(queue, passive=True)
            waiting += declared.declaration_result.message_count or 0
    return {
        f"{name}_rss_mib": stage.server.rss_kib() / 1024,
        f"{name}_store_mib": store / 2**20,
        f"{name}_queued": waiting,
    }


def _storm_titles(key: str, text: str) -> tuple[tuple[str, str, int], ...]:
    return (
        (f"{key}_s", f"{text}: seconds until the last window is connected", 1),
        (f"{key}_retries", "— connections that were reset and tried again", 0),
        (f"{key}_us", "— processor time, µs a window", 0),
        (f"{key}_peak_mib", "— largest memory, MiB", 0),
        (f"{key}_p99_ms", "— messages of other users, p99, ms", 0),
        (f"{key}_most_ms", "— messages of other users, longest, ms", 0),
    )


FIGURE_WORKS: Final = {
    "storm": FigureWork(
        storm,
        _ALL,
        (
            *_storm_titles("first", "10,000 windows at once, tokens unknown"),
            *_storm_titles("again", "the same windows again"),
        ),
    ),
    "idle": FigureWork(
        idle,
        (_MEMORY,),
        (
            ("base_mib", "four workers without a window, MiB", 0),
            ("all_mib", "with 40,000 idle windows, MiB", 0),
            ("window_kib", "a window, KiB", 1),
            ("kernel_kib", "kernel memory of a connection, both ends, KiB", 1),
            ("us_per_s", "processor time of a window, µs a second", 1),
        ),
    ),
    "broadcast": FigureWork(
        broadcast,
        _ALL,
        (
            ("half_ms", "one message to 10,000 windows of a user: half of them, ms", 0),
            ("last_ms", "— the last one, ms", 0),
        ),
    ),
    "rate": FigureWork(
        rate,
        _ALL,
        (
            ("held_200", "messages a second held for 60 s, 200 windows", 0),
            ("held_2000", "— 2,000 windows", 0),
            ("held_10000", "— 10,000 windows", 0),
        ),
    ),
    "acks": FigureWork(
        acks,
        _BRIDGES,
        (
            ("p50_ms", "publish to the page's answered ack, 1,000/s: p50, ms", 1),
            ("p99_ms", "— p99, ms", 1),
            ("p999_ms", "— p99.9, ms", 1),
        ),
    ),
    "mixed": FigureWork(
        mixed,
        _BRIDGES,
        (
            (
                "early_rss_mib",
                "mixed traffic, memory after a sixth of the time, MiB",
                1,
            ),
            ("end_rss_mib", "— at the end", 1),
            ("early_store_mib", "— the store's files after a sixth, MiB", 1),
            ("end_store_mib", "— at the end", 1),
            ("early_queued", "— messages in the queues after a sixth", 0),
            ("end_queued", "— at the end", 0),
        ),
    ),
}
