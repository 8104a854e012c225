"""TLS with client certificates, to a broker that requires both."""

import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from yarl import URL

from bridge.amqp.connection import BrokerAddress, Purpose, open_connection
from bridge.amqp.consume.intake import Intake
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.publish.publisher import Publisher
from bridge.amqp.shards.layout import ShardPlan
from bridge.amqp.topology import topology
from bridge.core.broker_names import BrokerNames
from bridge.core.properties import NO_PROPERTIES
from bridge.doctor.broker import BrokerTarget, check_broker
from bridge.doctor.results import CheckStatus
from bridge.errors import BrokerUnavailableError
from bridge.metrics import Metrics
from tests.certificates import Authority, Signed
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import Taker, running
from tests.local_node import LocalNode


@dataclass(frozen=True, slots=True)
class TlsBroker:
    """A node that requires client certificates signed by its authority."""

    url: URL
    authority: Authority
    stranger: Authority
    ours: Signed

    def address(self, url: URL | None = None, **query: str) -> BrokerAddress:
        """Return its address with this query in the URL."""
        return BrokerAddress((str((url or self.url).with_query(query)),))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tls_broker(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[TlsBroker]:
    folder: Path = tmp_path_factory.mktemp("certificates")
    authority = Authority(folder, "authority")
    server = authority.sign("server", address="127.0.0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = (
        f"listeners.ssl.default = 127.0.0.1:{port}",
        f"ssl_options.cacertfile = {authority.cert}",
        f"ssl_options.certfile = {server.cert}",
        f"ssl_options.keyfile = {server.key}",
        "ssl_options.verify = verify_peer",
        "ssl_options.fail_if_no_peer_cert = true",
    )
    async with LocalNode.start(
        extra_config=config, ready_within_s=90 * SLOW_FACTOR
    ) as node:
        yield TlsBroker(
            url=URL(node.url).with_scheme("amqps").with_port(port),
            authority=authority,
            stranger=Authority(folder, "stranger"),
            ours=authority.sign("bridge"),
        )


async def problem(address: BrokerAddress) -> str:
    with pytest.raises(BrokerUnavailableError) as caught:
        await open_connection(address, purpose=Purpose.CHECK, reader=FrameReader)
    return str(caught.value)


async def test_messages_are_published_and_consumed_over_mutual_tls(
    tls_broker: TlsBroker, namespace: str
) -> None:
    """The frame reader receives decrypted bytes, split at the borders of TLS records."""
    address = tls_broker.address(
        cafile=str(tls_broker.authority.cert),
        certfile=str(tls_broker.ours.cert),
        keyfile=str(tls_broker.ours.key),
    )
    names, metrics = BrokerNames(namespace), Metrics()
    wanted = topology(names, (1.0,))
    plan = ShardPlan(names, (1.0,))
    intake = Intake(address, plan, prefetch_count=9, metrics=metrics)
    publisher = Publisher(address, names, declares=wanted, metrics=metrics)
    bodies = [b"{}", b"", b"x" * 500_000, b"last"]
    taker = Taker(intake)

    async with running(intake, publisher):
        for body in bodies:
            await publisher.publish(
                names.messages, b"ann", body=body, properties=NO_PROPERTIES
            )
        await eventually(lambda: intake.is_consuming, within_s=30)
        await taker.take(len(bodies))

    assert taker.bodies == bodies


async def test_a_broker_of_another_authority_is_not_trusted(
    tls_broker: TlsBroker,
) -> None:
    """An attacker in the middle must not receive the password."""
    address = tls_broker.address(
        cafile=str(tls_broker.stranger.cert),
        certfile=str(tls_broker.ours.cert),
        keyfile=str(tls_broker.ours.key),
    )

    assert "certificate is not trusted" in await problem(address)


async def test_verification_cannot_be_switched_off(tls_broker: TlsBroker) -> None:
    """The library would do it for a parameter of the URL."""
    assert "certificate is not trusted" in await problem(
        tls_broker.address(no_verify_ssl="1")
    )


async def test_a_certificate_for_another_host_is_not_trusted(
    tls_broker: TlsBroker,
) -> None:
    """The authority is right and the machine is not."""
    address = tls_broker.address(
        tls_broker.url.with_host("localhost"), cafile=str(tls_broker.authority.cert)
    )

    assert "certificate is not trusted" in await problem(address)


async def test_the_error_explains_a_missing_client_certificate(
    tls_broker: TlsBroker,
) -> None:
    """It has to mention certfile and keyfile."""
    address = tls_broker.address(cafile=str(tls_broker.authority.cert))

    assert "certfile=" in await problem(address)


async def test_the_expiry_of_the_broker_certificate_is_reported(
    tls_broker: TlsBroker, namespace: str
) -> None:
    """The test certificates last one day, so the check fails."""
    names = BrokerNames(namespace)
    address = tls_broker.address(
        cafile=str(tls_broker.authority.cert),
        certfile=str(tls_broker.ours.cert),
        keyfile=str(tls_broker.ours.key),
    )
    target = BrokerTarget(
        url=URL(address.urls[0]),
        subject="broker",
        names=names,
        wanted=topology(names, (1.0,)),
        timeout_s=10 * SLOW_FACTOR,
    )

    findings = {f.subject: f async for f in check_broker(target, with_topology=False)}

    certificate = findings["certificate of the broker"]
    assert certificate.status is CheckStatus.FAIL
    assert certificate.text == "ends in 1.0 days"
