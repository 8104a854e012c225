"""
The world of one bridge with its own inbox.

    producers ─▶ RabbitMQ ─▶ proxy ─▶ bridge ─▶ proxy ─▶ windows
"""

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.faults.suite.bridge_process import BridgeProcess
from tests.faults.suite.checker import Checker
from tests.faults.suite.history import History
from tests.faults.suite.producers import create_producers
from tests.faults.suite.proxy import Proxy, free_ports
from tests.faults.suite.store_folder import StoreFolder
from tests.faults.suite.windows import open_crowd, plan_windows
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

_PUBLISHERS: Final = 2


@dataclass(kw_only=True)
class SingleWorld(World):
    """One node, one bridge, and its store on a disk that faults can fill."""

    store: StoreFolder


@asynccontextmanager
async def open_single(
    scale: Scale, *, folder: Path, seed: int, may_mount: bool
) -> AsyncIterator[SingleWorld]:
    """
    Build the world, start it and connect its windows; nothing is published yet.

    Args:
        scale: The size of the world.
        folder: An empty folder for the history and all data.
        seed: Seeds the random numbers of the producers.
        may_mount: Whether the store may be put on a disk of its own.

    """
    checker = Checker()
    users = user_names(scale)
    # Fixed ports, so that a restarted bridge has the same addresses.
    wire, pages, public, operator = free_ports(4)
    secret = secrets.token_urlsafe(48)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        history = History.at(folder / "history.jsonl", checker.feed)
        stack.callback(history.close)
        store = stack.enter_context(
            StoreFolder.at(folder / "store", may_mount=may_mount)
        )
        if scale.node is None:
            node = await enter(LocalNode.start())
        else:
            node = LocalNode.borrow(scale.node)
        await declare_event_queue(node)
        publishers = [publisher_at(node.url) for _ in range(_PUBLISHERS)]
        bridge = BridgeProcess(folder, operator, secret, scale.mutants)
        await enter(running(bridge.run(), *(each.run() for each in publishers)))
        to_pages = await enter(Proxy.open(port=pages, target_port=public))
        slot = BridgeSlot(
            bridge=bridge,
            to_broker=[await enter(Proxy.open(port=wire, target_port=node.port))],
            to_pages=to_pages,
            settings=base_settings(scale, secret)
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
        world = SingleWorld(
            scale=scale,
            users=users,
            nodes=[node],
            slots=[slot],
            store=store,
            to_pages=to_pages,
            crowd=await enter(open_crowd(plans, url, tokens, history)),
            history=history,
            checker=checker,
            producers=create_producers(
                users, publishers, NAMES.messages, history=history, seed=seed
            ),
        )
        slot.write_settings()
        bridge.allow_start()
        yield world
