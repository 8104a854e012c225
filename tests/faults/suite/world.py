"""
The world that faults happen in: brokers, bridges, the ways between them, windows, producers.

What there is one of and what there are several of is for alone.py and fleet.py to say.
Everything is private, on loopback, in one temporary folder, and gone at the end.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from bridge.amqp.connection import BrokerAddress
from bridge.amqp.publish.publisher import Publisher
from bridge.auth.jwt import issue_token
from bridge.core.broker_names import BrokerNames
from bridge.demo.private_node import LocalNode
from bridge.metrics import Metrics
from tests.faults.suite.bridge_process import BridgeProcess
from tests.faults.suite.checker import Checker
from tests.faults.suite.history import History
from tests.faults.suite.producers import PROBE, Workers
from tests.faults.suite.proxy import Proxy
from tests.faults.suite.windows import Crowd

NAMES: Final = BrokerNames("faults")
_LOOK_EACH_S: Final = 0.1
_COUNTS_AT_MOST: Final = 50


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
        drain_s: The longest that leaving may take.
        drain_per_s: Windows that are told in a second to go.
        ping_s: Pause between two pings to a window.

    """

    users: int = 40
    messages_per_s: float = 125.0
    inbox: str = "sqlite"
    mutant: str = ""
    drain_s: float = 5.0
    drain_per_s: int = 200
    ping_s: int = 3


@dataclass
class Seat:
    """
    One bridge and the ways to and from it.

    Attributes:
        bridge: The process that is there now, and the next one.
        to_broker: One proxy for each RabbitMQ node.
        to_pages: What whoever brings windows goes through.
        settings: What is usual.

    """

    bridge: BridgeProcess
    to_broker: Sequence[Proxy]
    to_pages: Proxy
    settings: dict[str, object]

    def write_settings(self, **changes: object) -> None:
        """Write the bridge's settings file, with `changes` to what is usual."""
        self.bridge.write_settings(**(self.settings | changes))


@dataclass(kw_only=True)
class World:
    """All parts, and what faults and the run do with them."""

    users: list[str]
    nodes: Sequence[LocalNode]
    seats: Sequence[Seat]
    to_pages: Proxy
    crowd: Crowd
    history: History
    checker: Checker
    workers: Workers
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def surprises(self) -> list[str]:
        """What bridges did that no fault asked for."""
        return [each for seat in self.seats for each in seat.bridge.surprises]

    def take_news(self) -> list[str]:
        """Return the surprises and violations that were not returned before."""
        of_bridges = [each for seat in self.seats for each in seat.bridge.take_news()]
        return self.checker.take_news() + of_bridges

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

    async def windows_of_bridges(self) -> list[int]:
        """Return how many windows each bridge has, when that is all of them."""
        counts: list[int] = []
        for _ in range(_COUNTS_AT_MOST):
            counts = [await seat.bridge.count_windows() for seat in self.seats]
            if sum(counts) == len(self.crowd.plans):
                break
            await asyncio.sleep(_LOOK_EACH_S)  # a bridge counts once a second
        return counts

    async def come_alive(self, *, within_s: float) -> float:
        """
        Wait until a new message for each user has reached all of its windows.

        And until all bridges are ready: of a fleet, one alone would do for the messages.

        Returns:
            Seconds that the messages took.

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
        alive_s = time.monotonic() - start_s
        for seat in self.seats:
            if not await seat.bridge.gets_ready(within_s=within_s - alive_s):
                raise HangError(await self._what_hangs(numbers))
        return alive_s

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
        bridges = [await self._how_is(seat.bridge) for seat in self.seats]
        unconfirmed = [user for user in self.users if user not in numbers]
        behind = self._without(numbers)
        return (
            f"probes not confirmed: {unconfirmed}; windows without their probe: {behind}; "
            f"{'; '.join(bridges)}; RabbitMQ: {[node.pids for node in self.nodes]}; "
            f"refused pages: {self.crowd.js.refusals[-3:]}"
        )

    async def _how_is(self, bridge: BridgeProcess) -> str:
        unready = await bridge.unready_reasons()
        return f"{bridge.name}: pid {bridge.pid}, {unready or 'ready'}"


@asynccontextmanager
async def running(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Let `works` go on until the block is left."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(work) for work in works]
        try:
            yield
        finally:
            for task in running:
                task.cancel()


def usual_settings(scale: Scale, secret: str) -> dict[str, object]:
    """Return what every bridge is told: short deadlines, so that faults reach them."""
    return {
        "namespace": NAMES.namespace,
        "broker_timeout": "3s",
        "retry_delays": "200ms,1s",
        "jwt_secret": secret,
        "inbox_max_messages": 20_000,
        "max_message_bytes": "128KiB",
        "slow_client_bytes": "256KiB",
        "ping_interval": f"{scale.ping_s}s",
        "ping_timeout": f"{scale.ping_s + 1}s",
        "drain_timeout": f"{scale.drain_s:g}s",
        "drain_windows_per_second": scale.drain_per_s,
        "operator_token": secret,
        "log_level": "info",
    }


def user_names(scale: Scale) -> list[str]:
    """Return the names of all users."""
    return [f"u{number}" for number in range(scale.users)]


def tokens_of(users: Sequence[str], secret: str) -> dict[str, str]:
    """Return a token for each user that outlives every run."""
    return {user: _token(user, secret) for user in users}


def publisher_at(*urls: str) -> Publisher:
    """Return a producers' connection to the first of `urls` that answers."""
    return Publisher(BrokerAddress(urls), NAMES, metrics=Metrics())


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
