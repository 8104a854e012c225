"""
The CPU time of the bridge by stage, in microseconds.

py-spy samples the stacks of a running bridge 400 times a second. A sample counts for the
stage of the innermost frame that belongs to one. The processor time of each thread is
divided among its stages.
"""

import asyncio
import shutil
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.bench.run import BenchWorld, open_stage, open_world
from tests.bench.servers import SERVER_KINDS, cpu_us_of_threads
from tests.bench.workloads import Scale, Stage, users

_WAIT_INBOX: Final = "inbox: waiting and waking up"
_WAIT_LOOP: Final = "event loop: waiting, waking up, receiving, sending"
_WAITING: Final = frozenset({_WAIT_INBOX, _WAIT_LOOP})

# The first match, from the innermost frame outwards, is the stage. A frame has the form
# `function (file:line)`; a frame without a match counts for its caller.
_STAGES: Final = (
    (
        "bridge/sockets/engineio/session.py",
        "windows: sessions, and direct writes to transports",
    ),
    ("bridge/sockets/window.py", "windows: sessions, and direct writes to transports"),
    ("bridge/sockets/rooms.py", "windows: rooms, one frame for all"),
    ("bridge/core/frames.py", "windows: rooms, one frame for all"),
    ("bridge/core/position.py", "windows: rooms, one frame for all"),
    ("bridge/sockets/", "windows: admission, replay, time"),
    ("bridge/amqp/frame_reader.py", "in: frames to deliveries"),
    ("bridge/amqp/", "in: batches and acks"),
    ("aiormq/", "in: batches and acks"),
    ("bridge/core/message.py", "parse and check"),
    ("bridge/core/properties.py", "parse and check"),
    ("tenacity/", "pipeline"),
    ("bridge/pipeline.py", "pipeline"),
    ("_next_group (bridge/inbox/sqlite/database_thread.py", _WAIT_INBOX),
    ("DatabaseThread.submit", "inbox: transfer between threads"),
    ("DatabaseCall.", "inbox: transfer between threads"),
    ("_transact (bridge/inbox/", "inbox: begin, commit"),
    ("bridge/inbox/sqlite/statements.py", "inbox: statements"),
    ("bridge/inbox/", "inbox: the rest"),
    ("bridge/auth/", "tokens"),
    ("jwt/", "tokens"),
    ("engineio/", "engine.io"),
    ("aiohttp/", "aiohttp"),
    ("bridge/metrics.py", "metrics"),
    ("prometheus_client/", "metrics"),
    ("asyncio/runners.py", _WAIT_LOOP),
)
_ELSE: Final = "else"
_RATE: Final = 400
_SETTLE_S: Final = 2.0


async def run(
    servers: Sequence[str] | None,
    works: Sequence[str] | None,
    *,
    report: Callable[[str], None],
) -> Sequence[str]:
    """
    Profile the bridges with some workloads, and return the tables.

    Raises:
        RuntimeError: If py-spy is not installed or may not attach.

    """
    lines: list[str] = []
    async with open_world(report) as world:
        for name in servers or ("memory", "sqlite"):
            columns = {}
            for work in works or WORKLOADS:
                cost_us, columns[work] = await _profile(world, name, work)
                report(f"{name}, {work}: {cost_us:.1f} µs under the profiler")
            lines += [
                f"**{SERVER_KINDS[name].title}**, µs a delivery (a window, at connect):"
            ]
            lines += ["", *_table(columns), ""]
    return lines[:-1]


def _table(columns: dict[str, dict[str, float]]) -> Iterable[str]:
    yield "| stage |" + "".join(f" {work} |" for work in columns)
    yield "|---|" + "---|" * len(columns)
    stages = dict.fromkeys(title for _, title in _STAGES) | {_ELSE: None}
    for stage in stages:
        figures = [column.get(stage, 0.0) for column in columns.values()]
        if any(
            figure >= 0.01 * sum(c.values())
            for figure, c in zip(figures, columns.values(), strict=True)
        ):
            yield f"| {stage} |" + "".join(f" {f:.2f} |" for f in figures)
    sums = (sum(column.values()) for column in columns.values())
    yield "| **all** |" + "".join(f" **{each:.1f}** |" for each in sums)


async def _profile(
    world: BenchWorld, name: str, work: str
) -> tuple[float, dict[str, float]]:
    """Return the cost of a delivery, and the share of each stage."""
    watch = ProfiledServer(world.folder / "stacks.txt")
    async with open_stage(world, SERVER_KINDS[name], Scale(), seed=0) as stage:
        cost_us = await WORKLOADS[work](stage, watch)
    used_us = watch.stages_us()
    deliveries = sum(used_us.values()) / cost_us
    return cost_us, {title: us / deliveries for title, us in used_us.items()}


@dataclass
class ProfiledServer:
    """
    The samples and the CPU time of a server.

    Attributes:
        stacks: The file that py-spy writes.
        cpu_us: The CPU time of each thread during the profile, by thread id.

    """

    stacks: Path
    cpu_us: dict[int, float] = field(default_factory=dict)

    def stages_us(self) -> dict[str, float]:
        """
        Divide the processor time of each thread among its stages.

        py-spy counts some waiting threads as active. Therefore a stage in which threads
        wait gets the rest of the processor time, after all other stages.
        """
        seen: dict[int, Counter[str]] = defaultdict(Counter)
        for line in self.stacks.read_text(encoding="utf-8").splitlines():
            stack, _, number = line.rpartition(" ")
            thread, *frames = stack.split(";")  # thread (ID): NAME
            seen[int(thread.split("(")[1].split(")")[0], 0)][stage_of(frames)] += int(
                number
            )
        used: dict[str, float] = defaultdict(float)
        for thread_id, counts in seen.items():
            cpu_us = self.cpu_us.get(thread_id, 0.0)
            waits = counts.keys() & _WAITING
            busy_us = {
                title: count / _RATE * 1e6
                for title, count in counts.items()
                if title not in _WAITING
            }
            all_busy_us = sum(busy_us.values())
            is_over = all_busy_us > cpu_us or not waits
            factor = cpu_us / all_busy_us if all_busy_us and is_over else 1.0
            for title, us in busy_us.items():
                used[title] += us * factor
            for title in waits:
                used[title] += max(0.0, cpu_us - all_busy_us * factor) / len(waits)
        return used


def stage_of(stack: Sequence[str]) -> str:
    """Return the stage of a stack, which has the outermost frame first."""
    for frame in reversed(stack):
        for words, title in _STAGES:
            if words in frame:
                return title
    return _ELSE


@asynccontextmanager
async def _watched(stage: Stage, watch: ProfiledServer) -> AsyncIterator[None]:
    """Record the stacks of the server during the block."""
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if program is None:
        message = "py-spy is not installed; it belongs to the extra dev"
        raise RuntimeError(message)
    process = await asyncio.create_subprocess_exec(
        program,
        *("record", "--threads", "--pid", str(stage.server.pid), "--rate", str(_RATE)),
        *("--duration", "600", "--format", "raw", "--output", str(watch.stacks)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        # py-spy reads the symbols of the process before the first sample.
        await asyncio.sleep(_SETTLE_S)
        before = cpu_us_of_threads(stage.server.pid)
        yield
        after = cpu_us_of_threads(stage.server.pid)
        watch.cpu_us = {
            number: us - before.get(number, 0) for number, us in after.items()
        }
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
        if process.returncode:
            message = f"py-spy failed: {errors.decode().strip()}"
            raise RuntimeError(message)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _saturated(stage: Stage, watch: ProfiledServer) -> float:
    some = users(stage.scale.windows)
    await stage.open(some)
    await stage.warm_up(some, stage.scale.warm_up)
    async with _watched(stage, watch):
        return (await stage.saturate(some, 2 * stage.backlog))["us"]


async def _steady(stage: Stage, watch: ProfiledServer) -> float:
    some = users(stage.scale.windows)
    await stage.open(some)
    await stage.warm_up(some, stage.scale.warm_up)
    async with _watched(stage, watch):
        return (await stage.stream(some, stage.scale.rate))["us"]


async def _fanout(stage: Stage, watch: ProfiledServer) -> float:
    await stage.open(["ann"] * stage.scale.fanout)
    async with _watched(stage, watch):
        return await stage.fan_out(stage.scale.fanout_messages)


async def _connect(stage: Stage, watch: ProfiledServer) -> float:
    some = users(stage.scale.crowd // 2)
    await stage.open(some[:100])
    for user in some:
        stage.windows.token(user)
    async with _watched(stage, watch):
        before_us = stage.server.cpu_us()
        await stage.open(some[100:])
        return (stage.server.cpu_us() - before_us) / (len(some) - 100)


WORKLOADS: Final = {
    "saturated": _saturated,
    "steady": _steady,
    "fanout": _fanout,
    "connect": _connect,
}
