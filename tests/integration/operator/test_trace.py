"""The story of one message, over the API and on the command line."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from bridge.core.message import Message, MessageLimits
from bridge.core.properties import PERSISTENT, Properties
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.operator.api_client import ApiAsker, asking
from tests.integration.operator.commands import run_command
from tests.integration.running import (
    RunningBridge,
    open_windows,
    open_worker,
    python_client,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode


def properties(message_id: str, **more: Any) -> Properties:
    """Return the properties of a published message."""
    return Properties(delivery_mode=PERSISTENT, message_id=message_id.encode(), **more)


async def traced(api: ApiAsker, message_id: str, user: str | None = None) -> Any:
    """Return the trace of a message."""
    query = f"?user={quote(user, safe='')}" if user else ""
    return await api.get(f"/api/trace/{quote(message_id, safe='')}{query}")


def stages(trace: Any) -> list[str]:
    """Return the steps of a story."""
    return [step["stage"] for step in trace["story"]]


async def settled(running: RunningBridge, messages: int, *outcomes: str) -> None:
    """Wait until `count` deliveries are settled."""

    def count() -> float:
        metric = running.bridge.components.metrics.settled
        return sum(
            sample.value
            for family in metric.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
            and sample.labels["outcome"] in (outcomes or ("stored",))
        )

    await eventually(lambda: count() == messages)


async def test_the_trace_of_a_delivered_message_is_complete(
    broker: LocalNode, namespace: str
) -> None:
    """It was published over HTTP, stored, written to two windows and delivered."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        asking(running) as api,
        open_windows(
            running.listening.public_url, [running.token("ann")] * 2
        ) as windows,
    ):
        body = {"user": "ann", "data": 1, "id": "order/47 [red]"}
        accepted = await api.ask("POST", "/api/publish", body)
        await eventually(lambda: all(window.data() for window in windows))
        await windows[0].websocket.send_str("3")

        async def is_delivered() -> bool:
            return bool((await traced(api, "order/47 [red]"))["fate"] == "delivered")

        await eventually(is_delivered)
        told = await traced(api, "order/47 [red]")
        by_user = await traced(api, "order/47 [red]", "ann")
        printed = await asyncio.to_thread(
            run_command, running, "trace", "order/47 [red]"
        )

    assert accepted.status == 202
    assert told == by_user
    assert stages(told) == ["published", "taken", "stored", "written", "delivered"]
    times = [step["at_s"] for step in told["story"][:-1]]
    assert times == sorted(times)
    assert told["story"][2]["position"] == windows[0].events[-1][2]
    assert told["story"][3]["windows"] == 2
    assert (told["user"], told["others"], told["fate"]) == ("ann", [], "delivered")
    assert told["silent"] == []
    assert "written to 2 windows" in printed.stdout
    assert "order/47 [red] of ann" in printed.stderr
    assert printed.stdout.splitlines()[-1].startswith("delivered: ")


async def test_the_trace_of_a_waiting_message_has_a_reason(
    broker: LocalNode, namespace: str
) -> None:
    """First there is no window, then one that has not acked, then it has acked."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        open_worker(broker, namespace) as worker,
        asking(running) as api,
        python_client() as page,
    ):
        said = properties("m", timestamp=int(time.time()).to_bytes(8))
        await worker.publish("ann", 1, properties=said)
        await settled(running, 1)
        alone = await traced(api, "m")
        positions: asyncio.Queue[str] = asyncio.Queue(maxsize=10)
        page.on("message", lambda _data, position: positions.put_nowait(position))
        await page.connect(
            running.listening.public_url,
            auth={"token": running.token("ann"), "acks": "manual"},
            transports=["websocket"],
        )
        position = await asyncio.wait_for(positions.get(), 10 * SLOW_FACTOR)
        written = await traced(api, "m")
        await page.call("ack", position, timeout=10 * SLOW_FACTOR)
        acked = await traced(api, "m")
        await page.disconnect()
        await worker.publish("ann", 1, properties=properties("m"))
        await settled(running, 1, "duplicate")
        again = await traced(api, "m")

    assert alone["fate"] == written["fate"] == "waiting"
    assert "no window of the user has connected" in alone["verdict"]
    assert stages(written) == ["published", "taken", "stored", "written", "waiting"]
    assert "by its timestamp" in written["story"][0]["text"]
    assert (
        written["story"][3]["text"]
        == "written to 1 window as part of a replay from the inbox"
    )
    assert "written to 1 window, none has acked it yet" in written["verdict"]
    assert stages(acked)[3:] == ["written", "delivered"]
    assert acked["story"][4]["at_s"] is not None
    assert stages(again)[-1] == "duplicate"
    assert again["fate"] == "delivered"


async def test_a_polled_message_is_delivered_with_the_next_poll(
    broker: LocalNode, namespace: str
) -> None:
    """A message in the queue of its session is not delivered yet."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        open_worker(broker, namespace) as worker,
        asking(running) as api,
        python_client() as page,
    ):
        arrived = asyncio.Event()
        page.on("message", lambda _data, _position: arrived.set())
        await page.connect(
            running.listening.public_url,
            auth={"token": running.token("ann")},
            transports=["polling"],
        )
        await worker.publish("ann", 1, properties=properties("m"))
        await asyncio.wait_for(arrived.wait(), 10 * SLOW_FACTOR)

        async def is_delivered() -> bool:
            return bool((await traced(api, "m"))["fate"] == "delivered")

        await eventually(is_delivered)
        told = await traced(api, "m")

    assert stages(told) == ["taken", "stored", "written", "delivered"]
    assert "the page polled again" in told["story"][3]["text"]


async def test_the_trace_of_a_failed_message_has_each_attempt(
    broker: LocalNode, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was retried twice and dead-lettered, and is in no inbox."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        open_worker(broker, namespace) as worker,
        asking(running) as api,
    ):
        store = running.bridge.components.inbox.append

        async def fail(messages: Sequence[Message]) -> list[int | None]:
            if any(message.id == "poison" for message in messages):
                raise ZeroDivisionError
            return await store(messages)

        monkeypatch.setattr(running.bridge.components.inbox, "append", fail)
        await worker.publish("ann", 1, properties=properties("poison"))
        await worker.publish("ann", body=b"{", properties=properties("malformed"))
        await settled(running, 2, "dead_letter")
        poison = await traced(api, "poison")
        malformed = await traced(api, "malformed")

    assert stages(poison) == ["retried", "retried", "dead"]
    texts = [step["text"] for step in poison["story"]]
    assert "attempt 1 failed, the next is in 0.05 s" in texts[0]
    assert "in the dead letters, attempts_exhausted: " in texts[2]
    assert "; 3 attempts" in texts[2]
    assert (poison["user"], poison["fate"]) == ("ann", "dead")
    assert stages(malformed) == ["dead"]
    assert "malformed_body: " in malformed["verdict"]
    assert "body of 1 bytes is not JSON" in malformed["verdict"]


async def test_the_trace_of_a_redriven_message_has_both_attempts(
    broker: LocalNode, namespace: str
) -> None:
    """It was dead-lettered as too large, and redriven after the limit was raised."""
    settings = settings_for(broker, namespace, max_message_bytes=100)
    async with (
        running_bridge(settings) as running,
        open_worker(broker, namespace) as worker,
        asking(running) as api,
    ):
        await worker.publish("ann", "x" * 200, properties=properties("m"))
        await settled(running, 1, "dead_letter")
        aside = await traced(api, "m")
        running.bridge.components.pipeline.replace_rules(MessageLimits(1000), None)
        await api.ask("POST", "/api/dead/redrive", {"all": True})
        await settled(running, 1)
        stored = await traced(api, "m")

    assert aside["fate"] == "dead"
    assert stages(stored) == ["dead", "redriven", "taken", "stored", "waiting"]
    assert stored["fate"] == "waiting"


async def test_the_trace_of_a_trimmed_message_has_a_reason(
    broker: LocalNode, namespace: str
) -> None:
    """It was over the limit of the inbox, or over its age."""
    settings = settings_for(broker, namespace, inbox_max_messages=10)
    async with (
        running_bridge(settings) as running,
        open_worker(broker, namespace) as worker,
        asking(running) as api,
    ):
        brief = properties("brief", expiration=b"1")
        await worker.publish("ann", 0, properties=properties("first"))
        await worker.publish("bob", 0, properties=brief)
        for _ in range(30):
            await worker.publish("ann", 1)
        await settled(running, 32, "stored", "expired")
        first = await traced(api, "first")
        expired = await traced(api, "brief", "bob")
        assert running.sample("bridge_inbox_trimmed_total") == 21

    assert stages(first)[0] == "stored"
    assert first["fate"] == "trimmed"
    assert "BRIDGE_INBOX_MAX_MESSAGES; it was never delivered" in first["verdict"]
    assert expired["fate"] in {"expired", "unknown"}  # the broker may have dropped it


async def test_after_a_restart_the_trace_comes_from_the_inbox(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """The lost journal is reported. Two users have messages with one id."""
    settings = settings_for(broker, namespace, inbox=f"sqlite:{tmp_path}/i.sqlite3")
    async with (
        running_bridge(settings) as running,
        open_worker(broker, namespace) as worker,
    ):
        for user in ("ann", "bob"):
            await worker.publish(user, 1, properties=properties("m"))
        await settled(running, 2)
    async with running_bridge(settings) as running, asking(running) as api:
        told = await traced(api, "m")
        bobs = await traced(api, "m", "bob")

    assert (told["user"], told["others"], told["looked_at"]) == ("ann", ["bob"], 2)
    assert (bobs["user"], bobs["others"]) == ("bob", [])
    assert stages(told) == stages(bobs) == ["taken", "stored", "waiting"]
    assert told["story"][1]["at_s"] is None
    assert told["story"][0]["at_s"] < told["journal_since_s"]
    assert any("the journal is in memory" in text for text in told["silent"])


async def test_an_unknown_id_has_an_unknown_fate(
    broker: LocalNode, namespace: str
) -> None:
    """The command exits with 1 and lists the gaps; control characters are escaped."""
    hostile = "../\x1b[31m[red]\u202e"
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        asking(running) as api,
    ):
        told = await traced(api, hostile, "[/]")
        printed = await asyncio.to_thread(
            run_command, running, "trace", hostile, "--user", "[/]", expect=1
        )
        refused = await api.ask("GET", "/api/trace/m?user=%0A")

    assert (told["message_id"], told["user"], told["story"]) == (hostile, "[/]", [])
    assert told["fate"] == "unknown"
    assert "unknown: no source" in printed.stdout
    assert "../\\x1b[31m[red]\\u202e of [/]" in printed.stderr
    assert "\x1b" not in printed.stdout + printed.stderr
    assert refused.status == 422
