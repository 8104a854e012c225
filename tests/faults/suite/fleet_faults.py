"""The faults of a fleet: the common ones, its networks, the cluster, Redis and HAProxy."""

import asyncio
from collections.abc import Sequence
from functools import partial
from random import Random
from time import monotonic
from typing import Final

from tests.faults.suite.alone_faults import ALONE
from tests.faults.suite.faults import (
    COMMON,
    POINT_TIMEOUT_S,
    Fault,
    freeze_for,
    register_in,
    register_network_faults,
)
from tests.faults.suite.fleet import FleetWorld
from tests.faults.suite.program import FREEZE_BEFORE_APPEND
from tests.faults.suite.proxy import Proxy
from tests.local_node import LocalNode

_READY_TIMEOUT_S: Final = 70.0
_POLL_S: Final = 0.02

FAULTS: Final[list[Fault]] = [*COMMON, *ALONE]


def _in_use(world: FleetWorld) -> list[Proxy]:
    """Return the proxies to nodes that have connections; all if none has."""
    proxies = [proxy for slot in world.slots for proxy in slot.to_broker]
    return [proxy for proxy in proxies if proxy.is_in_use] or proxies


_fault = partial(register_in, FAULTS)

for _between, _subject, _choose in (
    (
        "a bridge and RabbitMQ",
        "wire",
        lambda world, rng: rng.choice(world.slots).to_broker,
    ),
    (
        "a bridge and one node of RabbitMQ",
        "wire",
        lambda world, rng: [rng.choice(_in_use(world))],
    ),
    (
        "a bridge and Redis",
        "store",
        lambda world, rng: [rng.choice(world.slots).to_store],
    ),
    (
        "all bridges and Redis",
        "store",
        lambda world, _: [slot.to_store for slot in world.slots],
    ),
    (
        "HAProxy and a bridge",
        "pages",
        lambda world, rng: [rng.choice(world.slots).to_pages],
    ),
    ("pages and HAProxy", "pages", lambda world, _: [world.to_pages]),
):
    register_network_faults(FAULTS, _between, _subject, _choose, weight=1)


# --- bridges


@_fault("bridges: two killed at once", "bridge", weight=2)
async def kill_two(world: FleetWorld, rng: Random) -> bool:
    """Kill two bridges; the third one takes over all work."""
    slots = rng.sample(list(world.slots), 2)
    return all([await slot.bridge.kill() for slot in slots])


@_fault("bridges: all killed at once", "bridge")
async def kill_all(world: FleetWorld, rng: Random) -> bool:
    """Kill all bridges."""
    await asyncio.sleep(rng.random())
    return all([await slot.bridge.kill() for slot in world.slots])


@_fault("bridges: restarted one after the other", "bridge")
async def roll(world: FleetWorld, rng: Random) -> bool:
    """Restart all bridges like a deployment, each after the previous one is ready."""
    for slot in rng.sample(list(world.slots), len(world.slots)):
        if not await slot.bridge.terminate_and_wait():
            return False
        if not await slot.bridge.wait_until_ready(within_s=_READY_TIMEOUT_S):
            return False
    return True


ROLLS: Final = [fault for fault in FAULTS if fault.inject is roll]


@_fault("bridge: frozen until RabbitMQ drops its connection", "bridge")
async def freeze_long(world: FleetWorld, rng: Random) -> bool:
    """Freeze a bridge until another takes over; it resumes with old deliveries."""
    return await freeze_for(rng.choice(world.slots).bridge, rng.uniform(20, 35))


@_fault(
    "bridge: frozen before an append, another takes its queue",
    "bridge",
    "wire",
    weight=2,
)
async def freeze_before_append(world: FleetWorld, rng: Random) -> bool:
    """Freeze a bridge before an append; it resumes after another has taken its queue."""
    slot = rng.choice(world.slots)
    await slot.bridge.arm(FREEZE_BEFORE_APPEND, count=rng.randint(1, 5))
    deadline_s = monotonic() + POINT_TIMEOUT_S
    while (  # noqa: ASYNC110 - the process deletes the file
        slot.bridge.control.exists() and monotonic() < deadline_s
    ):
        await asyncio.sleep(_POLL_S)
    if not slot.bridge.disarm():
        return False
    try:
        slot.cut_from_broker()
        await asyncio.sleep(rng.uniform(1, 4))
    finally:
        slot.bridge.resume()
        slot.heal_broker()
    return True


# --- the cluster


@_fault("RabbitMQ: two of three nodes killed", "broker")
async def kill_majority(world: FleetWorld, rng: Random) -> bool:
    """Kill two nodes: no queue has a majority, and the third node pauses."""
    return await _kill_nodes(rng.sample(list(world.nodes), 2), rng)


@_fault("RabbitMQ: all nodes killed", "broker")
async def kill_cluster(world: FleetWorld, rng: Random) -> bool:
    """Kill all nodes, like a power failure: the broker loses what it keeps in memory only."""
    return await _kill_nodes(world.nodes, rng)


async def _kill_nodes(nodes: Sequence[LocalNode], rng: Random) -> bool:
    for node in nodes:
        await node.kill()
    await asyncio.sleep(rng.uniform(0, 3))
    async with asyncio.TaskGroup() as tasks:
        for node in nodes:
            tasks.create_task(node.restart())
    return True


@_fault("RabbitMQ: one node cut off from the others", "broker", weight=2)
async def cut_node_off(world: FleetWorld, rng: Random) -> bool:
    """Separate a node from its cluster; until it notices and pauses, its answers are stale."""
    alone, *others = rng.sample(list(world.nodes), len(world.nodes))
    names = [node.name for node in others]
    sides = [(alone, names), *((node, [alone.name]) for node in others)]
    refuse = "erlang:set_cookie(N, cut_off), erlang:disconnect_node(N)"
    try:
        await _at_nodes(sides, refuse)
        await asyncio.sleep(rng.uniform(0, 10))
    finally:
        await _at_nodes(sides, "erlang:set_cookie(N, erlang:get_cookie())")
    return True


async def _at_nodes(
    sides: Sequence[tuple[LocalNode, Sequence[str]]], work: str
) -> None:
    """Evaluate the Erlang expression `work` on each node, for each N of its list."""
    async with asyncio.TaskGroup() as tasks:
        for node, names in sides:
            listed = ", ".join(f"'{name}'" for name in names)
            text = f"lists:foreach(fun(N) -> {work} end, [{listed}])."
            tasks.create_task(node.evaluate(text))


# --- Redis


@_fault("Redis: killed and started", "store", weight=3)
async def kill_redis(world: FleetWorld, rng: Random) -> bool:
    """Kill Redis, whose append-only file is written before each answer."""
    await asyncio.to_thread(world.redis.kill)
    await asyncio.sleep(rng.uniform(0, 3))
    await asyncio.to_thread(world.redis.run)
    return True


@_fault("Redis: stopped and started", "store", weight=2)
async def stop_redis(world: FleetWorld, rng: Random) -> bool:
    """Shut Redis down and start it again, as an upgrade does."""
    await asyncio.to_thread(world.redis.stop)
    await asyncio.sleep(rng.uniform(0, 3))
    await asyncio.to_thread(world.redis.run)
    return True


@_fault("Redis: frozen", "store", weight=2)
async def freeze_redis(world: FleetWorld, rng: Random) -> bool:
    """Freeze Redis: connections stay open without answers."""
    world.redis.pause()
    try:
        await asyncio.sleep(rng.uniform(0.5, 8))
    finally:
        world.redis.resume()
    return True


@_fault("Redis: out of memory", "store", weight=2)
async def fill_redis(world: FleetWorld, rng: Random) -> bool:
    """Set a memory limit that refuses all writes but allows reads."""
    await _command(world, "CONFIG", "SET", "maxmemory", "1")
    try:
        await asyncio.sleep(rng.uniform(0.5, 4))
    finally:
        await _command(world, "CONFIG", "SET", "maxmemory", "0")
    return True


@_fault("Redis: connections closed", "store", weight=2)
async def close_clients(world: FleetWorld, rng: Random) -> bool:
    """Close either the connections of the live feed or all others, a few times."""
    for _ in range(3):
        kind = rng.choice(["normal", "pubsub"])
        await _command(world, "CLIENT", "KILL", "TYPE", kind)
        await asyncio.sleep(rng.uniform(0, 0.5))
    return True


async def _command(world: FleetWorld, *words: str) -> None:
    answer = await asyncio.to_thread(world.redis.command, *words)
    assert not answer.startswith("-"), answer


# --- HAProxy


@_fault("HAProxy: killed and started", "pages")
async def kill_balancer(world: FleetWorld, rng: Random) -> bool:
    """Kill HAProxy: all windows disconnect and reconnect at the same time."""
    await world.balancer.kill()
    await asyncio.sleep(rng.uniform(0, 2))
    await world.balancer.run()
    return True
