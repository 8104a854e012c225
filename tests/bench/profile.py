"""
Where the bridge's time goes, per stage, in microseconds.

py-spy looks at the stacks of a running bridge 400 times a second; each sample counts for
the stage of its innermost frame that belongs to one. The share of a stage times the
measured cost is what it takes.
"""

import asyncio
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.bench.run import World, open_stage, open_world
from tests.bench.servers import KINDS
from tests.bench.works import Scale, Stage, users

# The first that fits, from the innermost frame outwards. Frames read
# `function (file:line)`; what fits nothing counts for its caller.
_STAGES: Final = (
    ("bridge/sockets/transport.py", "windows: carriers, and what they send at once"),
    ("bridge/sockets/rooms.py", "windows: rooms, one frame for all"),
    ("bridge/core/frames.py", "windows: rooms, one frame for all"),
    ("bridge/core/position.py", "windows: rooms, one frame for all"),
    ("bridge/sockets/", "windows: entrance, replay, ticks"),
    ("bridge/broker/frame_reader.py", "in: frames to deliveries"),
    ("bridge/broker/", "in: batches and acks"),
    ("aiormq/", "in: batches and acks"),
    ("bridge/core/message.py", "parse and check"),
    ("bridge/core/properties.py", "parse and check"),
    ("tenacity/", "pump"),
    ("bridge/pump.py", "pump"),
    ("_take (bridge/inbox/sqlite_worker.py", "inbox: waiting for work and for the GIL"),
    ("Worker.submit", "inbox: hand-over between threads"),
    ("Job.", "inbox: hand-over between threads"),
    ("_transact (bridge/inbox/", "inbox: begin, commit"),
    ("bridge/inbox/sqlite_statements.py", "inbox: statements"),
    ("bridge/inbox/", "inbox: the rest"),
    ("bridge/auth/", "tokens"),
    ("jwt/", "tokens"),
    ("engineio/", "engine.io"),
    ("aiohttp/", "aiohttp"),
    ("bridge/metrics.py", "metrics"),
    ("prometheus_client/", "metrics"),
    ("asyncio/runners.py", "event loop: waiting, receiving, sending"),
)
_ELSE: Final = "else"
_RATE: Final = 400
_SETTLE_S: Final = 2.0


async def run(
    servers: Sequence[str] | None,
    works: Sequence[str] | None,
    *,
    tell: Callable[[str], None],
) -> Sequence[str]:
    """
    Profile the bridges at some works, and return the tables.

    Raises:
        RuntimeError: If py-spy is not there or may not look.

    """
    lines: list[str] = []
    async with open_world(tell) as world:
        for name in servers or ("memory", "sqlite"):
            columns = {}
            for work in works or WORKS:
                cost_us, stages = await _profile(world, name, work)
                columns[work] = {
                    stage: share * cost_us for stage, share in stages.items()
                }
                tell(f"{name}, {work}: {cost_us:.1f} µs under the profiler")
            lines += [f"**{KINDS[name].title}**, µs a delivery (a window, at connect):"]
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
    world: World, name: str, work: str
) -> tuple[float, dict[str, float]]:
    output = world.folder / "stacks.txt"
    async with open_stage(world, name, Scale(), seed=0) as stage:
        cost_us = await WORKS[work](stage, output)
    counts: Counter[str] = Counter()
    for line in output.read_text(encoding="utf-8").splitlines():
        stack, _, number = line.rpartition(" ")
        counts[stage_of(stack.split(";"))] += int(number)
    total = counts.total()
    return cost_us, {stage: count / total for stage, count in counts.items()}


def stage_of(stack: Sequence[str]) -> str:
    """Return the stage that a stack, outermost frame first, counts for."""
    for frame in reversed(stack):
        for words, title in _STAGES:
            if words in frame:
                return title
    return _ELSE


@asynccontextmanager
async def _watched(stage: Stage, output: Path) -> AsyncIterator[None]:
    """Note the server's stacks until the block is left."""
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if program is None:
        message = "py-spy is not there: it is one of the tests' packages"
        raise RuntimeError(message)
    process = await asyncio.create_subprocess_exec(
        program,
        *("record", "--pid", str(stage.server.pid), "--rate", str(_RATE)),
        *("--duration", "600", "--format", "raw", "--output", str(output)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        # It reads the symbols of a process before it looks at it.
        await asyncio.sleep(_SETTLE_S)
        yield
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
        if process.returncode:
            message = f"py-spy saw nothing: {errors.decode().strip()}"
            raise RuntimeError(message)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _saturated(stage: Stage, output: Path) -> float:
    some = users(stage.scale.windows)
    await stage.open(some)
    await stage.warm_up(some, stage.scale.warm_up)
    async with _watched(stage, output):
        return (await stage.saturate(some, 2 * stage.backlog))["us"]


async def _steady(stage: Stage, output: Path) -> float:
    some = users(stage.scale.windows)
    await stage.open(some)
    await stage.warm_up(some, stage.scale.warm_up)
    async with _watched(stage, output):
        return (await stage.stream(some, stage.scale.rate))["us"]


async def _fanout(stage: Stage, output: Path) -> float:
    await stage.open(["ann"] * stage.scale.fanout)
    async with _watched(stage, output):
        return await stage.fan_out(stage.scale.fanout_messages)


async def _connect(stage: Stage, output: Path) -> float:
    some = users(stage.scale.crowd // 2)
    await stage.open(some[:100])
    for user in some:
        stage.windows.token(user)
    async with _watched(stage, output):
        before_us = stage.server.cpu_us()
        await stage.open(some[100:])
        return (stage.server.cpu_us() - before_us) / (len(some) - 100)


WORKS: Final = {
    "saturated": _saturated,
    "steady": _steady,
    "fanout": _fanout,
    "connect": _connect,
}
