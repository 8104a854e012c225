"""A whole bridge against a real broker, a worker to publish, and windows to watch."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import orjson

from bridge.amqp.connection import BrokerAddress
from bridge.amqp.publish.publisher import Publisher
from bridge.app import Bridge
from bridge.cli.token import signed_token
from bridge.core.broker_names import BrokerNames
from bridge.core.properties import PERSISTENT, Properties
from bridge.demo.private_node import LocalNode
from bridge.http.listeners import Listening
from bridge.metrics import Metrics
from bridge.settings.load import load_settings
from bridge.settings.model import Settings
from tests.conftest import eventually

SECRET = "integration-secret-of-more-than-32-bytes"
OPERATOR_TOKEN = "operator-token-of-the-tests"


def settings_for(broker: LocalNode, namespace: str, **changes: object) -> Settings:
    """Return settings with free ports and this test's names."""
    given: dict[str, object] = {
        "amqp_url": broker.url,
        "namespace": namespace,
        "port": 0,
        "operator_port": 0,
        "operator_token": OPERATOR_TOKEN,
        "jwt_secret": SECRET,
        "inbox": "memory:",
        "retry_delays": "50ms,50ms",
        "drain_timeout": "5s",
    }
    return load_settings(given | changes)


@dataclass
class RunningBridge:
    """A bridge that listens, and what a test asks of it."""

    bridge: Bridge
    listening: Listening
    stop: asyncio.Event

    @property
    def settings(self) -> Settings:
        """What it runs with."""
        return self.bridge.settings

    def token(self, user: str) -> str:
        """Sign a token that it accepts."""
        return signed_token(self.settings, user, ttl_s=300)

    def sample(self, name: str, **labels: str) -> float:
        """Read one of its metrics; 0 if it was never touched."""
        return (
            self.bridge.components.metrics.registry.get_sample_value(name, labels) or 0
        )

    def settled(self, outcome: str, reason: str = "") -> float:
        """Return how many deliveries ended that way."""
        name = "bridge_deliveries_settled_total"
        return self.sample(name, outcome=outcome, reason=reason)


@asynccontextmanager
async def running_bridge(
    settings: Settings, *, waits: bool = True
) -> AsyncIterator[RunningBridge]:
    """Run a bridge in this process; ready when entered, unless `waits` is false."""
    # Built before there is a loop, in real life: it reads files.
    bridge = await asyncio.to_thread(Bridge, settings)
    stop = asyncio.Event()
    listening: asyncio.Future[Listening] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(
            bridge.run(stop, on_listening=listening.set_result), name="bridge"
        )
        await eventually(lambda: running.done() or listening.done())
        if running.done():
            running.result()  # raises what kept it from starting
        if waits:
            await eventually(lambda: not bridge.unready_reasons(), within_s=20)
        try:
            yield RunningBridge(bridge, listening.result(), stop)
        finally:
            stop.set()


async def post(
    running: RunningBridge, body: bytes, *, token: str | None = OPERATOR_TOKEN
) -> tuple[int, dict[str, object], dict[str, str]]:
    """Post to the publishing door; status, decoded body, headers."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{running.listening.operator_url}/api/publish", data=body, headers=headers
        ) as response,
    ):
        return (
            response.status,
            await response.json(content_type=None),
            dict(response.headers),
        )


@dataclass
class Worker:
    """Publishes as a worker does, with confirms, any bytes it likes."""

    publisher: Publisher
    exchange: str

    async def publish(
        self,
        user: str | bytes,
        data: object = None,
        *,
        body: bytes | None = None,
        properties: Properties | None = None,
    ) -> None:
        """Publish one message; `body` goes out as it is, `data` as JSON."""
        key = user.encode() if isinstance(user, str) else user
        await self.publisher.publish(
            self.exchange,
            key,
            body=orjson.dumps(data) if body is None else body,
            properties=properties or Properties(delivery_mode=PERSISTENT),
        )


@asynccontextmanager
async def working(broker: LocalNode, namespace: str) -> AsyncIterator[Worker]:
    """Connect a worker."""
    names = BrokerNames(namespace)
    publisher = Publisher(BrokerAddress((broker.url,)), names, metrics=Metrics())
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(publisher.run(), name="worker")
        yield Worker(publisher, names.messages)
        running.cancel()


@dataclass
class RawWindow:
    """
    A page without a library: one websocket, engine.io and socket.io by hand.

    Cheap enough for hundreds in a test. `events` holds what came, as decoded lists.
    """

    websocket: aiohttp.ClientWebSocketResponse
    events: list[list[object]] = field(default_factory=list)
    refusal: dict[str, object] | None = None

    async def read(self) -> None:
        """Take what comes until the bridge closes."""
        async for message in self.websocket:
            packet: str = message.data
            if packet == "2":
                await self.websocket.send_str("3")
            elif packet.startswith("42"):
                self.events.append(orjson.loads(packet[2:]))
            elif packet.startswith("44"):
                self.refusal = orjson.loads(packet[2:])

    def data(self, event: str = "message") -> list[object]:
        """Return the data of all messages of that event, in the order they came."""
        return [args[1] for args in self.events if args[0] == event]

    @property
    def is_synced(self) -> bool:
        """Whether its replay is over."""
        return bool(self.data("bridge:sync"))


@asynccontextmanager
async def open_windows(
    url: str, tokens: list[str], *, until: Callable[[RawWindow], bool] | None = None
) -> AsyncIterator[list[RawWindow]]:
    """Connect a window for each token, all of them synced when entered."""
    is_there = until or (lambda window: window.is_synced)
    target = f"{url}/socket.io/?EIO=4&transport=websocket"
    connector = aiohttp.TCPConnector(limit=0)  # 100 by default; the next one waits
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        asyncio.TaskGroup() as tasks,
    ):
        windows = []
        for token in tokens:
            websocket = await session.ws_connect(target)
            await websocket.send_str("40" + orjson.dumps({"token": token}).decode())
            window = RawWindow(websocket)
            tasks.create_task(window.read(), name="window")
            windows.append(window)
        await eventually(lambda: all(map(is_there, windows)))
        try:
            yield windows
        finally:
            for window in windows:
                await window.websocket.close()
