"""Messages whose route does not name one user: dead letters that say so, with any shards."""

from dataclasses import dataclass

import aiormq
import pytest
from pamqp.common import FieldTable

from bridge.core.broker_names import BrokerNames
from bridge.core.properties import header_bytes
from bridge.enums import Header
from tests.conftest import eventually
from tests.integration.amqp.conftest import Raw, open_raw
from tests.integration.dead_letters import take_all
from tests.integration.operator.dead_letter_setting import setting
from tests.integration.running import running_bridge, settings_for
from tests.local_node import LocalNode


@dataclass(frozen=True)
class Route:
    """One publish: to an exchange, by a key, with a header."""

    exchange: str
    key: str
    headers: FieldTable | None = None

    async def publish(self, raw: Raw) -> None:
        """Publish a message that is valid apart from its route."""
        await raw.channel.basic_publish(
            b"1",
            exchange=self.exchange,
            routing_key=self.key,
            properties=aiormq.spec.Basic.Properties(headers=self.headers),
        )


@pytest.mark.parametrize("shards", [1, 3])
async def test_a_message_without_one_user_is_a_dead_letter_and_is_not_stored(
    broker: LocalNode, namespace: str, shards: int
) -> None:
    """Otherwise it is lost without a trace, in the inbox of a user who does not exist."""
    names = BrokerNames(namespace)
    queue = names.inbound_queue(shards=shards)
    routes = [
        Route("", queue),
        Route(names.messages, "ann", {"CC": ["bob", "eve"]}),
        Route(names.inbound, ""),
    ]
    settings = settings_for(broker, namespace, shards=shards)
    async with running_bridge(settings) as running, open_raw(broker.url) as raw:
        for route in routes:
            await route.publish(raw)
        await raw.holds(names.dead, len(routes))
        found = await take_all(broker, names.dead)
        stored = running.settled("stored")

    reasons = sorted(
        header_bytes(one.properties.headers, Header.REASON) or b"" for one in found
    )
    assert reasons == [b"bad_route", b"bad_route", b"bad_user"]
    assert stored == 0


@pytest.mark.parametrize("shards", [1, 3])
async def test_rabbitmq_hides_bcc_so_only_the_routing_key_counts(
    broker: LocalNode, namespace: str, shards: int
) -> None:
    """docs/producers.md says that BCC is not supported: the bridge cannot know that it was there."""
    route = Route(BrokerNames(namespace).messages, "ann", {"BCC": ["bob"]})
    settings = settings_for(broker, namespace, shards=shards)
    async with running_bridge(settings) as running, open_raw(broker.url) as raw:
        await route.publish(raw)
        await eventually(lambda: running.settled("stored") == 1)


async def test_a_dead_letter_with_a_bad_route_cannot_be_redriven(
    broker: LocalNode, namespace: str
) -> None:
    """A redrive would store it for a user with the name of the queue."""
    async with setting(broker, namespace) as at, open_raw(broker.url) as raw:
        await Route("", at.names.inbound_queue()).publish(raw)
        await eventually(lambda: at.has_ready(1))
        job = await at.run_job("redrive", all=True, rate_per_s=1000)
        left = await at.api.get("/api/dead")

    assert (job["done"], job["failed"]) == (0, 1)
    assert "names no single user" in str(job["error"])
    assert left["total"] == 1
