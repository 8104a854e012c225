"""Connecting to the broker: explanations of failures, deadlines, and no secrets in logs."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
import structlog
from aiormq.abc import ChannelFrame
from aiormq.exceptions import AMQPError
from yarl import URL

from bridge.amqp.connection import (
    BrokerAddress,
    BrokerConnection,
    Purpose,
    open_connection,
)
from bridge.amqp.consume.intake import Intake
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.shards.layout import ShardPlan
from bridge.errors import BrokerUnavailableError
from bridge.metrics import Metrics
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import running
from tests.integration.amqp.proxy import TcpProxy
from tests.local_node import LocalNode
from tests.unit.amqp.wire import publish


async def connect(*urls: str, timeout_s: float = 10) -> BrokerConnection[FrameReader]:
    return await open_connection(
        BrokerAddress(urls, timeout_s=timeout_s),
        purpose=Purpose.CHECK,
        reader=FrameReader,
    )


@pytest.fixture
async def silent_port() -> AsyncIterator[int]:
    """A listener that accepts connections and never sends a byte."""

    async def accept(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
async def test_a_handshake_that_is_never_answered_ends_at_the_deadline(
    silent_port: int, scheme: str
) -> None:
    """The library itself has no deadline for the handshake."""
    with pytest.raises(BrokerUnavailableError, match=r"no answer within 0\.3 s"):
        async with asyncio.timeout(5 * SLOW_FACTOR):
            await connect(f"{scheme}://a:b@127.0.0.1:{silent_port}/", timeout_s=0.3)


async def test_the_urls_are_tried_in_order(broker: LocalNode, silent_port: int) -> None:
    """A cluster has several nodes, and one of them may be down."""
    connection = await connect(
        "amqp://a:b@127.0.0.1:1/",
        f"amqp://a:b@127.0.0.1:{silent_port}/",
        broker.url,
        timeout_s=2 * SLOW_FACTOR,
    )
    assert connection.url.port == broker.port
    await connection.disconnect()


async def test_if_no_url_works_the_error_explains_each(silent_port: int) -> None:
    """The operator sees in one line what is wrong with each node."""
    with pytest.raises(BrokerUnavailableError) as caught:
        await connect(
            "amqp://a:s3cret@127.0.0.1:1/",
            f"amqp://a:s3cret@127.0.0.1:{silent_port}/",
            timeout_s=0.3,
        )

    text = str(caught.value)
    assert "127.0.0.1:1: connection refused; is RabbitMQ running" in text
    assert f"127.0.0.1:{silent_port}: no answer within 0.3 s" in text
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({"password": "wr0ng"}, "login refused"),
        ({"path": "/nowhere"}, "before the vhost 'nowhere' was open"),
        ({"scheme": "amqps"}, "does the port speak TLS"),
    ],
    ids=["password", "vhost", "TLS on a plain port"],
)
async def test_a_refused_connection_is_explained(
    broker: LocalNode, changed: dict[str, str], advice: str
) -> None:
    """The error has the cause and advice, without the password."""
    url = URL(broker.url)
    for part, value in changed.items():
        url = getattr(url, f"with_{part}")(value)

    with pytest.raises(BrokerUnavailableError) as caught:
        await connect(str(url))

    assert advice in str(caught.value)
    assert url.password
    assert url.password not in str(caught.value)


async def test_no_log_line_contains_a_password(
    proxy: TcpProxy,
    broker: LocalNode,
    plan: ShardPlan,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Errors quote calls that failed, and connections print their URL."""
    caplog.set_level(logging.DEBUG)
    intake = Intake(
        proxy.address,
        plan,
        prefetch_count=1,
        metrics=Metrics(),
    )
    with structlog.testing.capture_logs() as lines:
        async with running(intake):
            await eventually(lambda: intake.is_consuming)
            proxy.refuse()
            proxy.cut()
            await eventually(
                lambda: any(line["event"] == "broker.waiting" for line in lines)
            )
            proxy.accept()
            await eventually(lambda: intake.is_consuming, within_s=30)

    assert {
        "broker.connected",
        "broker.lost",
        "broker.waiting",
        "intake.consuming",
    } <= {line["event"] for line in lines}
    assert broker.password not in str(lines)
    assert broker.password not in caplog.text


async def test_a_lost_connection_is_logged_and_counted(
    proxy: TcpProxy, plan: ShardPlan, metrics: Metrics
) -> None:
    """Operators watch the counter; the log line has the cause."""
    intake = Intake(
        proxy.address,
        plan,
        prefetch_count=1,
        metrics=metrics,
    )
    with structlog.testing.capture_logs() as lines:
        async with running(intake):
            await eventually(lambda: intake.is_consuming)
            proxy.cut()
            await eventually(lambda: not intake.is_consuming)
            await eventually(lambda: intake.is_consuming, within_s=30)

    (lost,) = [line for line in lines if line["event"] == "broker.lost"]
    assert lost["purpose"] == "consume"
    assert "connection was lost" in lost["problem"]
    assert b'bridge_broker_reconnects_total{purpose="consume"} 1.0' in metrics.render()


async def test_the_broker_lists_connections_by_purpose(broker: LocalNode) -> None:
    """Operators must find the connections of the bridge in its list."""
    connection = await connect(broker.url)
    try:
        listed = await broker.ctl("list_connections", "client_properties")
    finally:
        await connection.disconnect()

    assert "bridge check (" in listed


async def test_disconnecting_from_a_frozen_broker_is_quick(proxy: TcpProxy) -> None:
    """A drain has a deadline, which a full socket must not exceed."""
    patient = BrokerAddress(proxy.address.urls, heartbeat_s=60)
    connection = await open_connection(
        patient, purpose=Purpose.CHECK, reader=FrameReader
    )
    channel = await connection.open_channel(confirms=False)
    proxy.freeze()
    too_much = publish(
        channel.number,
        b"",
        b"ann",
        raw_properties=b"\x00\x00",
        body=b"x" * 30_000_000,
    )
    await channel.write_queue.put(ChannelFrame(too_much, should_close=False))
    await eventually(lambda: proxy.is_holding)

    async with asyncio.timeout(5 * SLOW_FACTOR):
        await connection.disconnect()

    assert connection.is_closed


async def test_a_disconnected_connection_opens_no_channel(broker: LocalNode) -> None:
    """The library would wait forever for a reconnect."""
    connection = await connect(broker.url)
    await connection.disconnect()

    with pytest.raises((BrokerUnavailableError, AMQPError)):
        await connection.open_channel(confirms=False)
