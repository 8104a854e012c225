"""
The world of a run: brokers, bridges, the proxies between them, windows and producers.

single.py and fleet.py build it from one or several of each part. All parts are private, use
loopback and one temporary folder, and are removed at the end.
"""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import orjson

from bridge.amqp.connection import BrokerAddress, Purpose, open_connection
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.publish.publisher import Publisher
from bridge.amqp.topology import (
    QUORUM,
    Binding,
    Queue,
    Topology,
    declare,
    events_exchange,
)
from bridge.auth.issuing import issue_token
from bridge.core.broker_names import BrokerNames
from bridge.core.properties import header_bytes
from bridge.enums import Header
from bridge.metrics import Metrics
from tests.faults.suite.bridge_process import BridgeProcess
from tests.faults.suite.checker import Checker
from tests.faults.suite.history import (
    DeadLettered,
    History,
    Overdue,
    PresenceCounted,
    PresenceReported,
    Reported,
)
from tests.faults.suite.presence_checker import DEBOUNCE_S, NOTED_S
from tests.faults.suite.producers import PROBE, Producers
from tests.faults.suite.proxy import Proxy
from tests.faults.suite.windows import Crowd
from tests.integration.dead_letters import take_all
from tests.local_node import LocalNode

# Its own in each process: mutants run one after the other on one node.
NAMES: Final = BrokerNames(f"faults{secrets.token_hex(4)}")
_EVENTS: Final = f"events of {NAMES.namespace}"  # the queue of a worker
CLOCK_JUMP_S: Final = 8 * 86_400  # beyond the age at which messages are deleted
_LEAVING_EACH: Final = 4  # of so many users, one leaves at the end
_POLL_S: Final = 0.1
# Longer than any run, also after a jump of a clock.
_TOKEN_TTL_S: Final = 30 * 86_400
_COUNT_ATTEMPTS: Final = 50
_DECLARE_TIMEOUT_S: Final = 10.0
_BODY: Final = re.compile(rb'"u":"([^"]+)","p":"([^"]+)","n":(\d+)')


class HangError(Exception):
    """Delivery did not work again in time; the text describes the state of all parts."""


@dataclass(frozen=True, slots=True)
class Scale:
    """
    The size of the world, and settings of its bridges.

    Attributes:
        users: The number of users, each with two producers and one to three windows.
        messages_per_s: The average rate of all producers together.
        inbox: `sqlite` or `memory`.
        mutants: The deliberate defects of the bridges.
        drain_s: The drain timeout.
        drain_per_s: How many windows a draining bridge closes per second.
        ping_s: Seconds between two pings to a window.
        probes_s: How long a message may take during a fault that must not hold it up.
        node: The setup of a node that runs already, as `LocalNode.lend` writes it. `None`
            starts one, which faults can stop.

    """

    users: int = 40
    messages_per_s: float = 125.0
    inbox: str = "sqlite"
    mutants: Sequence[str] = ()
    drain_s: float = 5.0
    drain_per_s: int = 200
    ping_s: int = 3
    probes_s: float = 20.0
    node: Path | None = None


@dataclass
class BridgeSlot:
    """
    One bridge and the proxies around it.

    Attributes:
        bridge: The process and its successors.
        to_broker: One proxy per RabbitMQ node.
        to_pages: The proxy that windows or the load balancer connect to.
        settings: The base settings.

    """

    bridge: BridgeProcess
    to_broker: Sequence[Proxy]
    to_pages: Proxy
    settings: dict[str, object]

    def cut_from_broker(self) -> None:
        """Cut the bridge off from all nodes until `heal_broker`."""
        for proxy in self.to_broker:
            proxy.refuse()
            proxy.cut()

    def heal_broker(self) -> None:
        """Let the bridge reach all nodes again."""
        for proxy in self.to_broker:
            proxy.heal()

    def write_settings(self, **changes: object) -> None:
        """Write the bridge's settings file: the base settings with `changes`."""
        self.bridge.write_settings(**(self.settings | changes))


@dataclass(kw_only=True)
class World:
    """All parts of a run."""

    scale: Scale
    users: list[str]
    nodes: Sequence[LocalNode]
    slots: Sequence[BridgeSlot]
    to_pages: Proxy
    crowd: Crowd
    history: History
    checker: Checker
    producers: Producers

    @property
    def anomalies(self) -> list[str]:
        """Exits and tracebacks of bridges that no fault explains."""
        return [each for slot in self.slots for each in slot.bridge.anomalies]

    def new_problems(self) -> list[str]:
        """Return the anomalies and violations that no earlier call returned."""
        of_bridges = [
            each for slot in self.slots for each in slot.bridge.new_problems()
        ]
        return self.checker.new_problems() + of_bridges

    async def wait_for_windows(self, *, within_s: float) -> None:
        """
        Wait until all windows are connected, before anything is published.

        A page without a position receives the messages that its user has not received yet.
        If another window were faster, it would miss the first messages.

        Raises:
            HangError: If it takes longer than `within_s`.

        """
        deadline_s = time.monotonic() + within_s
        while not self.checker.all_synced(len(self.crowd.plans)):
            if time.monotonic() > deadline_s:
                raise HangError(await self._hang_text({}))
            await asyncio.sleep(_POLL_S)

    async def windows_per_bridge(self) -> list[int]:
        """Return the window count of each bridge, when their sum is complete."""
        counts: list[int] = []
        for _ in range(_COUNT_ATTEMPTS):
            counts = [await slot.bridge.count_windows() for slot in self.slots]
            if sum(counts) == len(self.crowd.plans):
                break
            await asyncio.sleep(_POLL_S)  # a bridge updates its count once per second
        return counts

    async def wait_until_alive(self, *, within_s: float) -> float:
        """
        Wait until a new message per user has reached all windows, and all bridges are ready.

        The messages alone would not show that each bridge of a fleet works.

        Returns:
            The seconds until the messages had arrived.

        Raises:
            HangError: If it takes longer than `within_s`.

        """
        start_s = time.monotonic()
        numbers: dict[str, int] = {}
        try:
            async with asyncio.timeout(within_s):
                await self.publish_probes(numbers)
        except TimeoutError:
            raise HangError(await self._hang_text(numbers)) from None
        while self._without(numbers):
            if time.monotonic() - start_s > within_s:
                raise HangError(await self._hang_text(numbers))
            await asyncio.sleep(_POLL_S)
        alive_s = time.monotonic() - start_s
        for slot in self.slots:
            if not await slot.bridge.wait_until_ready(within_s=within_s - alive_s):
                raise HangError(await self._hang_text(numbers))
        return alive_s

    async def publish_probes(self, numbers: dict[str, int]) -> None:
        """Publish a message to each user, and add its number to `numbers`."""

        async def probe(user: str) -> None:
            numbers[user] = await self.producers.probes[user].publish(body_bytes=0)

        async with asyncio.TaskGroup() as tasks:
            for user in self.users:
                tasks.create_task(probe(user), name=f"probe {user}")

    async def expect_probes(self, numbers: dict[str, int]) -> None:
        """Record the windows that the messages do not reach, although a fault must not."""
        deadline_s = time.monotonic() + self.scale.probes_s
        while self._without(numbers):
            if time.monotonic() > deadline_s:
                break
            await asyncio.sleep(_POLL_S)
        for window in self._without(numbers):
            user = next(plan.user for plan in self.crowd.plans if plan.name == window)
            t = self.history.t
            self.history.add(Overdue(t, window, user, PROBE, numbers[user]))

    async def settle(self, *, within_s: float) -> bool:
        """Wait until all windows have all confirmed messages; false after `within_s`."""
        deadline_s = time.monotonic() + within_s
        while next(self.checker.missing(), None) is not None:
            if time.monotonic() > deadline_s:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def _without(self, numbers: dict[str, int]) -> list[str]:
        return [
            plan.name
            for plan in self.crowd.plans
            if plan.user in numbers
            and not self.checker.has_received(plan.name, (PROBE, numbers[plan.user]))
        ]

    async def _hang_text(self, numbers: dict[str, int]) -> str:
        bridges = [await self._state_text(slot.bridge) for slot in self.slots]
        unconfirmed = [user for user in self.users if user not in numbers]
        behind = self._without(numbers)
        return (
            f"probes not confirmed: {unconfirmed}; windows without their probe: {behind}; "
            f"{'; '.join(bridges)}; RabbitMQ: {[node.pids for node in self.nodes]}; "
            f"refused pages: {self.crowd.js.refusals[-3:]}"
        )

    async def _state_text(self, bridge: BridgeProcess) -> str:
        unready = await bridge.unready_reasons()
        return f"{bridge.name}: pid {bridge.pid}, {unready or 'ready'}"

    async def settle_dead_letters(self, *, within_s: float) -> None:
        """Record the dead letters, until all invalid messages are among them."""
        deadline_s = time.monotonic() + within_s
        await self.record_dead_letters()
        while next(self.checker.missing_dead_letters(), None) is not None:
            if time.monotonic() > deadline_s:
                return
            await asyncio.sleep(_POLL_S)
            await self.record_dead_letters()

    async def settle_receipts(self, *, within_s: float) -> None:
        """Record the receipts, until there is one for each message that asked for it."""
        deadline_s = time.monotonic() + within_s
        await self._record_events()
        while next(self.checker.missing_receipts(), None) is not None:
            if time.monotonic() > deadline_s:
                return
            await asyncio.sleep(_POLL_S)
            await self._record_events()

    async def settle_presence(self, *, quiet_s: float, within_s: float) -> None:
        """
        Let some users leave; record who is online until workers and bridges know it.

        Args:
            quiet_s: How long to wait before that.
            within_s: How long both may take.

        """
        # Windows that have reconnected just now are not judged.
        await asyncio.sleep(NOTED_S)
        deadline_s = time.monotonic() + within_s
        leaving = set(self.users[::_LEAVING_EACH])
        for plan in self.crowd.plans:
            if plan.user in leaving:
                await self.crowd.sleep(plan)
        await asyncio.sleep(quiet_s)
        presence = self.checker.presence
        while True:
            await self._record_events()
            for slot in self.slots:
                counts = await slot.bridge.windows_of(self.users)
                t = self.history.t
                self.history.add(PresenceCounted(t, slot.bridge.name, counts))
            is_known = not (
                any(map(presence.has_windows, leaving)) or any(presence.wrong())
            )
            if is_known or time.monotonic() > deadline_s:
                return
            await asyncio.sleep(_POLL_S)

    async def _record_events(self) -> None:
        for event in await take_all(self.nodes[0], _EVENTS):
            properties, body = event.properties, orjson.loads(event.body)
            event_id = (properties.message_id or b"").decode()
            t, user = self.history.t, body["user"]
            if event.routing_key.startswith(b"user."):
                decided_t = round(time_of(body["at"], now_s=time.time(), t=t), 4)
                facts = (body["windows"], body["seq"], event_id, body["at"], decided_t)
                self.history.add(PresenceReported(t, user, *facts))
                continue
            name = (properties.correlation_id or b"").decode()
            producer, _, number = name.rpartition("-")
            self.history.add(
                Reported(
                    *(t, user, producer, int(number or 0)),
                    *(body["outcome"], event_id, body["delay_ms"]),
                )
            )

    async def record_dead_letters(self, names: BrokerNames = NAMES) -> None:
        """Take the dead letters of a namespace and record them."""
        for letter in await take_all(self.nodes[0], names.dead):
            found = _BODY.search(letter.body)
            user, producer, number = found.groups() if found else (b"", b"", b"0")
            reason = header_bytes(letter.properties.headers, Header.REASON) or b""
            self.history.add(
                DeadLettered(
                    self.history.t,
                    user.decode(),
                    producer.decode(),
                    int(number),
                    reason.decode(),
                )
            )


@asynccontextmanager
async def running(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run coroutines as tasks until the end of the block."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(each) for each in coroutines]
        try:
            yield
        finally:
            for task in running:
                task.cancel()


def time_of(at: str, *, now_s: float, t: float) -> float:
    """
    Return the time of the history of what a bridge dates `at`, whose clock may have jumped.

    Args:
        at: In RFC 3339.
        now_s: Unix time.
        t: The same as a time of the history.

    """
    ahead_s = datetime.fromisoformat(at).timestamp() - now_s
    return t + ahead_s - round(ahead_s / CLOCK_JUMP_S) * CLOCK_JUMP_S


async def declare_event_queue(node: LocalNode) -> None:
    """Declare the queue in which the events for workers wait until the end of the run."""
    connection = await open_connection(
        BrokerAddress((node.url,)), purpose=Purpose.CHECK, reader=FrameReader
    )
    exchange, queue = events_exchange(NAMES), Queue(_EVENTS, QUORUM)
    binding = Binding(exchange.name, queue, "#")
    wanted = Topology([exchange], [queue], [binding])
    try:
        await declare(connection, wanted, timeout_s=_DECLARE_TIMEOUT_S)
    finally:
        await connection.disconnect()


def base_settings(scale: Scale, secret: str) -> dict[str, object]:
    """Return the base settings of all bridges: short timeouts, which faults can exceed."""
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
        "presence": "true",
        "presence_debounce": f"{DEBOUNCE_S:g}s",
        "log_level": "info",
    }


def user_names(scale: Scale) -> list[str]:
    """Return the names of all users."""
    return [f"u{number}" for number in range(scale.users)]


def tokens_of(users: Sequence[str], secret: str) -> dict[str, str]:
    """Return a token per user, valid longer than any run."""
    return {user: _token(user, secret) for user in users}


def publisher_at(*urls: str) -> Publisher:
    """Return a publisher for producers; it connects to the first of `urls` that answers."""
    return Publisher(BrokerAddress(urls), NAMES, metrics=Metrics())


def _token(user: str, secret: str) -> str:
    return issue_token(
        user,
        secret=secret,
        algorithm="HS256",
        ttl_s=_TOKEN_TTL_S,
        audience=None,
        issuer=None,
        now_s=time.time(),
    )
