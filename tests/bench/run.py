"""One run: a broker, rounds, works, servers one after the other, and what they used."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from bridge.demo.private_node import LocalNode
from tests.bench.machine import machine_facts
from tests.bench.page_load import windows
from tests.bench.publisher import Publisher
from tests.bench.results import Figures, Results
from tests.bench.servers import KINDS, ROOT, Processors, processors, running
from tests.bench.works import WORKS, Scale, Stage

FLOOR: Final = "floor"
# The others are for looking closer.
USUAL_WORKS: Final = ("saturated", "steady", "fanout", "crowd", "few")
_BRIDGES_ALONE: Final = frozenset({"few"})
# What the other works would not tell more of.
_WORKS_BESIDE: Final = {
    "bare": frozenset({"saturated", "steady", "crowd"}),
    "node-each": frozenset({"saturated", "steady"}),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, how often, how much."""

    works: Sequence[str]
    servers: Sequence[str]
    rounds: int
    scale: Scale


@dataclass
class World:
    """What all servers share."""

    broker_url: str
    folder: Path
    pin: Processors


@asynccontextmanager
async def open_world(tell: Callable[[str], None]) -> AsyncIterator[World]:
    """
    Start a broker beside this process; both leave a processor to the servers.

    The folder for stores lies in the checkout: temporary folders are often in memory,
    and a store's cost is its disk's.
    """
    pin = processors()
    before = os.sched_getaffinity(0)
    if pin.others != "any":
        os.sched_setaffinity(0, {int(number) for number in pin.others.split(",")})
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=build, prefix="bench-") as folder:
            async with LocalNode.start(progress=tell) as node:
                yield World(node.url, Path(folder), pin)
    finally:
        os.sched_setaffinity(0, before)


async def run(plan: Plan, world: World, *, tell: Callable[[str], None]) -> Results:
    """
    Do all works of `plan`, the servers in turn within each, in each round.

    Cancellation: ends what was started; Ctrl-C is heard within some seconds.
    """
    facts = await asyncio.to_thread(machine_facts, world.pin)
    results = Results(facts, asdict(plan.scale))
    for round_ in range(plan.rounds):
        try:
            await _round(world, plan, round_, results, tell)
        except RuntimeError as exc:
            if not round_:
                raise
            # A quarter of an hour is not thrown away for the last minutes.
            results.forget(round_)
            tell(f"round {round_ + 1} failed, the rounds before it are told: {exc}")
            break
    return results


async def _round(
    world: World,
    plan: Plan,
    round_: int,
    results: Results,
    tell: Callable[[str], None],
) -> None:
    for work in plan.works:
        for name in _servers(plan, work):
            figures = await _measure(world, work, name, plan.scale, round_)
            results.note(round_, work, name, figures)
            told = ", ".join(f"{k} {v:,.2f}" for k, v in figures.items())
            tell(f"round {round_ + 1} of {plan.rounds}, {work}, {name}: {told}")


def _servers(plan: Plan, work: str) -> Sequence[str]:
    servers = [
        name
        for name in plan.servers
        if (KINDS[name].inbox or work not in _BRIDGES_ALONE)
        and work in _WORKS_BESIDE.get(name, plan.works)
    ]
    return [*servers, FLOOR] if work == "fanout" else servers


async def _measure(
    world: World, work: str, name: str, scale: Scale, round_: int
) -> Figures:
    if name == FLOOR:
        return await measure_floor(world.pin, scale)
    async with open_stage(world, name, scale, seed=round_) as stage:
        return await WORKS[work](stage)


@asynccontextmanager
async def open_stage(
    world: World, name: str, scale: Scale, *, seed: int
) -> AsyncIterator[Stage]:
    """Start a server and windows; both are gone when the block is left."""
    kind = KINDS[name]
    async with (
        windows(world.pin.others) as some,
        running(
            kind, broker_url=world.broker_url, folder=world.folder, pin=world.pin
        ) as server,
    ):
        with closing(Publisher(world.broker_url)) as publisher:
            # Of a work that failed.
            publisher.purge(kind.names.inbound_queue())
            yield Stage(server, some, publisher, scale, seed)


async def measure_floor(pin: Processors, scale: Scale) -> Figures:
    """Measure the bare send of a frame to one of many windows."""
    messages = scale.fanout_messages
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.bench.pinned", pin.server),
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
