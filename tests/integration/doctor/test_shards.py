"""What `bridge check` says of shards; see test_examination."""

import pytest

import bridge.amqp.shards.hashing
import bridge.doctor.shards
from bridge.amqp.shards.hashing import CONSISTENT
from bridge.core.broker_names import BrokerNames
from bridge.doctor.results import Verdict
from tests.integration.amqp.conftest import open_raw
from tests.integration.doctor.conftest import ManagedBroker
from tests.integration.doctor.test_checks import examined, settings, wrong
from tests.integration.running import running_bridge


async def test_shards_are_looked_at_as_the_broker_records_them(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """A bridge runs on them with the least permissions, and the setting may lag behind."""
    pattern = rf"^{namespace}\."
    url = await managed_broker.add_user("sharding", pattern, pattern, pattern)
    chosen = settings(managed_broker, namespace, url, shards=3)
    before = (await examined(chosen))["shards"]
    async with running_bridge(chosen):
        findings = await examined(chosen)
        of_another = await examined(settings(managed_broker, namespace, url))

    assert (before.verdict, before.text) == (Verdict.OK, "3")
    assert wrong(findings) == wrong(of_another) == {}
    assert findings["permissions of sharding"].verdict is Verdict.OK
    assert findings["bindings"].verdict is Verdict.OK
    assert findings[f"queue {namespace}.inbound.2of3"].verdict is Verdict.OK
    assert of_another["shards"].verdict is Verdict.NOTE
    assert of_another["shards"].mend == "BRIDGE_SHARDS=3, or: bridge shards set 1"


async def test_a_way_to_spread_users_that_was_better_once_is_noted(
    managed_broker: ManagedBroker, namespace: str
) -> None:
    """It works, so nothing is changed behind the operator's back."""
    names = BrokerNames(namespace)
    async with open_raw(managed_broker.node.url) as raw:
        await raw.channel.exchange_declare(
            names.shards_entry(2), exchange_type=CONSISTENT, durable=True
        )
    chosen = settings(managed_broker, namespace, shards=2)
    async with running_bridge(chosen):
        findings = await examined(chosen)

    assert wrong(findings) == {}
    assert findings["shards"].verdict is Verdict.NOTE
    assert "x-modulus-hash is better" in findings["shards"].text
    assert "never set before" in findings["shards"].mend


async def test_a_missing_plugin_is_found_and_named(
    managed_broker: ManagedBroker, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker ends a connection that asks for it, so the rest needs another one."""
    monkeypatch.setattr(bridge.doctor.shards, "best_hash", lambda _: "x-is-not-there")
    monkeypatch.setattr(
        bridge.amqp.shards.hashing, "best_hash", lambda _: "x-is-not-there"
    )

    findings = await examined(settings(managed_broker, namespace, shards=3))

    assert list(wrong(findings)) == ["shards"]
    assert "rabbitmq-plugins enable" in findings["shards"].mend
