"""The gauges that are sampled: queues, and the disk usage of the inbox."""

from pathlib import Path

from bridge.core.broker_names import BrokerNames
from tests.conftest import eventually
from tests.integration.running import open_worker, running_bridge, settings_for
from tests.local_node import LocalNode


async def test_queues_and_disk_usage_are_sampled(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """The alerts for missing consumers and a full disk use these gauges."""
    names = BrokerNames(namespace)
    settings = settings_for(
        broker, namespace, inbox=f"sqlite:{tmp_path / 'inbox.sqlite3'}"
    )
    async with (
        open_worker(broker, namespace) as worker,
        running_bridge(settings) as running,
    ):
        await worker.publish("ann", body=b"no JSON")
        dead = {"queue": names.dead, "role": "dead"}
        inbound = {"queue": names.inbound_queue(), "role": "inbound"}
        await eventually(lambda: running.bridge.components.intake.is_consuming)
        await eventually(lambda: running.settled("dead_letter", "malformed_body") == 1)

        async def is_measured() -> bool:
            # Sample until the message has arrived.
            await running.bridge.components.gauges.measure()
            messages = running.sample("bridge_queue_messages", **dead)
            consumers = running.sample("bridge_queue_consumers", **inbound)
            return (messages, consumers) == (1, 1)

        await eventually(is_measured)
        assert running.sample("bridge_inbox_bytes", store="sqlite") > 0
        assert running.sample("bridge_inbox_free_bytes", store="sqlite") > 0


async def test_a_gauge_without_a_value_is_absent(
    broker: LocalNode, namespace: str
) -> None:
    """An old value would look like a current one, and the memory store has no disk."""
    settings = settings_for(broker, namespace, inbox="memory:")
    async with running_bridge(settings) as running:
        await running.bridge.components.gauges.measure()

        text = running.bridge.components.metrics.render().decode()
        assert "bridge_inbox_free_bytes{" not in text
