"""What can happen to one bridge: the common faults, its two ways, and its store."""

import asyncio
from functools import partial
from random import Random
from typing import Final

from tests.faults.suite.faults import COMMON, Fault, adds_network_to, adds_to
from tests.faults.suite.single import LoneWorld

FAULTS: Final[list[Fault]] = [*COMMON]
_fault = partial(adds_to, FAULTS)

adds_network_to(
    FAULTS, "bridge and RabbitMQ", "wire", lambda world, _: world.seats[0].to_broker
)
adds_network_to(FAULTS, "pages and bridge", "pages", lambda world, _: [world.to_pages])


@_fault("store: disk full", "store", weight=2)
async def fill_disk(world: LoneWorld, dice: Random) -> bool:
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
async def limit_files(world: LoneWorld, dice: Random) -> bool:
    """A limit of the process: another error than a full disk."""
    bridge = world.seats[0].bridge
    pid = bridge.pid
    if pid is None or not world.store.file.exists():
        return False
    world.store.limit_files(pid)
    try:
        await asyncio.sleep(dice.uniform(0.5, 4))
    finally:
        if bridge.pid == pid:
            world.store.unlimit_files(pid)
    return bridge.pid == pid


@_fault("store: locked by somebody else", "store", weight=2)
async def lock(world: LoneWorld, dice: Random) -> bool:
    """As by a backup or an operator's tool. A bridge that starts just then waits."""
    return await world.store.lock(dice.uniform(0.5, 5))


@_fault("store: folder cannot be written at the start", "store", "bridge")
async def take_away(world: LoneWorld, dice: Random) -> bool:
    """It starts, waits, and goes on by itself."""
    bridge = world.seats[0].bridge
    await bridge.kill(stays_away=True)
    world.store.take_away()
    bridge.allow()
    try:
        await asyncio.sleep(dice.uniform(1, 3))
    finally:
        world.store.give_back()
    return True
