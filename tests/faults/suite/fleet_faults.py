"""What can happen to a fleet: the common faults, each of its ways, Redis, HAProxy, several at once."""

import asyncio
from collections.abc import Sequence
from functools import partial
from random import Random
from time import monotonic
from typing import Final

from bridge.demo.private_node import LocalNode
from tests.faults.suite.faults import (
    COMMON,
    PLACE_WITHIN_S,
    Fault,
    adds_network_to,
    adds_to,
    freeze_for,
)
from tests.faults.suite.fleet import FleetWorld
from tests.faults.suite.program import FREEZE_BEFORE_APPEND
from tests.faults.suite.proxy import Proxy

_READY_WITHIN_S: Final = 70.0
_LOOK_EACH_S: Final = 0.02

FAULTS: Final[list[Fault]] = [*COMMON]


def _in_use(world: FleetWorld) -> list[Proxy]:
    """Return the ways to nodes that somebody is connected through; all if nobody is."""
    ways = [way for seat in world.seats for way in seat.to_broker]
    return [way for way in ways if way.is_in_use] or ways


_fault = partial(adds_to, FAULTS)

for _between, _subject, _choose in (
    (
        "a bridge and RabbitMQ",
        "wire",
        lambda world, dice: dice.choice(world.seats).to_broker,
    ),
    (
        "a bridge and one node of RabbitMQ",
        "wire",
        lambda world, dice: [dice.choice(_in_use(world))],
    ),
    (
        "a bridge and Redis",
        "store",
        lambda world, dice: [dice.choice(world.seats).to_store],
    ),
    (
        "all bridges and Redis",
        "store",
        lambda world, _: [seat.to_store for seat in world.seats],
    ),
    (
        "HAProxy and a bridge",
        "pages",
        lambda world, dice: [dice.choice(world.seats).to_pages],
    ),
    ("pages and HAProxy", "pages", lambda world, _: [world.to_pages]),
):
    adds_network_to(FAULTS, _between, _subject, _choose, weight=1)


# --- bridges


@_fault("bridges: two killed at a time", "bridge", weight=2)
async def kill_two(world: FleetWorld, dice: Random) -> bool:
    """The third one has everything to do."""
    seats = dice.sample(list(world.seats), 2)
    return all([await seat.bridge.kill() for seat in seats])


@_fault("bridges: all killed at a time", "bridge")
async def kill_all(world: FleetWorld, dice: Random) -> bool:
    """Nobody is there for a moment."""
    await asyncio.sleep(dice.random())
    return all([await seat.bridge.kill() for seat in world.seats])


@_fault("bridges: restarted one after the other", "bridge")
async def roll(world: FleetWorld, dice: Random) -> bool:
    """As a deployment does: the next one goes when the last one is ready again."""
    for seat in dice.sample(list(world.seats), len(world.seats)):
        if not await seat.bridge.ask_to_go():
            return False
        if not await seat.bridge.gets_ready(within_s=_READY_WITHIN_S):
            return False
    return True


ROLLS: Final = [fault for fault in FAULTS if fault.work is roll]


@_fault("bridge: frozen until RabbitMQ gives it up", "bridge")
async def freeze_long(world: FleetWorld, dice: Random) -> bool:
    """Another one goes on with its work; then it wakes up with old deliveries in hand."""
    return await freeze_for(dice.choice(world.seats).bridge, dice.uniform(20, 35))


@_fault(
    "bridge: frozen between taking and storing, its queue given away",
    "bridge",
    "wire",
    weight=2,
)
async def freeze_in_hand(world: FleetWorld, dice: Random) -> bool:
    """Others have gone on behind what it has in hand when it wakes up and stores that."""
    seat = dice.choice(world.seats)
    await seat.bridge.arm(FREEZE_BEFORE_APPEND, count=dice.randint(1, 5))
    deadline_s = monotonic() + PLACE_WITHIN_S
    while (  # noqa: ASYNC110 - a process tells by a file
        seat.bridge.control.exists() and monotonic() < deadline_s
    ):
        await asyncio.sleep(_LOOK_EACH_S)
    if not seat.bridge.disarm():
        return False
    try:
        for way in seat.to_broker:
            way.refuse()
            way.cut()
        await asyncio.sleep(dice.uniform(1, 4))
    finally:
        seat.bridge.wake()
        for way in seat.to_broker:
            way.mend()
    return True


# --- the cluster


@_fault("RabbitMQ: two of three nodes killed", "broker")
async def kill_majority(world: FleetWorld, dice: Random) -> bool:
    """No queue has a majority until one of them is back; the third one pauses."""
    return await _kill_nodes(dice.sample(list(world.nodes), 2), dice)


@_fault("RabbitMQ: all nodes killed", "broker")
async def kill_cluster(world: FleetWorld, dice: Random) -> bool:
    """The power goes: what a broker keeps in memory alone is made anew."""
    return await _kill_nodes(world.nodes, dice)


async def _kill_nodes(nodes: Sequence[LocalNode], dice: Random) -> bool:
    for node in nodes:
        await node.kill()
    await asyncio.sleep(dice.uniform(0, 3))
    async with asyncio.TaskGroup() as tasks:
        for node in nodes:
            tasks.create_task(node.restart())
    return True


@_fault("RabbitMQ: one node cut off from the others", "broker", weight=2)
async def cut_node_off(world: FleetWorld, dice: Random) -> bool:
    """It pauses; what it says until it has noticed may be out of date."""
    alone, *others = dice.sample(list(world.nodes), len(world.nodes))
    names = [node.name for node in others]
    sides = [(alone, names), *((node, [alone.name]) for node in others)]
    refuse = "erlang:set_cookie(N, cut_off), erlang:disconnect_node(N)"
    try:
        await _at_nodes(sides, refuse)
        await asyncio.sleep(dice.uniform(0, 10))
    finally:
        await _at_nodes(sides, "erlang:set_cookie(N, erlang:get_cookie())")
    return True


async def _at_nodes(
    sides: Sequence[tuple[LocalNode, Sequence[str]]], work: str
) -> None:
    """Do at each node, with each N of its list, what `work` says in Erlang."""
    async with asyncio.TaskGroup() as tasks:
        for node, names in sides:
            listed = ", ".join(f"'{name}'" for name in names)
            text = f"lists:foreach(fun(N) -> {work} end, [{listed}])."
            tasks.create_task(node.ctl("eval", text))


# --- Redis


@_fault("Redis: killed and started", "store", weight=3)
async def kill_redis(world: FleetWorld, dice: Random) -> bool:
    """With an append-only file that is written before each answer."""
    await asyncio.to_thread(world.redis.kill)
    await asyncio.sleep(dice.uniform(0, 3))
    await asyncio.to_thread(world.redis.run)
    return True


@_fault("Redis: stopped and started", "store", weight=2)
async def stop_redis(world: FleetWorld, dice: Random) -> bool:
    """In an orderly way, as for an upgrade."""
    await asyncio.to_thread(world.redis.stop)
    await asyncio.sleep(dice.uniform(0, 3))
    await asyncio.to_thread(world.redis.run)
    return True


@_fault("Redis: frozen", "store", weight=2)
async def freeze_redis(world: FleetWorld, dice: Random) -> bool:
    """Connections stay open, nothing answers."""
    world.redis.pause()
    try:
        await asyncio.sleep(dice.uniform(0.5, 8))
    finally:
        world.redis.resume()
    return True


@_fault("Redis: out of memory", "store", weight=2)
async def fill_redis(world: FleetWorld, dice: Random) -> bool:
    """It reads and does not write."""
    await _tell(world, "CONFIG", "SET", "maxmemory", "1")
    try:
        await asyncio.sleep(dice.uniform(0.5, 4))
    finally:
        await _tell(world, "CONFIG", "SET", "maxmemory", "0")
    return True


@_fault("Redis: connections closed", "store", weight=2)
async def close_clients(world: FleetWorld, dice: Random) -> bool:
    """Of one kind or the other, a few times: the feed alone, or all else alone."""
    for _ in range(3):
        kind = dice.choice(["normal", "pubsub"])
        await _tell(world, "CLIENT", "KILL", "TYPE", kind)
        await asyncio.sleep(dice.uniform(0, 0.5))
    return True


async def _tell(world: FleetWorld, *words: str) -> None:
    answer = await asyncio.to_thread(world.redis.command, *words)
    assert not answer.startswith("-"), answer


# --- HAProxy


@_fault("HAProxy: killed and started", "pages")
async def kill_balancer(world: FleetWorld, dice: Random) -> bool:
    """Every window is cut off at once, and comes back at once."""
    await world.balancer.kill()
    await asyncio.sleep(dice.uniform(0, 2))
    await world.balancer.run()
    return True
