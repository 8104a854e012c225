"""A user keeps its queue when all nodes of the broker were down."""

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiormq
import pytest

import bridge.amqp.shards.hashing
from bridge.amqp.connection import BrokerAddress, Purpose, open_connection
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.shards.hashing import CONSISTENT, MODULUS, preferred_hash_type
from bridge.amqp.shards.layout import ShardPlan
from bridge.amqp.shards.migration import ShardMigration
from bridge.amqp.topology import Queue
from bridge.core.broker_names import BrokerNames
from bridge.errors import TopologyError
from tests.conftest import HASH_PLUGINS, SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import open_raw
from tests.local_node import LocalNode

SHARDS = 8
USERS = [f"user{number}" for number in range(64)]


@asynccontextmanager
async def migration_at(url: str, names: BrokerNames) -> AsyncIterator[ShardMigration]:
    """Connect as `bridge shards` does, without a running bridge."""
    address = BrokerAddress((url,), timeout_s=10 * SLOW_FACTOR)
    connection = await open_connection(
        address, purpose=Purpose.OPERATE, reader=FrameReader
    )
    try:
        yield ShardMigration(connection, ShardPlan(names, (1.0,)))
    finally:
        await connection.disconnect()


async def queues_of_users(url: str, names: BrokerNames) -> Mapping[str, str]:
    """Publish a message to each user and return the queue that receives it."""
    found: dict[str, str] = {}
    async with open_raw(url) as raw:
        for queue in names.inbound_queues(SHARDS):

            async def note(
                message: aiormq.abc.DeliveredMessage, queue: str = queue
            ) -> None:
                found[str(message.routing_key)] = queue

            await raw.channel.basic_consume(queue, note, no_ack=True)
        for user in USERS:
            await raw.publish(names.messages, user.encode())
        await eventually(lambda: len(found) == len(USERS), within_s=30)
    return found


@pytest.mark.parametrize(
    ("version", "preferred"),
    [
        ("3.10.8", MODULUS),
        ("3.13.7", MODULUS),
        ("4.1.3", MODULUS),
        ("4.2.1", CONSISTENT),
        ("4.3.0", MODULUS),
        ("5.0.0-rc.1", MODULUS),
        ("unknown", MODULUS),
    ],
)
def test_the_preferred_type_depends_on_the_version(
    version: str, preferred: str
) -> None:
    assert preferred_hash_type(version) == preferred


async def test_a_user_keeps_its_queue_after_all_nodes_were_down() -> None:
    """In another queue, new messages would overtake those that wait in the old one."""
    names = BrokerNames("kept")
    async with LocalNode.start(
        plugins=HASH_PLUGINS, ready_within_s=90 * SLOW_FACTOR
    ) as node:
        async with migration_at(node.url, names) as migration:
            await migration.change(SHARDS)
        before = await queues_of_users(node.url, names)
        await node.restart()
        after = await queues_of_users(node.url, names)

    assert len(set(before.values())) == SHARDS
    assert after == before


async def test_an_existing_exchange_of_the_other_type_is_kept(
    address: BrokerAddress, names: BrokerNames
) -> None:
    """An earlier version of bridge or RabbitMQ declared it."""
    url = address.urls[0]
    async with migration_at(url, names) as migration, open_raw(url) as raw:
        await raw.channel.exchange_declare(
            names.shards_entry(2), exchange_type=CONSISTENT, durable=True
        )

        changed = await migration.change(2)
        read = await migration.records.read()

        assert changed.hash_type == read.hash_type == CONSISTENT
        assert await migration.ensure() == read
        for queue in (*names.inbound_queues(2), names.dead, names.bridges):
            await raw.channel.queue_delete(queue)
        await raw.channel.queue_delete(names.retry_queue(1000))


async def test_the_number_of_shards_is_read_if_rabbitmq_cuts_its_text(
    address: BrokerAddress,
) -> None:
    """With long names, the 255 bytes of the text do not contain the number."""
    url = address.urls[0]
    names = BrokerNames(f"{secrets.token_hex(32)}.{'long' * 11}")  # 109 of 110
    async with migration_at(url, names) as migration, open_raw(url) as raw:
        await raw.channel.exchange_declare(
            names.shards_entry(SHARDS), exchange_type=CONSISTENT, durable=True
        )
        await migration.ensure()
        changed = await migration.change(SHARDS)

        assert await migration.records.read() == changed
        assert changed.hash_type == CONSISTENT
        topology = ShardPlan(names, (1.0,)).topology(changed)
        for queue in (*topology.queues, Queue(names.inbound_queue(), {})):
            await raw.channel.queue_delete(queue.name)


@pytest.mark.parametrize(
    ("text", "hash_type"),
    [
        (CONSISTENT, CONSISTENT),
        (MODULUS, MODULUS),
        ("x-modulus...", MODULUS),
        ("x-...", None),
        ("x-modulus", None),
        ("...", None),
        ("topic", None),
    ],
)
def test_a_cut_type_is_recognized_by_its_prefix(
    text: str, hash_type: str | None
) -> None:
    assert bridge.amqp.shards.hashing._parse_type(text) == hash_type


async def test_a_missing_plugin_is_reported_with_the_command_that_enables_it(
    address: BrokerAddress, names: BrokerNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ may close the connection; reconnecting forever would hide the problem."""
    monkeypatch.setattr(
        bridge.amqp.shards.hashing, "preferred_hash_type", lambda _: "x-is-not-there"
    )

    async with migration_at(address.urls[0], names) as migration:
        with pytest.raises(
            TopologyError, match="rabbitmq-plugins enable rabbitmq_sharding"
        ):
            await migration.change(2)
