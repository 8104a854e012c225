"""
The world of three bridges with the same users, on a cluster of RabbitMQ and on Redis.

                 ┌ node ┐          ┌ bridge ┐
    producers ─▶ │ node │ ─proxy─▶ │ bridge │ ─proxy─▶ HAProxy ─proxy─▶ windows
                 └ node ┘          └ bridge ┘
                                       └─proxy─▶ Redis

Each connection between two parts has a proxy of its own, so that faults can cut it alone.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from tests.faults.suite.balancer import Haproxy
from tests.faults.suite.bridge_process import BridgeProcess
from tests.faults.suite.checker import Checker
from tests.faults.suite.history import History
from tests.faults.suite.producers import create_producers
from tests.faults.suite.proxy import Proxy, free_ports
from tests.faults.suite.windows import WindowPlan, open_crowd, plan_windows
from tests.faults.suite.world import (
    NAMES,
    BridgeSlot,
    Scale,
    World,
    base_settings,
    declare_event_queue,
    publisher_at,
    running,
    tokens_of,
    user_names,
)
from tests.local_node import LocalNode
from tests.rabbit_cluster import start_cluster
from tests.redis_server import RedisServer

BRIDGES: Final = 3
SHARDS: Final = 3
# After SIGTERM a bridge may take this much longer than its drain timeout.
_BEYOND_DRAIN_S: Final = 10.0
_START_TIMEOUT_S: Final = 60.0
_T = TypeVar("_T")


@dataclass(kw_only=True)
class FleetSlot(BridgeSlot):
    """One bridge of several, with its proxy to the shared store."""

    to_store: Proxy


@dataclass(kw_only=True)
class FleetWorld(World):
    """A cluster, a shared store, and a load balancer in front of the bridges."""

    slots: Sequence[FleetSlot]
    redis: RedisServer
    balancer: Haproxy


@asynccontextmanager
async def open_fleet(
    scale: Scale,
    *,
    folder: Path,
    seed: int,
    may_mount: bool,  # noqa: ARG001 - this scenario has no disk of its own
    plan: Callable[[Sequence[str]], list[WindowPlan]] = plan_windows,
) -> AsyncIterator[FleetWorld]:
    """
    Build the world, start it and connect its windows; nothing is published yet.

    Args:
        scale: The size of the world.
        folder: An empty folder for the history and all data.
        seed: Seeds the random numbers of the producers.
        may_mount: Unused: nothing is mounted here.
        plan: Chooses the windows of the users.

    """
    checker = Checker()
    users = user_names(scale)
    pages, behind = free_ports(2)
    secret = secrets.token_urlsafe(48)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        history = History.at(folder / "history.jsonl", checker.feed)
        stack.callback(history.close)
        redis = await enter(RedisServer.start(folder / "redis"))
        cluster = await enter(start_cluster())
        await declare_event_queue(cluster.nodes[0])
        slots = [
            await _build_slot(
                stack,
                folder=folder / f"bridge-{number}",
                nodes=_rotated(number, cluster.nodes),
                redis=redis,
                scale=scale,
                secret=secret,
            )
            for number in range(1, BRIDGES + 1)
        ]
        urls = [_rotated(number, cluster.urls) for number in range(BRIDGES)]
        publishers = [publisher_at(*each) for each in urls]
        await enter(
            running(
                *(slot.bridge.run() for slot in slots),
                *(each.run() for each in publishers),
            )
        )
        # All bridges before any window: otherwise the first bridge would get all windows.
        for slot in slots:
            slot.write_settings()
            slot.bridge.allow_start()
        for slot in slots:
            await slot.bridge.wait_until_ready(within_s=_START_TIMEOUT_S)
        ports = [slot.to_pages.port for slot in slots]
        balancer = await enter(Haproxy.start(port=behind, bridge_ports=ports))
        to_pages = await enter(Proxy.open(port=pages, target_port=behind))
        url = f"http://127.0.0.1:{pages}"
        plans, tokens = plan(users), tokens_of(users, secret)
        yield FleetWorld(
            scale=scale,
            users=users,
            nodes=cluster.nodes,
            slots=slots,
            redis=redis,
            balancer=balancer,
            to_pages=to_pages,
            crowd=await enter(open_crowd(plans, url, tokens, history)),
            history=history,
            checker=checker,
            producers=create_producers(
                users, publishers, NAMES.messages, history=history, seed=seed
            ),
        )


async def _build_slot(
    stack: AsyncExitStack,
    *,
    folder: Path,
    nodes: Sequence[LocalNode],
    redis: RedisServer,
    scale: Scale,
    secret: str,
) -> FleetSlot:
    """Open the proxies of one bridge and prepare its process, without starting it."""
    enter = stack.enter_async_context
    await asyncio.to_thread(folder.mkdir)
    public, operator, shown, store, *wires = free_ports(4 + len(nodes))
    to_broker = [
        await enter(Proxy.open(port=port, target_port=node.port))
        for port, node in zip(wires, nodes, strict=True)
    ]
    urls = [node.url_at(port) for port, node in zip(wires, nodes, strict=True)]
    return FleetSlot(
        bridge=BridgeProcess(
            folder,
            operator,
            secret,
            scale.mutants,
            name=folder.name,
            exit_timeout_s=scale.drain_s + _BEYOND_DRAIN_S,
        ),
        to_broker=to_broker,
        to_store=await enter(Proxy.open(port=store, target_port=redis.port)),
        to_pages=await enter(Proxy.open(port=shown, target_port=public)),
        settings=base_settings(scale, secret)
        | {
            "amqp_url": ",".join(urls),
            "port": public,
            "operator_port": operator,
            "name": folder.name,
            "shards": SHARDS,
            "inbox": f"redis://127.0.0.1:{store}/0",
        },
    )


def _rotated(number: int, each: Sequence[_T]) -> Sequence[_T]:
    """Rotate a sequence, so that the bridges try the nodes in different orders."""
    start = number % len(each)
    return (*each[start:], *each[:start])
