"""A back end that publishes commands, and what windows and tokens show of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import orjson
from yarl import URL

from bridge.amqp.connection import BrokerAddress
from bridge.amqp.publish.publisher import Publisher
from bridge.core.broker_names import BrokerNames
from bridge.core.properties import PERSISTENT, Properties
from bridge.metrics import Metrics
from tests.conftest import eventually
from tests.integration.running import RawWindow, RunningBridge, open_windows
from tests.local_node import LocalNode

PROPERTIES = Properties(delivery_mode=PERSISTENT)


class BackEnd:
    """Publishes commands with confirms."""

    def __init__(self, publisher: Publisher, names: BrokerNames) -> None:
        self._publisher = publisher
        self._exchange = names.control

    async def send(self, command: str, argument: object = None, **more: bytes) -> None:
        """Publish a command; `body` replaces the argument as JSON."""
        body = more.get("body", orjson.dumps(argument))
        await self._publisher.publish(
            self._exchange, command.encode(), body=body, properties=PROPERTIES
        )


@asynccontextmanager
async def back_end(
    broker: LocalNode, namespace: str, *, user: str | None = None
) -> AsyncIterator[BackEnd]:
    """Connect a back end of this namespace, as `user` with the password `pw`."""
    names = BrokerNames(namespace)
    url = URL(broker.url)
    if user is not None:
        url = url.with_user(user).with_password("pw")
    publisher = Publisher(BrokerAddress((str(url),)), names, metrics=Metrics())
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(publisher.run(), name="back end")
        yield BackEnd(publisher, names)
        running.cancel()


def in_one_hour() -> str:
    """Return a time as the back end writes it."""
    return (datetime.now(UTC) + timedelta(hours=1)).isoformat()


async def closed(window: RawWindow) -> dict[str, object]:
    """Wait until the bridge has closed a window; return its notice."""
    await eventually(lambda: window.websocket.closed, within_s=30)
    (notice,) = window.data("bridge:closing")
    assert isinstance(notice, dict)
    return notice


async def refusal(running: RunningBridge, token: str) -> str | None:
    """Connect with `token`; return the code of the refusal."""
    async with open_windows(
        running.listening.public_url,
        [token],
        until=lambda window: window.is_synced or window.refusal is not None,
    ) as (window,):
        data = (window.refusal or {}).get("data")
        return None if data is None else str(data["code"])  # type: ignore[index] # as sent


def commands(running: RunningBridge, outcome: str) -> float:
    """Return how many commands ended like that."""
    return running.sample("bridge_control_commands_total", outcome=outcome)
