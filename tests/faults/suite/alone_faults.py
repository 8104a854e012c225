"""
Faults that are alone in their round.

Some must not hold up any message: they publish probes and expect them while the fault lasts,
because a bridge that continues only after the fault breaks the promise as well. The others
need windows, or a clock, that no second fault changes.
"""

import asyncio
from functools import partial
from itertools import cycle, islice
from random import Random
from time import monotonic
from typing import Final

from tests.faults.suite.bridge_process import BridgeProcess
from tests.faults.suite.faults import Fault, register_in
from tests.faults.suite.first_start import FirstStart
from tests.faults.suite.world import CLOCK_JUMP_S, World

_SUBJECTS: Final = ("bridge", "broker", "wire", "store", "pages", "windows")
_POLL_S: Final = 0.05
_LOGGED_MESSAGES: Final = 40  # of each bridge: more lines than its pipe holds
_FULL_PIPES_WITHIN_S: Final = 20.0
_INVALID_MESSAGES: Final = 6
_ANSWERS: Final = 8
_ANSWERS_WITHIN_S: Final = 15.0
_SLEEPING_BYTES: Final = 3000
_KILL_SHARE: Final = 0.4

ALONE: Final[list[Fault]] = []
_fault = partial(register_in, ALONE)


@_fault("bridge: first start under load, and its queue deleted", *_SUBJECTS)
async def first_start(world: World, rng: Random) -> bool:
    """Start a bridge in a new namespace while producers publish; delete its queue later."""
    async with FirstStart.open(world, rng) as first:
        if await first.start_bridge() and await first.delete_queue():
            first.close_windows()
    return True


@_fault("bridge: log pipe without a reader", *_SUBJECTS)
async def stop_reading_logs(world: World, rng: Random) -> bool:
    """Fill the log pipes of all bridges, whose reader has stopped."""
    bridges = [slot.bridge for slot in world.slots]
    numbers: dict[str, int] = {}
    try:
        if not all(bridge.stop_reading_log() for bridge in bridges):
            return False
        await _publish_invalid(world, rng, _LOGGED_MESSAGES * len(bridges))
        # Before that, a bridge that writes its log in the loop would deliver the probes too.
        if not await _fill_log_pipes(bridges):
            return False
        await world.publish_probes(numbers)
        await world.expect_probes(numbers)
    finally:
        for bridge in bridges:
            bridge.resume_reading_log()
    return True


async def _fill_log_pipes(bridges: list[BridgeProcess]) -> bool:
    """Wait until the log pipes of the bridges are full; false if one does not fill up."""
    deadline_s = monotonic() + _FULL_PIPES_WITHIN_S
    while not all(bridge.has_full_log_pipe() for bridge in bridges):
        if monotonic() > deadline_s:
            return False
        await asyncio.sleep(_POLL_S)
    return True


@_fault("RabbitMQ: memory alarm with invalid messages in the queues", *_SUBJECTS)
async def alarm_with_invalid_messages(world: World, rng: Random) -> bool:
    """Set off the memory alarm before the bridges take invalid messages from the queues."""
    node = rng.choice(world.nodes)
    numbers: dict[str, int] = {}
    try:
        try:
            for slot in world.slots:
                slot.cut_from_broker()
            await _publish_invalid(world, rng, _INVALID_MESSAGES)
            await world.publish_probes(numbers)
            await node.begin_memory_alarm()
        finally:
            for slot in world.slots:
                slot.heal_broker()
        await world.expect_probes(numbers)
        await asyncio.sleep(rng.uniform(0, 5))  # the dead letters wait
    finally:
        await node.end_memory_alarm()
    return True


async def _publish_invalid(world: World, rng: Random, count: int) -> None:
    users = rng.sample(world.users, min(count, len(world.users)))
    for user in islice(cycle(users), count):
        await world.producers.large[user].publish(
            body_bytes=rng.randrange(50), is_bad=True
        )


@_fault("windows: poll answers cut in the middle", *_SUBJECTS, weight=2)
async def cut_poll_answers(world: World, rng: Random) -> bool:
    """Cut poll answers with messages; some of their pages come back without a position."""
    proxy = world.to_pages
    proxy.cut_answers(rng.randint(1, _ANSWERS))
    deadline_s = monotonic() + _ANSWERS_WITHIN_S
    try:
        while proxy.is_cutting_answers:
            if monotonic() > deadline_s:
                return False
            await asyncio.sleep(_POLL_S)
    finally:
        proxy.heal()
    return True


@_fault(
    "windows: suspended with an open connection, then discarded", *_SUBJECTS, weight=2
)
async def discard_sleeping_pages(world: World, rng: Random) -> bool:
    """Stop reading, like a machine that sleeps; then discard the pages and open them again."""
    crowd = world.crowd
    sleepers = crowd.of_kinds("js-discard")
    for plan in sleepers:
        crowd.js.command("pause", plan.name)
    for plan in sleepers:
        await world.producers.large[plan.user].publish(body_bytes=_SLEEPING_BYTES)
    await asyncio.sleep(rng.uniform(0.2, 5))
    for plan in sleepers:
        crowd.discard(plan)
    return bool(sleepers)


@_fault("bridge: clock jumps eight days", *_SUBJECTS, weight=2)
async def jump_clocks(world: World, rng: Random) -> bool:
    """Set the clock of one or all bridges, while messages wait; sometimes also kill one."""
    crowd = world.crowd
    sleepers = rng.sample(crowd.plans, max(1, len(crowd.plans) // 3))
    slots = rng.choice([world.slots, [rng.choice(world.slots)]])
    jump_s = rng.choice([CLOCK_JUMP_S, CLOCK_JUMP_S, -CLOCK_JUMP_S])
    numbers: dict[str, int] = {}
    try:
        try:
            for plan in sleepers:
                await crowd.sleep(plan)
            await world.publish_probes(numbers)
            for slot in slots:
                slot.bridge.set_clock(ahead_s=jump_s)
            if rng.random() < _KILL_SHARE:
                await rng.choice(slots).bridge.kill()
            await asyncio.sleep(rng.uniform(1, 4))
        finally:
            for plan in sleepers:
                crowd.wake(plan)
        if jump_s > 0:  # in the past, the tokens are not valid yet
            await world.expect_probes(numbers)
    finally:
        for slot in slots:
            slot.bridge.set_clock(ahead_s=0)
    return True
