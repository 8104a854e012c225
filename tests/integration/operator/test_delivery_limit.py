"""Dead letters that were looked at very often: RabbitMQ would drop them for it."""

import aiormq
import pytest

from bridge.amqp.dead_letters import delivery_limit as letter_wear
from bridge.amqp.dead_letters.delivery_limit import LOOK_AGAIN_S, LetterWear
from bridge.core.broker_names import BrokerNames
from bridge.core.message import Delivery
from bridge.core.properties import (
    PERSISTENT,
    Properties,
    render_properties,
    render_table,
)
from bridge.demo.private_node import LocalNode
from bridge.errors import BrokerUnavailableError
from tests.conftest import eventually
from tests.integration.operator.api_client import ApiAsker, asking
from tests.integration.operator.dead_letter_fixtures import fill, publish_letters, ready
from tests.integration.running import running_bridge, settings_for

_LOOKS_MAX = 3
_OF_TOM = {"filter": {"user": "tom"}, "dry_run": True}


def letter_with(count: int, *, redelivered: bool) -> Delivery:
    """Return one that says how often it was looked at."""
    properties = Properties(headers=render_table({"x-delivery-count": count}))
    return Delivery(
        1, redelivered, b"", b"ann", render_properties(properties), b"1", "q"
    )


async def look_until_refused(api: ApiAsker) -> str:
    """Look past what is remembered until that is not done any more; returns why."""
    detail = ""

    async def is_refused() -> bool:
        nonlocal detail
        answer = await api.ask("POST", "/api/dead/discard", _OF_TOM)
        detail = str(answer.body.get("detail"))
        return answer.status == 503

    await eventually(is_refused)
    return detail


async def test_letters_that_are_worn_out_can_still_be_taken_off(
    broker: LocalNode, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the advice that is given; after that they are looked at as before."""
    monkeypatch.setattr(letter_wear, "_LOOKS_MAX", _LOOKS_MAX)
    names = BrokerNames(namespace)
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        asking(running) as api,
    ):
        await publish_letters(broker, names, 5)
        assert "discard all of them" in await look_until_refused(api)

        everything = {"all": True, "confirm": 5}
        answer = await api.ask("POST", "/api/dead/discard", everything)
        assert answer.status == 202, answer

        async def is_empty() -> bool:
            return await ready(broker, names.dead) == 0

        await eventually(is_empty)
        await publish_letters(broker, names, 1)
        page = await api.get("/api/dead")

    assert len(page["items"]) == 1


async def test_a_count_that_a_producer_wrote_is_not_believed(
    broker: LocalNode, namespace: str
) -> None:
    """What expires in the inbound queue is set aside by RabbitMQ with all its headers."""
    names = BrokerNames(namespace)
    properties = Properties(
        headers=render_table({"x-delivery-count": 1_000_000}), delivery_mode=PERSISTENT
    )
    async with (
        running_bridge(settings_for(broker, namespace)) as running,
        asking(running) as api,
    ):
        connection = aiormq.Connection(broker.url)
        await connection.connect()
        channel = await connection.channel()
        assert isinstance(channel, aiormq.Channel)
        await fill(
            channel, names.dead, iter([("ann", render_properties(properties), b"1")])
        )
        await connection.close()
        answers = [
            await api.ask("POST", "/api/dead/discard", _OF_TOM) for _ in range(3)
        ]

    assert [answer.status for answer in answers] == [200, 200, 200]


def test_what_is_worn_out_is_looked_at_again_after_a_while() -> None:
    """Somebody may have emptied the queue by other means than the bridge."""
    now_s = 0.0
    wear = LetterWear("dead", lambda: now_s)
    wear.watch(letter_with(900_000, redelivered=False))
    wear.refuse_if_worn_out()

    wear.watch(letter_with(900_000, redelivered=True))
    with pytest.raises(BrokerUnavailableError, match="redrive or discard all"):
        wear.refuse_if_worn_out()

    now_s = LOOK_AGAIN_S
    wear.refuse_if_worn_out()
