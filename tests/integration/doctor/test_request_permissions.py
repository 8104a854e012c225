"""Who may send requests in the name of a user: the documented permissions, and the check."""

import shlex

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage
from aiormq.exceptions import ChannelAccessRefused
from yarl import URL

from bridge.doctor.results import CheckStatus
from tests.integration.doctor.conftest import ManagedBroker
from tests.integration.doctor.test_checks import check_results, failed, settings
from tests.integration.requests.conftest import EVENT, requesting_bridge
from tests.integration.running import python_client

FORGED = aio_pika.Message(b"{}", headers={"x-bridge-user": "ann"}, reply_to="x")


async def publish_forged(url: URL, exchange_name: str) -> None:
    """Publish a request in the name of ann, or an event in the name of bridge."""
    async with await aio_pika.connect(str(url)) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(exchange_name, ensure=False)
        await exchange.publish(FORGED, EVENT, mandatory=False)


@pytest.fixture
async def least(managed_broker: ManagedBroker, namespace: str) -> URL:
    """The account of bridge, with the documented permissions."""
    own = rf"^{namespace}\."
    return await managed_broker.add_user(f"{namespace}-bridge", own, own, own)


async def test_with_the_documented_permissions_no_producer_and_no_worker_can_forge_requests(
    managed_broker: ManagedBroker, namespace: str, least: URL
) -> None:
    """They are sufficient for bridge and a worker, as docs/security.md says."""
    producer = await managed_broker.add_user(
        f"{namespace}-producer", "^$", rf"^{namespace}\.messages$", "^$"
    )
    jobs = f"jobs{namespace}"
    worker = await managed_broker.add_user(
        f"{namespace}-worker",
        rf"^{jobs}\.",
        rf"^({jobs}\..*|{namespace}\.messages|amq\.default)$",
        rf"^({jobs}\..*|{namespace}\.requests)$",
    )
    chosen = settings(managed_broker, namespace, least, page_events=EVENT)
    async with (
        requesting_bridge(chosen) as running,
        await aio_pika.connect(str(worker)) as connection,
        python_client() as client,
    ):
        channel = await connection.channel()
        queue = await channel.declare_queue(f"{jobs}.cancel", durable=True)
        await queue.bind(f"{namespace}.requests", EVENT)

        async def reply(request: AbstractIncomingMessage) -> None:
            assert request.reply_to
            message = aio_pika.Message(b"1", correlation_id=request.correlation_id)
            await channel.default_exchange.publish(message, request.reply_to)
            await request.ack()

        await queue.consume(reply)
        await client.connect(
            running.listening.public_url, auth={"token": running.token("ann")}
        )
        assert await client.call(EVENT, {}) == {"ok": True, "data": 1}

        for account in (producer, worker):
            for exchange in ("requests", "events"):
                with pytest.raises(ChannelAccessRefused):
                    await publish_forged(account, f"{namespace}.{exchange}")
        await queue.delete(if_unused=False, if_empty=False)


@pytest.mark.parametrize("exchange", ["requests", "events"])
async def test_the_check_names_accounts_that_can_forge_requests_or_events(
    managed_broker: ManagedBroker, namespace: str, least: URL, exchange: str
) -> None:
    """The suggested command takes the permission away."""
    forger = f"{namespace}-forger"
    url = await managed_broker.add_user(forger, "^$", ".*", "^$")
    chosen = settings(managed_broker, namespace, least, page_events=EVENT)
    subject = f"who may write to {namespace}.{exchange}"
    async with requesting_bridge(chosen):
        await publish_forged(
            url, f"{namespace}.{exchange}"
        )  # the check is needed: this succeeds
        results = await check_results(chosen)
        assert failed(results) == {}
        assert results[f"exchange {namespace}.{exchange}"].status is CheckStatus.OK
        found = results[subject]
        assert found.status is CheckStatus.WARN
        assert forger in found.text
        assert f"{namespace}-bridge" not in found.text

        *command, _, configure, write, read = shlex.split(found.fix, comments=True)
        assert command == ["rabbitmqctl", "set_permissions", "--vhost", "/"]
        await managed_broker.set_permissions(forger, configure, write, read)
        assert forger not in (await check_results(chosen))[subject].text


async def test_without_an_administrator_s_login_the_check_says_how_to_look(
    managed_broker: ManagedBroker, namespace: str, least: URL
) -> None:
    """Permissions are shown to administrators only."""
    subject = f"who may write to {namespace}.requests"
    poor = managed_broker.url.with_user(f"{namespace}-bridge").with_password("pw")
    for url in (str(poor), None):
        chosen = settings(
            managed_broker, namespace, least, page_events=EVENT, management_url=url
        )
        found = (await check_results(chosen))[subject]

        assert found.status is CheckStatus.SKIP
        assert "rabbitmqctl list_permissions --vhost /" in found.fix
