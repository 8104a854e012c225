"""
Three bridges with one set of users, on a cluster of RabbitMQ and on Redis.

                 ┌ node ┐          ┌ bridge ┐
    producers ─▶ │ node │ ─proxy─▶ │ bridge │ ─proxy─▶ HAProxy ─proxy─▶ windows
                 └ node ┘          └ bridge ┘
                                       └─proxy─▶ Redis

Every bridge has ways of its own to each node, to Redis and to HAProxy, so that each can be
cut alone.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from bridge.demo.private_node import LocalNode
from tests.faults.suite.balancer import Haproxy
from tests.faults.suite.bridge_process import BridgeProcess
from tests.faults.suite.checker import Checker
from tests.faults.suite.history import History
from tests.faults.suite.producers import hire
from tests.faults.suite.proxy import Proxy, free_ports
from tests.faults.suite.windows import Plan, open_crowd, plan_windows
from tests.faults.suite.world import (
    NAMES,
    Scale,
    Seat,
    World,
    publisher_at,
    running,
    tokens_of,
    user_names,
    usual_settings,
)
from tests.rabbit_cluster import start_cluster
from tests.redis_server import RedisServer

BRIDGES: Final = 3
SHARDS: Final = 3
# A bridge that was told to go may need so much longer than it may take to drain.
_BEYOND_DRAIN_S: Final = 10.0
_START_WITHIN_S: Final = 60.0
_T = TypeVar("_T")


@dataclass(kw_only=True)
class FleetSeat(Seat):
    """One bridge of several, with its way to the store that they share."""

    to_store: Proxy


@dataclass(kw_only=True)
class FleetWorld(World):
    """A cluster, a store for all, and something in front of all."""

    seats: Sequence[FleetSeat]
    redis: RedisServer
    balancer: Haproxy


@asynccontextmanager
async def open_fleet(
    scale: Scale,
    *,
    folder: Path,
    seed: int,
    may_mount: bool,  # noqa: ARG001 - the disk is not this scene's
    plan: Callable[[Sequence[str]], list[Plan]] = plan_windows,
) -> AsyncIterator[FleetWorld]:
    """
    Build a world and run it, windows connected, nothing published yet.

    Args:
        scale: How large.
        folder: An empty one; the history is written to it.
        seed: Of the producers' dice.
        may_mount: Nothing is mounted here.
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
        seats = [
            await _take_seat(
                stack,
                folder=folder / f"bridge-{number}",
                nodes=_beginning_with(number, cluster.nodes),
                redis=redis,
                scale=scale,
                secret=secret,
            )
            for number in range(1, BRIDGES + 1)
        ]
        urls = [_beginning_with(number, cluster.urls) for number in range(BRIDGES)]
        publishers = [publisher_at(*each) for each in urls]
        await enter(
            running(
                *(seat.bridge.run() for seat in seats),
                *(each.run() for each in publishers),
            )
        )
        # Before anybody knocks: else all windows would be at the first that is there.
        for seat in seats:
            seat.write_settings()
            seat.bridge.allow()
        for seat in seats:
            await seat.bridge.gets_ready(within_s=_START_WITHIN_S)
        ports = [seat.to_pages.port for seat in seats]
        balancer = await enter(Haproxy.start(port=behind, bridge_ports=ports))
        to_pages = await enter(Proxy.open(port=pages, target_port=behind))
        url = f"http://127.0.0.1:{pages}"
        plans, tokens = plan(users), tokens_of(users, secret)
        yield FleetWorld(
            users=users,
            nodes=cluster.nodes,
            seats=seats,
            redis=redis,
            balancer=balancer,
            to_pages=to_pages,
            crowd=await enter(open_crowd(plans, url, tokens, history)),
            history=history,
            checker=checker,
            workers=hire(users, publishers, NAMES.messages, history=history, seed=seed),
        )


async def _take_seat(
    stack: AsyncExitStack,
    *,
    folder: Path,
    nodes: Sequence[LocalNode],
    redis: RedisServer,
    scale: Scale,
    secret: str,
) -> FleetSeat:
    """Make the ways of one bridge; it does not run yet."""
    enter = stack.enter_async_context
    await asyncio.to_thread(folder.mkdir)
    public, operator, shown, store, *wires = free_ports(4 + len(nodes))
    to_broker = [
        await enter(Proxy.open(port=port, target_port=node.port))
        for port, node in zip(wires, nodes, strict=True)
    ]
    urls = [node.url_at(port) for port, node in zip(wires, nodes, strict=True)]
    return FleetSeat(
        bridge=BridgeProcess(
            folder,
            operator,
            secret,
            scale.mutant,
            name=folder.name,
            gone_within_s=scale.drain_s + _BEYOND_DRAIN_S,
        ),
        to_broker=to_broker,
        to_store=await enter(Proxy.open(port=store, target_port=redis.port)),
        to_pages=await enter(Proxy.open(port=shown, target_port=public)),
        settings=usual_settings(scale, secret)
        | {
            "amqp_url": ",".join(urls),
            "port": public,
            "operator_port": operator,
            "name": folder.name,
            "shards": SHARDS,
            "inbox": f"redis://127.0.0.1:{store}/0",
        },
    )


def _beginning_with(number: int, each: Sequence[_T]) -> Sequence[_T]:
    """Return the same in turn, so that not all knock at the same one first."""
    start = number % len(each)
    return (*each[start:], *each[:start])
