"""A whole bridge with a real broker, a worker that publishes, and windows."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import socketio

from bridge.amqp.connection import BrokerAddress
from bridge.amqp.publish.publisher import Publisher
from bridge.app import Bridge
from bridge.auth.issuing import signed_token
from bridge.core.broker_names import BrokerNames
from bridge.core.properties import PERSISTENT, Properties
from bridge.http.listeners import Listening
from bridge.metrics import Metrics
from bridge.settings.load import load_settings
from bridge.settings.model import Settings
from tests.conftest import eventually
from tests.local_node import LocalNode
from tests.redis_server import RedisServer

SECRET = "integration-secret-of-more-than-32-bytes"
OPERATOR_TOKEN = "operator-token-of-the-tests"


def settings_for(broker: LocalNode, namespace: str, **changes: object) -> Settings:
    """Return settings with free ports and the namespace of a test."""
    defaults: dict[str, object] = {
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
    return load_settings(defaults | changes)


@dataclass
class RunningBridge:
    """A bridge whose ports are open."""

    bridge: Bridge
    listening: Listening
    stop: asyncio.Event

    @property
    def settings(self) -> Settings:
        """The current settings."""
        return self.bridge.settings

    def token(self, user: str) -> str:
        """Sign a token that the bridge accepts."""
        return signed_token(self.settings, user, ttl_s=300)

    def sample(self, name: str, **labels: str) -> float:
        """Return the value of a metric; 0 if it has none yet."""
        return (
            self.bridge.components.metrics.registry.get_sample_value(name, labels) or 0
        )

    def settled(self, outcome: str, reason: str = "") -> float:
        """Return how many deliveries were settled with this outcome."""
        name = "bridge_deliveries_settled_total"
        return self.sample(name, outcome=outcome, reason=reason)


@asynccontextmanager
async def running_bridge(
    settings: Settings, *, until_ready: bool = True
) -> AsyncIterator[RunningBridge]:
    """Run a bridge in this process, and wait until it is ready if `until_ready`."""
    # In production the bridge is built before the loop runs, because it reads files.
    bridge = await asyncio.to_thread(Bridge, settings)
    stop = asyncio.Event()
    listening: asyncio.Future[Listening] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(
            bridge.run(stop, on_listening=listening.set_result), name="bridge"
        )
        await eventually(lambda: running.done() or listening.done())
        if running.done():
            running.result()  # raises the error of the start
        if until_ready:
            await eventually(lambda: not bridge.unready_reasons(), within_s=20)
        try:
            yield RunningBridge(bridge, listening.result(), stop)
        finally:
            stop.set()


@asynccontextmanager
async def two_bridges(
    broker: LocalNode, namespace: str, folder: Path
) -> AsyncIterator[tuple[RunningBridge, RunningBridge]]:
    """Run two bridges that share the inboxes on a Redis server in `folder`."""
    async with RedisServer.start(folder) as server:
        settings = settings_for(broker, namespace, inbox=server.url)
        async with running_bridge(settings) as one, running_bridge(settings) as other:
            yield one, other


async def post(
    running: RunningBridge, body: bytes, *, token: str | None = OPERATOR_TOKEN
) -> tuple[int, dict[str, object], dict[str, str]]:
    """Publish over HTTP; return status, decoded body and headers."""
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
    """Publishes like a worker, with confirms; it may publish invalid messages."""

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
        """Publish one message: `body` unchanged, or `data` as JSON."""
        key = user.encode() if isinstance(user, str) else user
        await self.publisher.publish(
            self.exchange,
            key,
            body=orjson.dumps(data) if body is None else body,
            properties=properties or Properties(delivery_mode=PERSISTENT),
        )


@asynccontextmanager
async def open_worker(broker: LocalNode, namespace: str) -> AsyncIterator[Worker]:
    """Connect a worker of this namespace."""
    names = BrokerNames(namespace)
    publisher = Publisher(BrokerAddress((broker.url,)), names, metrics=Metrics())
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(publisher.run(), name="worker")
        yield Worker(publisher, names.messages)
        running.cancel()


@asynccontextmanager
async def python_client(
    *, connector: aiohttp.BaseConnector | None = None, **options: Any
) -> AsyncIterator[socketio.AsyncClient]:
    """
    A client of python-socketio, which is disconnected at the end.

    The library leaves its own HTTP session open after some ends of a connection, which
    fails whatever test runs when the session is collected.
    """
    async with aiohttp.ClientSession(connector=connector) as http:
        client = socketio.AsyncClient(http_session=http, handle_sigint=False, **options)
        try:
            yield client
        finally:
            await client.shutdown()


@dataclass
class RawWindow:
    """
    A page without a client library: one WebSocket with hand-written packets.

    It is cheap enough for hundreds in a test. `events` has the received events as lists.
    """

    websocket: aiohttp.ClientWebSocketResponse
    events: list[list[object]] = field(default_factory=list)
    refusal: dict[str, object] | None = None

    async def read(self) -> None:
        """Receive events until the bridge closes the connection."""
        async for message in self.websocket:
            packet: str = message.data
            if packet == "2":
                await self.websocket.send_str("3")
            elif packet.startswith("42"):
                self.events.append(orjson.loads(packet[2:]))
            elif packet.startswith("44"):
                self.refusal = orjson.loads(packet[2:])

    def data(self, event: str = "message") -> list[object]:
        """Return the data of all events with this name, in order."""
        return [args[1] for args in self.events if args[0] == event]

    @property
    def sync(self) -> object:
        """The summary of its first replay, once that has ended."""
        return self.data("bridge:sync")[0]

    @property
    def is_synced(self) -> bool:
        """Whether its replay has ended."""
        return bool(self.data("bridge:sync"))


@asynccontextmanager
async def open_windows(
    url: str,
    tokens: list[str],
    *,
    until: Callable[[RawWindow], bool] | None = None,
    **auth: str,
) -> AsyncIterator[list[RawWindow]]:
    """Connect a window for each token, with other fields of `auth`; wait for the syncs."""
    is_done = until or (lambda window: window.is_synced)
    target = f"{url}/socket.io/?EIO=4&transport=websocket"
    connector = aiohttp.TCPConnector(
        limit=0
    )  # the default of 100 connections would block
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        asyncio.TaskGroup() as tasks,
    ):
        windows = []
        for token in tokens:
            websocket = await session.ws_connect(target)
            await websocket.send_str(
                "40" + orjson.dumps({"token": token, **auth}).decode()
            )
            window = RawWindow(websocket)
            tasks.create_task(window.read(), name="window")
            windows.append(window)
        await eventually(lambda: all(map(is_done, windows)))
        try:
            yield windows
        finally:
            for window in windows:
                await window.websocket.close()
