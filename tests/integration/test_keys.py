"""Messages with a key from a producer to pages, and what operators see of them."""

from typing import Any

import aiohttp
import pytest

from bridge.core.message_options import MessageOptions, render_options
from bridge.core.properties import PERSISTENT, Properties
from tests.conftest import eventually
from tests.integration.running import (
    OPERATOR_TOKEN,
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode


def with_key(key: str, message_id: str, **flags: Any) -> Properties:
    """Return properties with a key."""
    return Properties(
        delivery_mode=PERSISTENT,
        message_id=message_id.encode(),
        headers=render_options(MessageOptions(key=key, **flags)),
    )


async def test_a_page_that_returns_receives_the_newest_of_each_key(
    broker: LocalNode, namespace: str, inbox_url: str
) -> None:
    """It has missed nothing, and a trace of a replaced message names the newer one."""
    settings = settings_for(broker, namespace, inbox=inbox_url)
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
            assert window.sync == expected
        async with aiohttp.ClientSession() as session:
            newest = window.events[0][2]
            path = f"{running.listening.operator_url}/api/trace/m18?user=ann"
            headers = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
            async with session.get(path, headers=headers) as response:
                trace = await response.json()
        assert trace["fate"] == "replaced"
        assert trace["verdict"] == f"replaced: by the message at position {newest}"


@pytest.mark.parametrize("inbox_url", ["sqlite", "redis"], indirect=True)
async def test_retained_messages_survive_a_restart_and_the_limit_of_keys_holds(
    broker: LocalNode, namespace: str, inbox_url: str
) -> None:
    """One key too many is a dead letter that names the setting; nothing waits behind it."""
    settings = settings_for(broker, namespace, inbox=inbox_url, max_retained=2)
    async with (
        running_bridge(settings) as running,
        open_worker(broker, namespace) as worker,
    ):
        for number in range(3):
            key = with_key(f"job-{number}", f"a{number}", is_retained=True)
            await worker.publish("ann", number, properties=key)
        await worker.publish("ann", "newer", properties=with_key("job-0", "b"))
        await eventually(lambda: running.settled("stored") == 3)
        reason = "too_many_retained"
        await eventually(lambda: running.settled("dead_letter", reason) == 1)
        url, tokens = running.listening.public_url, [running.token("ann")]
        async with open_windows(url, tokens, acks="manual") as [window]:
            await eventually(lambda: window.data() == [1, "newer"])
            last = str(window.events[1][2])
            await window.websocket.send_str(f'42["ack","{last}"]')

    async with (
        running_bridge(settings) as running,
        open_worker(broker, namespace) as worker,
    ):
        url, tokens = running.listening.public_url, [running.token("ann")]
        async with open_windows(url, tokens) as [window]:
            await eventually(lambda: window.data() == [1, "newer"])
            assert [event[2] for event in window.events[:2]] == [last, last]
            clear = with_key("job-1", "c", is_cleared=True)
            await worker.publish("ann", "over", properties=clear)
            await eventually(lambda: window.data() == [1, "newer", "over"])
        async with open_windows(url, tokens) as [window]:
            await eventually(lambda: "newer" in window.data())
            assert 1 not in window.data()
