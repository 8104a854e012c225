"""A bridge that starts in a namespace of its own, while producers already publish to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from random import Random
from time import monotonic
from typing import Final, Self

import aiohttp
import aiormq

from bridge.core.broker_names import BrokerNames
from tests.faults.suite.bridge_process import BridgeProcess
from tests.faults.suite.history import Closed
from tests.faults.suite.producers import PLAIN, Producer
from tests.faults.suite.proxy import free_ports
from tests.faults.suite.windows import PythonWindow, WindowPlan
from tests.faults.suite.world import (
    NAMES,
    World,
    publisher_at,
    running,
    tokens_of,
)

_numbers: Final = count(1)
_USERS: Final = 3
_READY_TIMEOUT_S: Final = 60.0
_CLOSE_TIMEOUT_S: Final = 20.0
_POLL_S: Final = 0.3
_PUBLISHES_ON_S: Final = 1.0
# Without a pause, publishes that fail because there is no exchange would fill the history.
_PAUSE_S: Final = 0.005


@dataclass
class FirstStart:
    """
    A bridge that has never run, its producers and its windows.

    Its users belong to the namespace alone, so the checker judges their messages like all
    others: a window that misses a confirmed message at the end has lost it.
    """

    world: World
    names: BrokerNames
    bridge: BridgeProcess
    producers: list[Producer]
    windows: list[PythonWindow]

    @classmethod
    @asynccontextmanager
    async def open(cls, world: World, rng: Random) -> AsyncIterator[Self]:
        """Prepare a namespace in which nothing is declared; end the bridge after the block."""
        names = BrokerNames(f"{NAMES.namespace}first{next(_numbers)}")
        slot, node = world.slots[0], world.nodes[0]
        folder = slot.bridge.folder / names.namespace
        folder.mkdir()
        public, operator = free_ports(2)
        bridge = BridgeProcess(
            folder,
            operator,
            slot.bridge.operator_token,
            slot.bridge.mutants,
            name=f"the bridge of {names.namespace}",
            exit_timeout_s=slot.bridge.exit_timeout_s,
            anomalies=slot.bridge.anomalies,
        )
        bridge.write_settings(
            **slot.settings
            | {
                "namespace": names.namespace,
                "name": names.namespace,
                "amqp_url": node.url,
                "port": public,
                "operator_port": operator,
                "shards": 1,
                "inbox": "memory:",
            }
        )
        users = [f"{names.namespace}.{number}" for number in range(_USERS)]
        tokens = tokens_of(users, str(slot.settings["jwt_secret"]))
        publishers = [publisher_at(node.url) for _ in users]
        history, url = world.history, f"http://127.0.0.1:{public}"
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            http = await enter(aiohttp.ClientSession())
            await enter(running(bridge.run(), *(each.run() for each in publishers)))
            first = cls(world, names, bridge, [], [])
            for user, publisher in zip(users, publishers, strict=True):
                plan = WindowPlan(f"{user}.py", user, "python")
                first.windows.append(
                    PythonWindow(plan, url, tokens[user], history, http)
                )
                first.producers.append(
                    Producer(
                        user, PLAIN, is_careful=False, publisher=publisher,
                        exchange=names.messages, history=history, random=rng,
                        mandatory=False,
                    )
                )  # fmt: skip
            opened = [asyncio.create_task(each.run()) for each in first.windows]
            try:
                yield first
            finally:
                for window in first.windows:
                    window.close()
                await asyncio.wait(opened, timeout=_CLOSE_TIMEOUT_S)

    async def start_bridge(self) -> bool:
        """Start the bridge while producers publish; false if confirmed messages are lost."""
        async with self._publishing():
            self.bridge.allow_start()
            await self.bridge.wait_until_ready(within_s=_READY_TIMEOUT_S)
        return await self._wait_until_complete()

    async def delete_queue(self) -> bool:
        """Delete its empty queue while producers publish; false as `start_bridge`."""
        connection = await aiormq.connect(self.world.nodes[0].url)
        channel = await connection.channel()
        await channel.queue_delete(self.names.inbound_queue())
        async with self._publishing():
            await connection.close()
        return await self._wait_until_complete()

    def close_windows(self) -> None:
        """Record that the windows, which have received everything, are closed."""
        history = self.world.history
        for window in self.windows:
            history.add(Closed(history.t, window.plan.name))

    @asynccontextmanager
    async def _publishing(self) -> AsyncIterator[None]:
        stopping = asyncio.Event()

        async def publish(producer: Producer) -> None:
            while not stopping.is_set():
                await producer.publish(body_bytes=0, is_bad=False)
                await asyncio.sleep(_PAUSE_S)

        async with asyncio.TaskGroup() as tasks:
            for producer in self.producers:
                tasks.create_task(publish(producer))
            try:
                yield
                await asyncio.sleep(_PUBLISHES_ON_S)
            finally:
                stopping.set()

    async def _wait_until_complete(self) -> bool:
        """Wait until each confirmed message was received or is a dead letter."""
        deadline_s = monotonic() + self.world.scale.probes_s
        names = [window.plan.name for window in self.windows]
        while not all(map(self.world.checker.is_complete, names)):
            if monotonic() > deadline_s:
                return False  # the windows stay open: the checker reports the loss
            await self.world.record_dead_letters(self.names)
            await asyncio.sleep(_POLL_S)
        return True
