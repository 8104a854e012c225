"""
One bridge with an inbox of its own, everything that it needs, and nothing else.

    producers ─▶ RabbitMQ ─▶ proxy ─▶ bridge ─▶ proxy ─▶ windows
"""

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bridge.demo.private_node import LocalNode
from tests.faults.suite.bridge_process import BridgeProcess
from tests.faults.suite.checker import Checker
from tests.faults.suite.history import History
from tests.faults.suite.producers import hire
from tests.faults.suite.proxy import Proxy, free_ports
from tests.faults.suite.store_folder import StoreFolder
from tests.faults.suite.windows import open_crowd, plan_windows
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

_PUBLISHERS: Final = 2


@dataclass(kw_only=True)
class LoneWorld(World):
    """One node, one bridge, its store on a disk that faults can fill."""

    store: StoreFolder


@asynccontextmanager
async def open_alone(
    scale: Scale, *, folder: Path, seed: int, may_mount: bool
) -> AsyncIterator[LoneWorld]:
    """
    Build a world and run it, windows connected, nothing published yet.

    Args:
        scale: How large.
        folder: An empty one; the history is written to it.
        seed: Of the producers' dice.
        may_mount: Whether the store may be put on a disk of its own.

    """
    checker = Checker()
    users = user_names(scale)
    # Fixed, so that a bridge that comes back is where it was.
    wire, pages, public, operator = free_ports(4)
    secret = secrets.token_urlsafe(48)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        history = History.at(folder / "history.jsonl", checker.feed)
        stack.callback(history.close)
        store = stack.enter_context(
            StoreFolder.at(folder / "store", may_mount=may_mount)
        )
        node = await enter(LocalNode.start())
        publishers = [publisher_at(node.url) for _ in range(_PUBLISHERS)]
        bridge = BridgeProcess(folder, operator, secret, scale.mutant)
        await enter(running(bridge.run(), *(each.run() for each in publishers)))
        to_pages = await enter(Proxy.open(port=pages, target_port=public))
        seat = Seat(
            bridge=bridge,
            to_broker=[await enter(Proxy.open(port=wire, target_port=node.port))],
            to_pages=to_pages,
            settings=usual_settings(scale, secret)
            | {
                "amqp_url": node.url_at(wire),
                "port": public,
                "operator_port": operator,
                "inbox": (
                    f"sqlite:{store.file}" if scale.inbox == "sqlite" else "memory:"
                ),
            },
        )
        url = f"http://127.0.0.1:{pages}"
        plans, tokens = plan_windows(users), tokens_of(users, secret)
        world = LoneWorld(
            users=users,
            nodes=[node],
            seats=[seat],
            store=store,
            to_pages=to_pages,
            crowd=await enter(open_crowd(plans, url, tokens, history)),
            history=history,
            checker=checker,
            workers=hire(users, publishers, NAMES.messages, history=history, seed=seed),
        )
        seat.write_settings()
        bridge.allow()
        yield world
