"""`/api/queues` with RabbitMQ's own management plugin."""

from typing import Any

from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.doctor.conftest import ManagedBroker
from tests.integration.operator.api_client import asking
from tests.integration.running import open_worker, running_bridge, settings_for


async def test_the_real_plugin_reports_rates_and_unacked_messages(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """The fake API of the other tests must answer like the real one."""
    node = managed_broker.node
    settings = settings_for(node, namespace, management_url=str(managed_broker.url))
    async with (
        running_bridge(settings) as running,
        open_worker(node, namespace) as worker,
        asking(running) as api,
    ):
        found: dict[str, dict[str, Any]] = {}

        async def has_rates() -> bool:
            await worker.publish("ann", body=b"1")
            queues = (await api.get("/api/queues"))["items"]
            found.update({queue["role"]: queue for queue in queues})
            rates = found["inbound"]["rates"]
            return bool(rates and rates["in_per_s"] > 0 and rates["out_per_s"] > 0)

        # The plugin collects every five seconds.
        await eventually(has_rates, within_s=30 * SLOW_FACTOR)
        path = f"queues/%2F/{namespace}.inbound.0"
        told = await managed_broker.ask("GET", path)

    assert found.pop("events")["source"] == "store"
    for queue in found.values():
        assert (queue["source"], queue["problem"]) == ("management", None)
        assert queue["unacked"] is not None
    assert found["inbound"]["consumers"] == 1
    assert isinstance(told, dict)
    # The API has no age of the oldest message, so the bridge measures it itself.
    assert "head_message_timestamp" not in told
