"""The faults of one bridge: the common ones, its two networks, and its store."""

import asyncio
from functools import partial
from random import Random
from typing import Final

from tests.faults.suite.alone_faults import ALONE
from tests.faults.suite.faults import (
    COMMON,
    Fault,
    register_in,
    register_network_faults,
)
from tests.faults.suite.single import SingleWorld

FAULTS: Final[list[Fault]] = [*COMMON, *ALONE]
_fault = partial(register_in, FAULTS)

register_network_faults(
    FAULTS, "bridge and RabbitMQ", "wire", lambda world, _: world.slots[0].to_broker
)
register_network_faults(
    FAULTS, "pages and bridge", "pages", lambda world, _: [world.to_pages]
)


@_fault("store: disk full", "store", weight=2)
async def fill_disk(world: SingleWorld, rng: Random) -> bool:
    """Fill the disk completely; without root, limit the process's file size instead."""
    if not world.store.is_own_disk:
        return await limit_files(world, rng)
    try:
        await asyncio.to_thread(world.store.fill)
        await asyncio.sleep(rng.uniform(0.5, 4))
    finally:
        world.store.free_space()
    return True


@_fault("store: files may not grow", "store", "bridge")
async def limit_files(world: SingleWorld, rng: Random) -> bool:
    """Limit the file size of the process, which causes another error than a full disk."""
    bridge = world.slots[0].bridge
    pid = bridge.pid
    if pid is None or not world.store.file.exists():
        return False
    world.store.limit_files(pid)
    try:
        await asyncio.sleep(rng.uniform(0.5, 4))
    finally:
        if bridge.pid == pid:
            world.store.unlimit_files(pid)
    return bridge.pid == pid


@_fault("store: locked by another program", "store", weight=2)
async def lock(world: SingleWorld, rng: Random) -> bool:
    """Lock the database, as a backup does. A bridge that starts meanwhile waits."""
    return await world.store.lock(rng.uniform(0.5, 5))


@_fault("store: folder not writable at the start", "store", "bridge")
async def start_on_unusable_store(world: SingleWorld, rng: Random) -> bool:
    """Start the bridge on an unusable store; it waits and recovers."""
    bridge = world.slots[0].bridge
    await bridge.kill(keep_down=True)
    world.store.make_unusable()
    bridge.allow_start()
    try:
        await asyncio.sleep(rng.uniform(1, 3))
    finally:
        world.store.make_usable()
    return True
