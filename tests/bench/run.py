"""One run: rounds of workloads on each server, and the resources that the servers used."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tests.bench.machine import machine_facts
from tests.bench.publisher import RawPublisher
from tests.bench.results import Figures, Results
from tests.bench.servers import (
    ROOT,
    SERVER_KINDS,
    Processors,
    ServerKind,
    processors,
    running,
)
from tests.bench.window_process import windows
from tests.bench.workloads import REQUEST_EVENT, WORKLOADS, Scale, Stage
from tests.local_node import LocalNode

FLOOR: Final = "floor"
# The others are for closer examination.
DEFAULT_WORKLOADS: Final = (
    *("saturated", "receipts", "steady", "fanout", "crowd", "few", "requests"),
)
ALL_CORES_WORKLOADS: Final = ("saturated", "steady")
_BRIDGES_ONLY: Final = frozenset({"few"})
# Workloads that only some servers know, and what these need for it.
_SERVERS_OF: Final = {
    "requests": frozenset({"memory", "node"}),
    "receipts": frozenset({"memory", "sqlite", "node", "bare"}),
}
_SETTINGS_OF: Final = {
    "requests": {"BRIDGE_PAGE_EVENTS": REQUEST_EVENT, "EVENT": REQUEST_EVENT}
}
# Servers that only some workloads measure.
_WORKLOADS_OF: Final = {
    "bare": frozenset({"saturated", "receipts", "steady", "crowd"}),
    "node-each": frozenset({"saturated", "steady"}),
}


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """Workloads, servers, rounds and scale of a run."""

    works: Sequence[str]
    servers: Sequence[str]
    rounds: int
    scale: Scale


@dataclass
class BenchWorld:
    """The broker, the folder and the processors that all servers share."""

    broker_url: str
    folder: Path
    pin: Processors


@asynccontextmanager
async def open_world(
    report: Callable[[str], None], *, is_pinned: bool = True
) -> AsyncIterator[BenchWorld]:
    """
    Start a broker, and pin it and this process to processors that the servers do not use.

    Unless `is_pinned`, all share all processors.

    The folder for stores is in the checkout: temporary folders are often in memory, but the
    cost of a store depends on its disk.
    """
    pin = processors() if is_pinned else Processors("any", "any")
    before = os.sched_getaffinity(0)
    if pin.others != "any":
        os.sched_setaffinity(0, {int(number) for number in pin.others.split(",")})
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=build, prefix="bench-") as folder:
            async with LocalNode.start(progress=report) as node:
                yield BenchWorld(node.url, Path(folder), pin)
    finally:
        os.sched_setaffinity(0, before)


async def run(
    plan: BenchPlan, world: BenchWorld, *, report: Callable[[str], None]
) -> Results:
    """
    Measure all workloads of `plan` on each server, in each round.

    Cancellation: ends all processes; Ctrl-C may take some seconds.
    """
    facts = await asyncio.to_thread(machine_facts, world.pin)
    results = Results(facts, asdict(plan.scale))
    for round_ in range(plan.rounds):
        try:
            await _round(world, plan, round_, results, report)
        except RuntimeError as exc:
            if not round_:
                raise
            # Keep the complete rounds: each takes several minutes.
            results.forget(round_)
            report(f"round {round_ + 1} failed, earlier rounds are reported: {exc}")
            break
    return results


async def _round(
    world: BenchWorld,
    plan: BenchPlan,
    round_: int,
    results: Results,
    report: Callable[[str], None],
) -> None:
    for work in plan.works:
        for name in _servers(plan, work):
            figures = await _measure(world, work, name, plan.scale, round_)
            results.note(round_, work, name, figures)
            shown = ", ".join(f"{k} {v:,.2f}" for k, v in figures.items())
            report(f"round {round_ + 1} of {plan.rounds}, {work}, {name}: {shown}")


def _servers(plan: BenchPlan, work: str) -> Sequence[str]:
    servers = [
        name
        for name in plan.servers
        if (SERVER_KINDS[name].inbox or work not in _BRIDGES_ONLY)
        and work in _WORKLOADS_OF.get(name, plan.works)
        and name in _SERVERS_OF.get(work, plan.servers)
    ]
    return [*servers, FLOOR] if work == "fanout" else servers


async def _measure(
    world: BenchWorld, work: str, name: str, scale: Scale, round_: int
) -> Figures:
    if name == FLOOR:
        return await measure_floor(world.pin, scale)
    settings = _SETTINGS_OF.get(work, {})
    kind = SERVER_KINDS[name]
    async with open_stage(world, kind, scale, seed=round_, settings=settings) as stage:
        return await WORKLOADS[work](stage)


@asynccontextmanager
async def open_stage(
    world: BenchWorld,
    kind: ServerKind,
    scale: Scale,
    *,
    seed: int,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Stage]:
    """Start a server and the windows' process; end both at the end of the block."""
    async with (
        windows(world.pin.others) as some,
        running(
            kind,
            broker_url=world.broker_url,
            folder=world.folder,
            pin=world.pin,
            settings=settings,
        ) as server,
    ):
        with closing(RawPublisher(world.broker_url)) as publisher:
            # Messages of an earlier workload that failed.
            publisher.purge(kind.names.inbound_queue())
            yield Stage(server, some, publisher, scale, seed, world.broker_url)


async def measure_floor(pin: Processors, scale: Scale) -> Figures:
    """Measure the bare `send` of a frame to one of many windows."""
    messages = scale.fanout_messages
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.bench.run_pinned", pin.server),
        *(sys.executable, "-m", "tests.bench.floor"),
        *map(str, (scale.fanout, messages, scale.fanout_rate)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with windows(pin.others) as some:
            port = int((await process.stdout.readline()).split()[1])
            await some.open(port, ["ann"] * scale.fanout, syncs=False)
            process.stdin.write(b"\n")
            us = float(await process.stdout.readline())
            await some.wait("events", messages * scale.fanout)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return {"us": us}
