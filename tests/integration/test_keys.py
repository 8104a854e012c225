"""Messages with a key from a producer to pages, and what operators see of them."""

from pathlib import Path

import aiohttp
import pytest

from bridge.core.message_options import MessageOptions, render_options
from bridge.core.properties import PERSISTENT, Properties
from tests.conftest import eventually
from tests.integration.running import (
    OPERATOR_TOKEN,
    RawWindow,
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode
from tests.redis_server import RedisServer


def with_key(key: str, message_id: str) -> Properties:
    """Return properties with a key."""
    return Properties(
        delivery_mode=PERSISTENT,
        message_id=message_id.encode(),
        headers=render_options(MessageOptions(key=key)),
    )


def sync_of(window: RawWindow) -> object:
    """Return the summary of the replay."""
    return next(each[1] for each in window.events if each[0] == "bridge:sync")


@pytest.mark.parametrize("store", ["memory", "sqlite", "redis"])
async def test_a_page_that_returns_receives_the_newest_of_each_key(
    broker: LocalNode, namespace: str, tmp_path: Path, store: str
) -> None:
    """It has missed nothing, and a trace of a replaced message names the newer one."""
    async with RedisServer.start(tmp_path) as server:
        urls = {
            "memory": "memory:",
            "sqlite": f"sqlite:{tmp_path / 'inbox.sqlite3'}",
            "redis": server.url,
        }
        settings = settings_for(broker, namespace, inbox=urls[store])
        async with (
            running_bridge(settings) as running,
            open_worker(broker, namespace) as worker,
        ):
            url, tokens = running.listening.public_url, [running.token("ann")]
            async with open_windows(url, tokens) as [window]:
                await worker.publish("ann", "plain")
                await worker.publish("ann", 1, properties=with_key("job", "m1"))
                await worker.publish("ann", 2, properties=with_key("job", "m2"))
                await eventually(lambda: window.data() == ["plain", 1, 2])
                position = window.events[-1][2]

            for number in range(3, 20):
                properties = with_key("job", f"m{number}")
                await worker.publish("ann", number, properties=properties)
            await worker.publish("ann", "last")
            await eventually(lambda: running.settled("stored") == 21)

            async with open_windows(url, tokens, position=str(position)) as [window]:
                await eventually(lambda: window.data() == [19, "last"])
                expected = {
                    "replayed": 2,
                    "complete": True,
                    "missed": 0,
                    "reason": None,
                }
                assert sync_of(window) == expected
            async with aiohttp.ClientSession() as session:
                newest = window.events[0][2]
                path = f"{running.listening.operator_url}/api/trace/m18?user=ann"
                headers = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
                async with session.get(path, headers=headers) as response:
                    trace = await response.json()
            assert trace["fate"] == "replaced"
            assert trace["verdict"] == f"replaced: by the message at position {newest}"
