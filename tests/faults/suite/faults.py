"""
The faults that one bridge and a fleet have in common. schedule.py decides which happen when.

Each fault is injected, held for a while, and healed. It receives the world and a random
generator of its own, so that a seed repeats the same faults. It returns false if the moment
for it never came (no replay happened in which the bridge could die); then it does not
count. If the world has several of a part, the generator chooses one.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from time import monotonic
from typing import Any, Final

from tests.faults.suite import program
from tests.faults.suite.bridge_process import BridgeProcess
from tests.faults.suite.proxy import Proxy
from tests.faults.suite.world import World

POINT_TIMEOUT_S: Final = 8.0
_POLL_S: Final = 0.02
_BURST_MESSAGES: Final = 60
_BURST_BYTES: Final = 60_000

# Any: a fault of the fleet takes a FleetWorld, one of the single bridge a SingleWorld.
Inject = Callable[[Any, Random], Awaitable[bool]]
Choose = Callable[[Any, Random], Sequence[Proxy]]


@dataclass(frozen=True, slots=True)
class Fault:
    """
    A kind of fault.

    Attributes:
        kind: Its name in the report.
        subjects: The parts it affects; two faults of a round never share a part.
        weight: How often it occurs in a cycle of all faults; cheap faults occur more often.
        inject: Injects the fault and heals it.

    """

    kind: str
    subjects: frozenset[str]
    weight: int
    inject: Inject


COMMON: Final[list[Fault]] = []


def register_in(
    faults: list[Fault], kind: str, *subjects: str, weight: int = 1
) -> Callable[[Inject], Inject]:
    """Return a decorator that adds a function to `faults`."""

    def register(inject: Inject) -> Inject:
        faults.append(Fault(kind, frozenset(subjects), weight, inject))
        return inject

    return register


_fault = partial(register_in, COMMON)


# --- the bridge


@_fault("bridge: kill -9 at a random moment", "bridge", weight=4)
async def kill(world: World, rng: Random) -> bool:
    """Kill a bridge at any point of its work."""
    await asyncio.sleep(rng.random())
    return await rng.choice(world.slots).bridge.kill()


def _kill_at(point: str) -> Inject:
    async def inject(world: World, rng: Random) -> bool:
        bridges = [slot.bridge for slot in world.slots]
        starts = [bridge.starts for bridge in bridges]
        count = rng.randint(1, 40) if point == program.IN_REPLAY else rng.randint(1, 5)
        # Of several bridges, the first that reaches the point dies.
        for bridge in bridges:
            await bridge.arm(point, count=count)
        if point == program.IN_REPLAY:
            world.to_pages.cut()  # reconnecting windows cause replays
        deadline_s = monotonic() + POINT_TIMEOUT_S
        while [bridge.starts for bridge in bridges] == starts:
            if monotonic() > deadline_s:
                break
            await asyncio.sleep(_POLL_S)
        reached = [bridge.disarm() for bridge in bridges]
        return any(reached)

    return inject


for _point in program.CRASH_POINTS:
    _subjects = ("bridge", "pages") if _point == program.IN_REPLAY else ("bridge",)
    _words = _point.replace("_", " ")
    _fault(f"bridge: kill -9 {_words}", *_subjects, weight=2)(_kill_at(_point))


@_fault("bridge: SIGTERM under load", "bridge", weight=2)
async def terminate(world: World, rng: Random) -> bool:
    """Terminate a bridge, as a rolling deployment does; it drains and is restarted."""
    await asyncio.sleep(rng.random())
    return await rng.choice(world.slots).bridge.terminate_and_wait()


@_fault("bridge: SIGHUP with changed settings", "bridge", weight=2)
async def reload(world: World, rng: Random) -> bool:
    """Change the prefetch of a running bridge."""
    slot = rng.choice(world.slots)
    for _ in range(3):
        slot.write_settings(prefetch=rng.choice([1, 7, 50, 500]))
        slot.bridge.send_signal(signal.SIGHUP)
        await asyncio.sleep(rng.uniform(0.2, 0.6))
    slot.write_settings()
    return slot.bridge.send_signal(signal.SIGHUP)


@_fault("bridge: frozen", "bridge")
async def freeze_bridge(world: World, rng: Random) -> bool:
    """Freeze a bridge, like a machine that swaps."""
    return await freeze_for(rng.choice(world.slots).bridge, rng.uniform(1, 7))


async def freeze_for(bridge: BridgeProcess, hold_s: float) -> bool:
    """Stop the process for `hold_s`; false if it does not run."""
    if not bridge.send_signal(signal.SIGSTOP):
        return False
    try:
        await asyncio.sleep(hold_s)
    finally:
        bridge.send_signal(signal.SIGCONT)
    return True


# --- the broker


@_fault("RabbitMQ: stopped and started", "broker")
async def stop_broker(world: World, rng: Random) -> bool:
    """Shut down a node and start it again, as an upgrade does."""
    node = rng.choice(world.nodes)
    await node.shut_down()
    await asyncio.sleep(rng.uniform(0, 2))
    await node.restart()
    return True


@_fault("RabbitMQ: killed and started", "broker")
async def kill_broker(world: World, rng: Random) -> bool:
    """Kill a node, like a power failure."""
    node = rng.choice(world.nodes)
    await asyncio.sleep(rng.random())
    await node.kill()
    await asyncio.sleep(rng.uniform(0, 2))
    await node.restart()
    return True


@_fault("RabbitMQ: frozen", "broker", weight=2)
async def freeze_broker(world: World, rng: Random) -> bool:
    """Freeze a node: connections stay open without answers, sometimes beyond the timeouts."""
    node = rng.choice(world.nodes)
    await node.freeze()
    try:
        await asyncio.sleep(rng.uniform(1, 6))
    finally:
        await node.thaw()
    return True


@_fault("RabbitMQ: connections closed one by one", "broker", weight=2)
async def close_connections(world: World, rng: Random) -> bool:
    """Close each connection, as an operator may do."""
    node = rng.choice(world.nodes)
    pause_ms = rng.randint(10, 300)
    each = f'rabbit_networking:close_connection(P, "fault"), timer:sleep({pause_ms})'
    await node.evaluate(
        f"[begin {each} end || P <- rabbit_networking:connections()], ok."
    )
    return True


@_fault("RabbitMQ: memory alarm on and off", "broker", weight=2)
async def memory_alarm(world: World, rng: Random) -> bool:
    """Set off the memory alarm, which blocks publishing but not consuming."""
    node = rng.choice(world.nodes)
    async with node.memory_alarm():
        await asyncio.sleep(rng.uniform(0.5, 4))
    return True


# --- the network


def register_network_faults(
    faults: list[Fault], between: str, subject: str, choose: Choose, *, weight: int = 3
) -> None:
    """Register the network faults for the proxies that `choose` returns."""
    for name, act, longest_s in (
        ("cut", _cut, 2.0),
        ("frozen", Proxy.freeze, 9.0),
        ("slow", Proxy.slow, 4.0),
        ("halved and cut", Proxy.halve, 1.0),
    ):
        kind = f"network between {between}: {name}"
        inject = _network(act, choose, longest_s)
        faults.append(Fault(kind, frozenset((subject,)), weight, inject))


def _network(act: Callable[[Proxy], None], choose: Choose, longest_s: float) -> Inject:
    async def inject(world: World, rng: Random) -> bool:
        proxies = choose(world, rng)
        await asyncio.sleep(rng.random())
        for proxy in proxies:
            act(proxy)
        try:
            await asyncio.sleep(rng.uniform(0.1, longest_s))
        finally:
            for proxy in proxies:
                proxy.heal()
        return True

    return inject


def _cut(proxy: Proxy) -> None:
    proxy.refuse()
    proxy.cut()


# --- windows


@_fault("windows: pages reloaded", "windows", weight=3)
async def reload_pages(world: World, rng: Random) -> bool:
    """Reload a third of the pages, with or without their position, depending on the kind."""
    plans = world.crowd.plans
    for plan in rng.sample(plans, max(1, len(plans) // 3)):
        await world.crowd.reload(plan)
        await asyncio.sleep(rng.uniform(0, 0.05))
    return True


@_fault("windows: suspended for a while", "windows", weight=3)
async def sleep_pages(world: World, rng: Random) -> bool:
    """Disconnect a third of the windows; their messages wait in the inbox."""
    plans = world.crowd.plans
    sleepers = rng.sample(plans, max(1, len(plans) // 3))
    for plan in sleepers:
        await world.crowd.sleep(plan)
    try:
        await asyncio.sleep(rng.uniform(1, 5))
    finally:
        for plan in sleepers:
            world.crowd.wake(plan)
    return True


@_fault("windows: stop reading under load", "windows", weight=3)
async def stop_reading(world: World, rng: Random) -> bool:
    """Exceed the send buffer of windows that stop reading; they are closed and recover."""
    plans = world.crowd.of_kinds("js", "js-acks", "js-fresh")
    stuck = rng.sample(plans, max(1, len(plans) // 5))
    for plan in stuck:
        world.crowd.js.command("pause", plan.name)
    try:
        for _ in range(_BURST_MESSAGES):
            await world.producers.large[stuck[0].user].publish(body_bytes=_BURST_BYTES)
        await asyncio.sleep(rng.uniform(0, 4))
    finally:
        for plan in stuck:
            world.crowd.js.command("resume", plan.name)
    return True
