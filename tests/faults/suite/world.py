"""
The world that faults happen in: broker, proxies, bridge, windows, producers.

    producers ─▶ RabbitMQ ─▶ proxy ─▶ bridge ─▶ proxy ─▶ windows

Everything is private, on loopback, in one temporary folder, and gone at the end.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from bridge.auth.jwt import issue_token
from bridge.broker.connection import BrokerAddress
from bridge.broker.local_node import LocalNode
from bridge.broker.publisher import Publisher
from bridge.metrics import Metrics
from bridge.names import BrokerNames
from tests.faults.suite.bridge_process import BridgeProcess
from tests.faults.suite.checker import Checker
from tests.faults.suite.history import History
from tests.faults.suite.producers import PROBE, Workers, hire
from tests.faults.suite.proxy import Proxy, free_ports
from tests.faults.suite.store_folder import StoreFolder
from tests.faults.suite.windows import Crowd, open_crowd, plan_windows

NAMES: Final = BrokerNames("faults")
_PUBLISHERS: Final = 2
_LOOK_EACH_S: Final = 0.1


class HangError(Exception):
    """The world did not come back to life in time; the text says what hangs."""


@dataclass(frozen=True, slots=True)
class Scale:
    """
    How large the world is.

    Attributes:
        users: Each with two producers and one to three windows.
        messages_per_s: Of all producers together, on average.
        inbox: `sqlite` or `memory`.
        mutant: What is wrong with the bridge on purpose.

    """

    users: int = 40
    messages_per_s: float = 125.0
    inbox: str = "sqlite"
    mutant: str = ""


@dataclass(frozen=True, slots=True)
class Ports:
    """Fixed, so that a bridge that comes back is where it was."""

    wire: int
    pages: int
    public: int
    operator: int


@dataclass
class World:
    """All parts, and what faults and the run do with them."""

    users: list[str]
    node: LocalNode
    store: StoreFolder
    to_broker: Proxy
    to_pages: Proxy
    bridge: BridgeProcess
    crowd: Crowd
    history: History
    checker: Checker
    workers: Workers
    settings: dict[str, object]
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def write_settings(self, **changes: object) -> None:
        """Write the bridge's settings file, with `changes` to what is usual."""
        self.bridge.write_settings(**(self.settings | changes))

    async def begin(self, *, within_s: float) -> None:
        """
        Wait until all windows are there, before anything is published.

        A page that brings no place gets what its user has not had: were another window
        quicker, it would rightly miss the first messages.

        Raises:
            HangError: If it takes longer than `within_s`.

        """
        deadline_s = time.monotonic() + within_s
        while not self.checker.all_synced(len(self.crowd.plans)):
            if time.monotonic() > deadline_s:
                raise HangError(await self._what_hangs({}))
            await asyncio.sleep(_LOOK_EACH_S)

    async def come_alive(self, *, within_s: float) -> float:
        """
        Wait until a new message for each user has reached all of its windows.

        Returns:
            Seconds that it took.

        Raises:
            HangError: If it takes longer than `within_s`.

        """
        start_s = time.monotonic()
        numbers: dict[str, int] = {}

        async def probe(user: str) -> None:
            numbers[user] = await self.workers.probes[user].publish(body_bytes=0)

        try:
            async with asyncio.timeout(within_s), asyncio.TaskGroup() as tasks:
                for user in self.users:
                    tasks.create_task(probe(user), name=f"probe {user}")
        except TimeoutError:
            raise HangError(await self._what_hangs(numbers)) from None
        while self._without(numbers):
            if time.monotonic() - start_s > within_s:
                raise HangError(await self._what_hangs(numbers))
            await asyncio.sleep(_LOOK_EACH_S)
        return time.monotonic() - start_s

    async def settle(self, *, within_s: float) -> bool:
        """Wait until every window has all that is confirmed; false if not in time."""
        deadline_s = time.monotonic() + within_s
        while next(self.checker.missing(), None) is not None:
            if time.monotonic() > deadline_s:
                return False
            await asyncio.sleep(_LOOK_EACH_S)
        return True

    def _without(self, numbers: dict[str, int]) -> list[str]:
        return [
            plan.name
            for plan in self.crowd.plans
            if plan.user in numbers
            and not self.checker.has_received(plan.name, (PROBE, numbers[plan.user]))
        ]

    async def _what_hangs(self, numbers: dict[str, int]) -> str:
        unready = await self.bridge.unready_reasons()
        unconfirmed = [user for user in self.users if user not in numbers]
        behind = self._without(numbers)
        return (
            f"probes not confirmed: {unconfirmed}; windows without their probe: {behind}; "
            f"the bridge: pid {self.bridge.pid}, {unready or 'ready'}; "
            f"RabbitMQ: {self.node.pids}; refused pages: {self.crowd.js.refusals[-3:]}"
        )


@asynccontextmanager
async def open_world(
    scale: Scale, *, folder: Path, seed: int, may_mount: bool
) -> AsyncIterator[World]:
    """
    Build a world and run it, windows connected, nothing published yet.

    Args:
        scale: How large.
        folder: An empty one; the history is written to it.
        seed: Of the producers' dice.
        may_mount: Whether the store may be put on a disk of its own.

    """
    checker = Checker()
    users = [f"u{number}" for number in range(scale.users)]
    ports = Ports(*free_ports(len(fields(Ports))))
    secret = secrets.token_urlsafe(48)
    url = f"http://127.0.0.1:{ports.pages}"
    tokens = {user: _token(user, secret) for user in users}
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        history = History.at(folder / "history.jsonl", checker.feed)
        stack.callback(history.close)
        store = stack.enter_context(
            StoreFolder.at(folder / "store", may_mount=may_mount)
        )
        node = await enter(LocalNode.start())
        publishers = [_publisher(node) for _ in range(_PUBLISHERS)]
        bridge = BridgeProcess(folder, ports.operator, scale.mutant)
        await enter(_running(bridge.run(), *(each.run() for each in publishers)))
        world = World(
            users=users,
            node=node,
            store=store,
            to_broker=await enter(Proxy.open(port=ports.wire, target_port=node.port)),
            to_pages=await enter(
                Proxy.open(port=ports.pages, target_port=ports.public)
            ),
            bridge=bridge,
            crowd=await enter(open_crowd(plan_windows(users), url, tokens, history)),
            history=history,
            checker=checker,
            workers=hire(users, publishers, NAMES.messages, history=history, seed=seed),
            settings=_settings(scale, store, node, ports) | {"jwt_secret": secret},
        )
        world.write_settings()
        bridge.allow()
        yield world


@asynccontextmanager
async def _running(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Let `works` go on until the block is left."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(work) for work in works]
        try:
            yield
        finally:
            for task in running:
                task.cancel()


def _settings(
    scale: Scale, store: StoreFolder, node: LocalNode, ports: Ports
) -> dict[str, object]:
    return {
        "amqp_url": node.url.replace(f":{node.port}/", f":{ports.wire}/"),
        "namespace": NAMES.namespace,
        "broker_timeout": "3s",
        "retry_delays": "200ms,1s",
        "port": ports.public,
        "operator_port": ports.operator,
        "inbox": f"sqlite:{store.file}" if scale.inbox == "sqlite" else "memory:",
        "inbox_max_messages": 20_000,
        "max_message_bytes": "128KiB",
        "slow_client_bytes": "256KiB",
        "ping_interval": "3s",
        "ping_timeout": "4s",
        "drain_timeout": "5s",
        "log_level": "info",
    }


def _publisher(node: LocalNode) -> Publisher:
    return Publisher(BrokerAddress((node.url,)), NAMES, metrics=Metrics())


def _token(user: str, secret: str) -> str:
    return issue_token(
        user,
        secret=secret,
        algorithm="HS256",
        ttl_s=86_400,
        audience=None,
        issuer=None,
        now_s=time.time(),
    )
