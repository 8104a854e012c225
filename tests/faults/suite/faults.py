"""
Each fault: put in, held for a while, mended. Which ones, when and how is in schedule.py.

A fault gets the world and dice of its own, so that the same seed does the same again. It
returns false if its moment never came (nothing was replayed when it was to die in a
replay): then it does not count.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from time import monotonic
from typing import Final

from tests.faults.suite import program
from tests.faults.suite.proxy import Proxy
from tests.faults.suite.world import World

_PLACE_WITHIN_S: Final = 8.0
_LOOK_EACH_S: Final = 0.02
_BURST_MESSAGES: Final = 60
_BURST_BYTES: Final = 60_000

Work = Callable[[World, Random], Awaitable[bool]]


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


FAULTS: list[Fault] = []


def _fault(kind: str, *subjects: str, weight: int = 1) -> Callable[[Work], Work]:
    def register(work: Work) -> Work:
        FAULTS.append(Fault(kind, frozenset(subjects), weight, work))
        return work

    return register


# --- the bridge


@_fault("bridge: kill -9 at a random moment", "bridge", weight=4)
async def kill(world: World, dice: Random) -> bool:
    """Whatever it is doing."""
    await asyncio.sleep(dice.random())
    return await world.bridge.kill()


def _kill_at(place: str) -> Work:
    async def work(world: World, dice: Random) -> bool:
        starts = world.bridge.starts
        count = (
            dice.randint(1, 40) if place == program.IN_REPLAY else dice.randint(1, 5)
        )
        await world.bridge.arm(place, count=count)
        if place == program.IN_REPLAY:
            world.to_pages.cut()  # so that there is something to replay
        deadline_s = monotonic() + _PLACE_WITHIN_S
        while world.bridge.starts == starts:
            if monotonic() > deadline_s:
                return world.bridge.disarm()
            await asyncio.sleep(_LOOK_EACH_S)
        return True

    return work


for _place in program.PLACES:
    _subjects = ("bridge", "pages") if _place == program.IN_REPLAY else ("bridge",)
    _words = _place.replace("_", " ")
    _fault(f"bridge: kill -9 {_words}", *_subjects, weight=2)(_kill_at(_place))


@_fault("bridge: SIGTERM under load", "bridge", weight=2)
async def terminate(world: World, dice: Random) -> bool:
    """It drains and comes back, as in a rolling deploy."""
    await asyncio.sleep(dice.random())
    return await world.bridge.ask_to_go()


@_fault("bridge: SIGHUP with changed settings", "bridge", weight=2)
async def reload(world: World, dice: Random) -> bool:
    """Prefetch changes while messages flow."""
    for _ in range(3):
        world.write_settings(prefetch=dice.choice([1, 7, 50, 500]))
        world.bridge.send_signal(signal.SIGHUP)
        await asyncio.sleep(dice.uniform(0.2, 0.6))
    world.write_settings()
    return world.bridge.send_signal(signal.SIGHUP)


@_fault("bridge: frozen", "bridge")
async def freeze_bridge(world: World, dice: Random) -> bool:
    """As a machine that swaps."""
    if not world.bridge.send_signal(signal.SIGSTOP):
        return False
    try:
        await asyncio.sleep(dice.uniform(1, 7))
    finally:
        world.bridge.send_signal(signal.SIGCONT)
    return True


# --- the broker


@_fault("RabbitMQ: stopped and started", "broker")
async def stop_broker(world: World, dice: Random) -> bool:
    """In an orderly way, as for an upgrade."""
    await world.node.shut_down()
    await asyncio.sleep(dice.uniform(0, 2))
    await world.node.restart()
    return True


@_fault("RabbitMQ: killed and started", "broker")
async def kill_broker(world: World, dice: Random) -> bool:
    """As a power cut."""
    await asyncio.sleep(dice.random())
    await world.node.kill()
    await asyncio.sleep(dice.uniform(0, 2))
    await world.node.restart()
    return True


@_fault("RabbitMQ: frozen", "broker", weight=2)
async def freeze_broker(world: World, dice: Random) -> bool:
    """Connections stay open, nothing answers; sometimes for longer than a call may take."""
    await world.node.freeze()
    try:
        await asyncio.sleep(dice.uniform(1, 6))
    finally:
        await world.node.thaw()
    return True


@_fault("RabbitMQ: connections closed one by one", "broker", weight=2)
async def close_connections(world: World, dice: Random) -> bool:
    """As an operator may do at any time."""
    pause_ms = dice.randint(10, 300)
    each = f'rabbit_networking:close_connection(P, "fault"), timer:sleep({pause_ms})'
    await world.node.ctl(
        "eval", f"[begin {each} end || P <- rabbit_networking:connections()], ok."
    )
    return True


@_fault("RabbitMQ: memory alarm on and off", "broker", weight=2)
async def memory_alarm(world: World, dice: Random) -> bool:
    """Publishing is blocked, consuming is not."""
    await world.node.ctl("set_vm_memory_high_watermark", "0.0001")
    try:
        await asyncio.sleep(dice.uniform(0.5, 4))
    finally:
        await world.node.ctl("set_vm_memory_high_watermark", "0.7")
    return True


# --- the network


def _network(act: Callable[[Proxy], None], which: str, longest_s: float) -> Work:
    async def work(world: World, dice: Random) -> bool:
        proxy = world.to_pages if which == "pages" else world.to_broker
        await asyncio.sleep(dice.random())
        act(proxy)
        try:
            await asyncio.sleep(dice.uniform(0.1, longest_s))
        finally:
            proxy.mend()
        return True

    return work


def _cut(proxy: Proxy) -> None:
    proxy.refuse()
    proxy.cut()


for _which, _between in (
    ("wire", "bridge and RabbitMQ"),
    ("pages", "pages and bridge"),
):
    for _name, _act, _longest_s in (
        ("cut", _cut, 2.0),
        ("frozen", Proxy.freeze, 9.0),
        ("slow", Proxy.slow, 4.0),
        ("halved and cut", Proxy.halve, 1.0),
    ):
        _fault(f"network between {_between}: {_name}", _which, weight=3)(
            _network(_act, _which, _longest_s)
        )


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


# --- the store


@_fault("store: disk full", "store", weight=2)
async def fill_disk(world: World, dice: Random) -> bool:
    """Not one free byte; without root, no file may grow."""
    if not world.store.is_own_disk:
        return await limit_files(world, dice)
    try:
        await asyncio.to_thread(world.store.fill)
        await asyncio.sleep(dice.uniform(0.5, 4))
    finally:
        world.store.make_room()
    return True


@_fault("store: files may not grow", "store", "bridge")
async def limit_files(world: World, dice: Random) -> bool:
    """A limit of the process: another error than a full disk."""
    pid = world.bridge.pid
    if pid is None or not world.store.file.exists():
        return False
    world.store.limit_files(pid)
    try:
        await asyncio.sleep(dice.uniform(0.5, 4))
    finally:
        if world.bridge.pid == pid:
            world.store.unlimit_files(pid)
    return world.bridge.pid == pid


@_fault("store: locked by somebody else", "store", weight=2)
async def lock(world: World, dice: Random) -> bool:
    """As by a backup or an operator's tool. A bridge that starts just then waits."""
    return await world.store.lock(dice.uniform(0.5, 5))


@_fault("store: folder cannot be written at the start", "store", "bridge")
async def take_away(world: World, dice: Random) -> bool:
    """It starts, waits, and goes on by itself."""
    await world.bridge.kill(stays_away=True)
    world.store.take_away()
    world.bridge.allow()
    try:
        await asyncio.sleep(dice.uniform(1, 3))
    finally:
        world.store.give_back()
    return True
