"""The overview and the queues, from the API and the command line."""

import asyncio
import time
from typing import Any

import orjson
import pytest

from bridge.core.broker_names import BrokerNames
from bridge.core.properties import header_int
from tests.conftest import eventually
from tests.integration.amqp.conftest import open_raw
from tests.integration.dead_letters import take_all
from tests.integration.operator.api_client import ApiAsker, asking
from tests.integration.operator.commands import run_command
from tests.integration.operator.dead_letter_fixtures import BASE_S, publish_dead_letters
from tests.integration.running import (
    open_windows,
    open_worker,
    running_bridge,
    settings_for,
)
from tests.local_node import LocalNode


async def test_the_overview_describes_the_bridge(
    broker: LocalNode, namespace: str
) -> None:
    """The first page of the console needs this one request."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        open_worker(broker, namespace) as worker,
        asking(running) as api,
        open_windows(running.listening.public_url, [running.token("ann")]) as windows,
    ):
        await worker.publish("ann", {"n": 1})
        await worker.publish("ann", body=b"no JSON")
        await eventually(windows[0].data)
        await eventually(lambda: running.settled("dead_letter", "malformed_body") == 1)
        await eventually(lambda: running.bridge.components.intake.in_flight == 0)
        overview = await api.get("/api/overview")

    assert overview["ready"] is True
    assert overview["reasons"] == []
    assert overview["namespace"] == namespace
    assert overview["broker"]["connected"] is True
    assert overview["broker"]["version"].startswith("RabbitMQ ")
    assert (overview["windows"], overview["users"], overview["in_flight"]) == (1, 1, 0)
    assert overview["totals"]["consumed"] == 2
    assert (overview["totals"]["emitted"], overview["totals"]["dead"]) == (1, 1)
    assert 0 < overview["age_s"]["p50"] <= overview["age_s"]["p99"]


async def test_queues_are_counted_over_amqp(broker: LocalNode, namespace: str) -> None:
    """Without the management API: depth and consumers, and what this bridge has in flight."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        open_worker(broker, namespace) as worker,
        asking(running) as api,
    ):
        for _ in range(3):
            await worker.publish("ann", body=b"no JSON")
        await eventually(lambda: running.settled("dead_letter", "malformed_body") == 3)

        async def are_counted() -> bool:
            # A result younger than a second is reused.
            seen = (await api.get("/api/queues"))["items"]
            queues = {queue["name"]: queue for queue in seen}
            inbound = queues[f"{namespace}.inbound.0"]
            is_settled = (inbound["depth"], inbound["unacked"]) == (0, 0)
            return bool(is_settled and queues[f"{namespace}.dead"]["depth"] == 3)

        await eventually(are_counted)
        page = await api.get("/api/queues")
        queues = {queue["name"]: queue for queue in page["items"]}
        first = await api.get("/api/queues?limit=1")
        second = await api.get(f"/api/queues?limit=1&cursor={first['next']}")
        printed = await asyncio.to_thread(run_command, running, "queues", "--json")
        table = await asyncio.to_thread(run_command, running, "queues")

    assert page["next"] is None
    assert queues[f"{namespace}.dead"]["depth"] == 3
    assert queues[f"{namespace}.dead"]["role"] == "dead"
    inbound = queues[f"{namespace}.inbound.0"]
    assert (inbound["depth"], inbound["unacked"], inbound["consumers"]) == (0, 0, 1)
    assert queues[f"{namespace}.retry.50"]["role"] == "retry"
    for queue in [*first["items"], *second["items"], *page["items"]]:
        assert (queue.pop("oldest_s") is None) is (queue["role"] != "dead")
    listed = orjson.loads(printed.stdout)["items"]
    for queue in listed:
        del queue["oldest_s"]
    assert [*first["items"], *second["items"]] == page["items"][:2]
    assert listed == page["items"]
    assert f"{namespace}.dead" in table.stdout


async def test_the_age_of_the_oldest_message_is_reported_if_known(
    broker: LocalNode, namespace: str
) -> None:
    """Dead letters need one session; in a retry queue the delay is the highest age."""
    names = BrokerNames(namespace)
    settings = settings_for(broker, namespace, retry_delays="50s")
    async with running_bridge(settings) as running, asking(running) as api:
        await eventually(lambda: running.bridge.components.intake.is_consuming)
        empty = await by_role(api)
        await publish_dead_letters(broker, names, 3)
        async with open_raw(broker.url) as raw:
            await raw.channel.basic_publish(
                b"1", exchange="", routing_key=names.retry_queue(50_000)
            )

        async def is_seen() -> bool:
            full.update(await by_role(api))
            return full["retry"]["depth"] == 1 and full["dead"]["oldest_s"] is not None

        full: dict[str, Any] = {}
        await eventually(is_seen)
        for _ in range(3):
            await by_role(api)
        dead_letters = await take_all(broker, names.dead)
        table = await asyncio.to_thread(run_command, running, "queues")

    for queue in empty.values():
        assert (queue["oldest_s"], queue["oldest_at_most_s"]) == (None, None)
    assert full["dead"]["oldest_s"] == pytest.approx(time.time() - BASE_S, abs=120)
    assert (full["retry"]["oldest_s"], full["retry"]["oldest_at_most_s"]) == (None, 50)
    assert "≤ 50.0 s" in table.stdout
    count = header_int(dead_letters[0].properties.headers, "x-delivery-count")
    assert count == 1


async def by_role(api: ApiAsker) -> dict[str, Any]:
    """Return the queues by role; there is one of each."""
    queues = (await api.get("/api/queues"))["items"]
    return {queue["role"]: queue for queue in queues}
