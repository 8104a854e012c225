"""Checks of the shards; see test_checks for the others."""

import pytest

import bridge.amqp.shards.hashing
import bridge.doctor.shards
from bridge.amqp.shards.hashing import CONSISTENT
from bridge.core.broker_names import BrokerNames
from bridge.doctor.results import CheckStatus
from tests.integration.amqp.conftest import open_raw
from tests.integration.doctor.conftest import ManagedBroker
from tests.integration.doctor.test_checks import check_results, failed, settings
from tests.integration.running import running_bridge


async def test_shards_are_checked_as_the_broker_records_them(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """A bridge follows the broker's record, even if its setting differs."""
    pattern = rf"^{namespace}\."
    url = await managed_broker.add_user("sharding", pattern, pattern, pattern)
    chosen = settings(managed_broker, namespace, url, shards=3)
    before = (await check_results(chosen))["shards"]
    async with running_bridge(chosen):
        results = await check_results(chosen)
        of_another = await check_results(settings(managed_broker, namespace, url))

    assert (before.status, before.text) == (CheckStatus.OK, "3")
    assert failed(results) == failed(of_another) == {}
    assert results["permissions of sharding"].status is CheckStatus.OK
    assert results["bindings"].status is CheckStatus.OK
    assert results[f"queue {namespace}.inbound.2of3"].status is CheckStatus.OK
    assert of_another["shards"].status is CheckStatus.WARN
    assert of_another["shards"].fix == "BRIDGE_SHARDS=3, or: bridge shards set 1"


async def test_an_outdated_hash_type_is_a_warning(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """It works, so the bridge does not change it on its own."""
    names = BrokerNames(namespace)
    async with open_raw(managed_broker.node.url) as raw:
        await raw.channel.exchange_declare(
            names.shards_entry(2), exchange_type=CONSISTENT, durable=True
        )
    chosen = settings(managed_broker, namespace, shards=2)
    async with running_bridge(chosen):
        results = await check_results(chosen)

    assert failed(results) == {}
    assert results["shards"].status is CheckStatus.WARN
    assert "x-modulus-hash is better" in results["shards"].text
    assert "never set before" in results["shards"].fix


async def test_a_missing_plugin_is_found_and_named(
    managed_broker: ManagedBroker, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker closes a connection that uses an unknown type; later checks need another."""
    monkeypatch.setattr(
        bridge.doctor.shards, "preferred_hash_type", lambda _: "x-is-not-there"
    )
    monkeypatch.setattr(
        bridge.doctor.shards, "preferred_hash_type", lambda _: "x-is-not-there"
    )
    monkeypatch.setattr(
        bridge.amqp.shards.hashing, "preferred_hash_type", lambda _: "x-is-not-there"
    )

    results = await check_results(settings(managed_broker, namespace, shards=3))

    assert list(failed(results)) == ["shards"]
    assert "rabbitmq-plugins enable" in results["shards"].fix
