"""
Each fault: put in, held for a while, mended. Which ones, when and how is in schedule.py.

A fault gets the world and dice of its own, so that the same seed does the same again. It
returns false if its moment never came (nothing was replayed when it was to die in a
replay): then it does not count. Here are those that hit one bridge as well as a fleet;
where there are several of a part, the dice choose one.
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

PLACE_WITHIN_S: Final = 8.0
_LOOK_EACH_S: Final = 0.02
_BURST_MESSAGES: Final = 60
_BURST_BYTES: Final = 60_000

# The world is the one of its own scene: what hits a fleet wants a fleet.
Work = Callable[[Any, Random], Awaitable[bool]]
Choose = Callable[[Any, Random], Sequence[Proxy]]


@dataclass(frozen=True, slots=True)
class Fault:
    """
    A kind of fault.

    Attributes:
        kind: What it is called in the report.
        subjects: What it needs for itself: two faults of a round never share one.
        weight: How many of it are in a deck: cheap ones come oftener.
        work: Does it, and mends it.

    """

    kind: str
    subjects: frozenset[str]
    weight: int
    work: Work


COMMON: Final[list[Fault]] = []


def adds_to(
    faults: list[Fault], kind: str, *subjects: str, weight: int = 1
) -> Callable[[Work], Work]:
    """Register a function as the work of a kind of fault."""

    def register(work: Work) -> Work:
        faults.append(Fault(kind, frozenset(subjects), weight, work))
        return work

    return register


_fault = partial(adds_to, COMMON)


# --- the bridge


@_fault("bridge: kill -9 at a random moment", "bridge", weight=4)
async def kill(world: World, dice: Random) -> bool:
    """Whatever it is doing."""
    await asyncio.sleep(dice.random())
    return await dice.choice(world.seats).bridge.kill()


def _kill_at(place: str) -> Work:
    async def work(world: World, dice: Random) -> bool:
        bridges = [seat.bridge for seat in world.seats]
        starts = [bridge.starts for bridge in bridges]
        count = (
            dice.randint(1, 40) if place == program.IN_REPLAY else dice.randint(1, 5)
        )
        # Of several bridges the first that gets there dies.
        for bridge in bridges:
            await bridge.arm(place, count=count)
        if place == program.IN_REPLAY:
            world.to_pages.cut()  # so that there is something to replay
        deadline_s = monotonic() + PLACE_WITHIN_S
        while [bridge.starts for bridge in bridges] == starts:
            if monotonic() > deadline_s:
                break
            await asyncio.sleep(_LOOK_EACH_S)
        reached = [bridge.disarm() for bridge in bridges]
        return any(reached)

    return work


for _place in program.PLACES:
    _subjects = ("bridge", "pages") if _place == program.IN_REPLAY else ("bridge",)
    _words = _place.replace("_", " ")
    _fault(f"bridge: kill -9 {_words}", *_subjects, weight=2)(_kill_at(_place))


@_fault("bridge: SIGTERM under load", "bridge", weight=2)
async def terminate(world: World, dice: Random) -> bool:
    """It drains and comes back, as in a rolling deploy."""
    await asyncio.sleep(dice.random())
    return await dice.choice(world.seats).bridge.ask_to_go()


@_fault("bridge: SIGHUP with changed settings", "bridge", weight=2)
async def reload(world: World, dice: Random) -> bool:
    """Prefetch changes while messages flow."""
    seat = dice.choice(world.seats)
    for _ in range(3):
        seat.write_settings(prefetch=dice.choice([1, 7, 50, 500]))
        seat.bridge.send_signal(signal.SIGHUP)
        await asyncio.sleep(dice.uniform(0.2, 0.6))
    seat.write_settings()
    return seat.bridge.send_signal(signal.SIGHUP)


@_fault("bridge: frozen", "bridge")
async def freeze_bridge(world: World, dice: Random) -> bool:
    """As a machine that swaps."""
    return await freeze_for(dice.choice(world.seats).bridge, dice.uniform(1, 7))


async def freeze_for(bridge: BridgeProcess, hold_s: float) -> bool:
    """Stop its clock; false if it does not run."""
    if not bridge.send_signal(signal.SIGSTOP):
        return False
    try:
        await asyncio.sleep(hold_s)
    finally:
        bridge.send_signal(signal.SIGCONT)
    return True


# --- the broker


@_fault("RabbitMQ: stopped and started", "broker")
async def stop_broker(world: World, dice: Random) -> bool:
    """In an orderly way, as for an upgrade."""
    node = dice.choice(world.nodes)
    await node.shut_down()
    await asyncio.sleep(dice.uniform(0, 2))
    await node.restart()
    return True


@_fault("RabbitMQ: killed and started", "broker")
async def kill_broker(world: World, dice: Random) -> bool:
    """As a power cut."""
    node = dice.choice(world.nodes)
    await asyncio.sleep(dice.random())
    await node.kill()
    await asyncio.sleep(dice.uniform(0, 2))
    await node.restart()
    return True


@_fault("RabbitMQ: frozen", "broker", weight=2)
async def freeze_broker(world: World, dice: Random) -> bool:
    """Connections stay open, nothing answers; sometimes for longer than a call may take."""
    node = dice.choice(world.nodes)
    await node.freeze()
    try:
        await asyncio.sleep(dice.uniform(1, 6))
    finally:
        await node.thaw()
    return True


@_fault("RabbitMQ: connections closed one by one", "broker", weight=2)
async def close_connections(world: World, dice: Random) -> bool:
    """As an operator may do at any time."""
    node = dice.choice(world.nodes)
    pause_ms = dice.randint(10, 300)
    each = f'rabbit_networking:close_connection(P, "fault"), timer:sleep({pause_ms})'
    await node.ctl(
        "eval", f"[begin {each} end || P <- rabbit_networking:connections()], ok."
    )
    return True


@_fault("RabbitMQ: memory alarm on and off", "broker", weight=2)
async def memory_alarm(world: World, dice: Random) -> bool:
    """Publishing is blocked, consuming is not."""
    node = dice.choice(world.nodes)
    await node.ctl("set_vm_memory_high_watermark", "0.0001")
    try:
        await asyncio.sleep(dice.uniform(0.5, 4))
    finally:
        await node.ctl("set_vm_memory_high_watermark", "0.7")
    return True


# --- the network


def adds_network_to(
    faults: list[Fault], between: str, subject: str, choose: Choose, *, weight: int = 3
) -> None:
    """Register all that can go wrong on the ways that `choose` returns."""
    for name, act, longest_s in (
        ("cut", _cut, 2.0),
        ("frozen", Proxy.freeze, 9.0),
        ("slow", Proxy.slow, 4.0),
        ("halved and cut", Proxy.halve, 1.0),
    ):
        kind = f"network between {between}: {name}"
        work = _network(act, choose, longest_s)
        faults.append(Fault(kind, frozenset((subject,)), weight, work))


def _network(act: Callable[[Proxy], None], choose: Choose, longest_s: float) -> Work:
    async def work(world: World, dice: Random) -> bool:
        ways = choose(world, dice)
        await asyncio.sleep(dice.random())
        for way in ways:
            act(way)
        try:
            await asyncio.sleep(dice.uniform(0.1, longest_s))
        finally:
            for way in ways:
                way.mend()
        return True

    return work


def _cut(way: Proxy) -> None:
    way.refuse()
    way.cut()


# --- windows


@_fault("windows: pages loaded anew", "windows", weight=3)
async def reload_pages(world: World, dice: Random) -> bool:
    """A third of them, each with its place, or without if that is its kind."""
    plans = world.crowd.plans
    for plan in dice.sample(plans, max(1, len(plans) // 3)):
        await world.crowd.reload(plan)
        await asyncio.sleep(dice.uniform(0, 0.05))
    return True


@_fault("windows: asleep for a while", "windows", weight=3)
async def sleep_pages(world: World, dice: Random) -> bool:
    """Their messages wait for them."""
    plans = world.crowd.plans
    sleepers = dice.sample(plans, max(1, len(plans) // 3))
    for plan in sleepers:
        await world.crowd.sleep(plan)
    try:
        await asyncio.sleep(dice.uniform(1, 5))
    finally:
        for plan in sleepers:
            world.crowd.wake(plan)
    return True


@_fault("windows: stop reading while much is sent", "windows", weight=3)
async def stop_reading(world: World, dice: Random) -> bool:
    """More than may wait for one window, so that it is closed and recovers."""
    plans = world.crowd.named("js", "js-acks", "js-fresh")
    stuck = dice.sample(plans, max(1, len(plans) // 5))
    for plan in stuck:
        world.crowd.js.command("pause", plan.name)
    try:
        for _ in range(_BURST_MESSAGES):
            await world.workers.large[stuck[0].user].publish(body_bytes=_BURST_BYTES)
        await asyncio.sleep(dice.uniform(0, 4))
    finally:
        for plan in stuck:
            world.crowd.js.command("resume", plan.name)
    return True
