"""Is it healthy, and what waits where: from the API, and from a terminal."""

import asyncio

import orjson

from bridge.broker.local_node import LocalNode
from tests.conftest import eventually
from tests.integration.operator.asking import asking
from tests.integration.operator.commands import run_command
from tests.integration.running import (
    open_windows,
    running_bridge,
    settings_for,
    working,
)


async def test_the_overview_tells_how_the_bridge_is(
    broker: LocalNode, namespace: str
) -> None:
    """One request answers "is it healthy": the console's first page."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        working(broker, namespace) as worker,
        asking(running) as api,
        open_windows(running.listening.public_url, [running.token("ann")]) as windows,
    ):
        await worker.publish("ann", {"n": 1})
        await worker.publish("ann", body=b"no JSON")
        await eventually(windows[0].data)
        await eventually(lambda: running.bridge.intake.in_flight == 0)
        told = await api.get("/api/overview")

    assert told["ready"] is True
    assert told["reasons"] == []
    assert told["namespace"] == namespace
    assert told["broker"]["connected"] is True
    assert told["broker"]["version"].startswith("RabbitMQ ")
    assert (told["windows"], told["users"], told["in_flight"]) == (1, 1, 0)
    assert told["totals"]["consumed"] == 2
    assert (told["totals"]["emitted"], told["totals"]["dead"]) == (1, 1)
    assert 0 < told["age_s"]["p50"] <= told["age_s"]["p99"]


async def test_queues_are_counted_by_amqp_alone(
    broker: LocalNode, namespace: str
) -> None:
    """Without the management API: depth and consumers of each, in flight of our own."""
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        working(broker, namespace) as worker,
        asking(running) as api,
    ):
        for _ in range(3):
            await worker.publish("ann", body=b"no JSON")
        await eventually(
            lambda: (
                running.sample(
                    "bridge_deliveries_settled_total",
                    outcome="dead_letter",
                    reason="malformed_body",
                )
                == 3
            )
        )

        async def are_all_seen() -> bool:
            # A look that is less than a second old is told again.
            seen = (await api.get("/api/queues"))["items"]
            depths = {queue["name"]: queue["depth"] for queue in seen}
            return bool(depths[f"{namespace}.dead"] == 3)

        await eventually(are_all_seen)
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
    assert [*first["items"], *second["items"]] == page["items"][:2]
    assert orjson.loads(printed.stdout)["items"] == page["items"]
    assert f"{namespace}.dead" in table.stdout
