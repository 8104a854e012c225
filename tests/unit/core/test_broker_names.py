"""Names of exchanges and queues."""

from bridge.core.broker_names import BrokerNames


def test_every_name_starts_with_the_namespace() -> None:
    """Workers bind to these names, and permissions are granted by the prefix."""
    names = BrokerNames("team.a")

    assert names.messages == "team.a.messages"
    assert names.inbound == "team.a.inbound"
    assert names.inbound_queue() == "team.a.inbound.0"
    assert names.inbound_queue(3) == "team.a.inbound.3"
    assert names.retry_queue(1000) == "team.a.retry.1000"
    assert names.dead == "team.a.dead"
    assert BrokerNames().messages == "bridge.messages"
