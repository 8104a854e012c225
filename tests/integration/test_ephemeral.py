"""Ephemeral messages from a producer to pages, on one bridge and through Redis."""

import asyncio
from pathlib import Path

import aio_pika
import aiohttp

from tests.conftest import eventually
from tests.integration.running import (
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
    two_bridges,
)
from tests.local_node import LocalNode


async def test_an_ephemeral_message_reaches_open_windows_and_no_inbox(
    broker: LocalNode, namespace: str, inbox_url: str
) -> None:
    """It carries the position of the message before it; a page that comes later misses it."""
    settings = settings_for(broker, namespace, inbox=inbox_url)
    async with (
        running_bridge(settings) as running,
        open_worker(broker, namespace) as worker,
        open_windows(running.listening.public_url, [running.token("ann")]) as [window],
    ):
        await worker.publish("ann", 1)
        await eventually(lambda: window.data() == [1])
        await publish_ephemeral(broker, namespace, b"2")
        await eventually(lambda: window.data() == [1, 2])
        await worker.publish("ann", 3)
        await eventually(lambda: window.data() == [1, 2, 3])

        one, ephemeral, three = (e[2] for e in window.events if e[0] == "message")
        assert one == ephemeral != three
        assert running.settled("ephemeral") == 1
        async with open_windows(
            running.listening.public_url, [running.token("ann")]
        ) as [later]:
            await eventually(lambda: later.data() == [1, 3])


async def test_ephemeral_messages_reach_windows_on_another_bridge(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """One bridge consumes the queue, and the other one has the window."""
    async with (
        two_bridges(broker, namespace, tmp_path) as (one, other),
        open_windows(one.listening.public_url, [one.token("ann")]) as [near],
        open_windows(other.listening.public_url, [one.token("ann")]) as [far],
    ):
        for number in range(10):
            await publish_ephemeral(broker, namespace, b"%d" % number)

        await eventually(lambda: near.data() == far.data() == list(range(10)))


async def test_a_page_that_connects_with_the_position_gets_what_came_after_it(
    broker: LocalNode, namespace: str
) -> None:
    """The web tier reads it before its own data, with the key for publishing."""
    settings = settings_for(broker, namespace, api_key="the key of the web tier")
    async with (
        running_bridge(settings) as running,
        open_worker(broker, namespace) as worker,
        aiohttp.ClientSession() as session,
    ):
        await worker.publish("ann", "before")
        await eventually(lambda: running.settled("stored") == 1)
        url = f"{running.listening.operator_url}/api/users/ann/position"
        headers = {"X-API-Key": "the key of the web tier"}
        async with session.get(url, headers=headers) as response:
            position = (await response.json())["position"]
        await worker.publish("ann", "after")
        await eventually(lambda: running.settled("stored") == 2)

        token = running.token("ann")
        async with open_windows(
            running.listening.public_url, [token], position=position
        ) as [window]:
            await eventually(lambda: window.data() == ["after"])
            await eventually(lambda: window.is_synced)
            expected = {"replayed": 1, "complete": True, "missed": 0, "reason": None}
            assert window.sync == expected


async def publish_ephemeral(broker: LocalNode, namespace: str, body: bytes) -> None:
    """Publish as a producer does, with a confirm."""
    connection = await aio_pika.connect(broker.url)
    async with asyncio.timeout(20), connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(f"{namespace}.messages")
        message = aio_pika.Message(body, headers={"x-bridge-ephemeral": True})
        await exchange.publish(message, routing_key="ann")
