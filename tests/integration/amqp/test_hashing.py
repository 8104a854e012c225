"""Which queue a user belongs to, after all nodes of the broker were down and before."""

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiormq
import pytest

import bridge.amqp.shards.hashing
from bridge.amqp.connection import BrokerAddress, Purpose, open_connection
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.shards.hashing import CONSISTENT, MODULUS, best_hash
from bridge.amqp.shards.layout import ShardDesk, ShardPlan
from bridge.amqp.topology import Queue
from bridge.core.broker_names import BrokerNames
from bridge.demo.private_node import LocalNode
from bridge.errors import TopologyError
from tests.conftest import HASH_PLUGINS, SLOW_FACTOR, eventually
from tests.integration.amqp.conftest import open_raw

SHARDS = 8
USERS = [f"user{number}" for number in range(64)]


@asynccontextmanager
async def desk_at(url: str, names: BrokerNames) -> AsyncIterator[ShardDesk]:
    """An operator's desk; no bridge runs."""
    address = BrokerAddress((url,), timeout_s=10 * SLOW_FACTOR)
    connection = await open_connection(
        address, purpose=Purpose.OPERATE, reader=FrameReader
    )
    try:
        yield ShardDesk(connection, ShardPlan(names, (1.0,)))
    finally:
        await connection.leave()


async def queues_of_users(url: str, names: BrokerNames) -> Mapping[str, str]:
    """Publish to each user, and see which queue that comes out of."""
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
    ("version", "best"),
    [
        ("3.10.8", MODULUS),
        ("3.13.7", MODULUS),
        ("4.1.3", MODULUS),
        ("4.2.1", CONSISTENT),
        ("4.3.0", MODULUS),
        ("5.0.0-rc.1", MODULUS),
        ("of nobody", MODULUS),
    ],
)
def test_the_type_that_keeps_its_mind_depends_on_the_version(
    version: str, best: str
) -> None:
    assert best_hash(version) == best


async def test_a_user_belongs_to_the_same_queue_after_all_nodes_were_down() -> None:
    """Another one would let what is new overtake what waits in the old one."""
    names = BrokerNames("kept")
    async with LocalNode.start(
        plugins=HASH_PLUGINS, ready_within_s=90 * SLOW_FACTOR
    ) as node:
        async with desk_at(node.url, names) as desk:
            await desk.change(SHARDS)
        before = await queues_of_users(node.url, names)
        await node.restart()
        after = await queues_of_users(node.url, names)

    assert len(set(before.values())) == SHARDS
    assert after == before


async def test_an_entry_of_the_other_type_is_kept(
    address: BrokerAddress, names: BrokerNames
) -> None:
    """It was made by an earlier version, of the bridge or of RabbitMQ."""
    url = address.urls[0]
    async with desk_at(url, names) as desk, open_raw(url) as raw:
        await raw.channel.exchange_declare(
            names.shards_entry(2), exchange_type=CONSISTENT, durable=True
        )

        changed = await desk.change(2)
        read = await desk.read()

        assert changed.hash_type == read.hash_type == CONSISTENT
        assert await desk.settle() == read
        for queue in (*names.inbound_queues(2), names.dead, names.bridges):
            await raw.channel.queue_delete(queue)
        await raw.channel.queue_delete(names.retry_queue(1000))


async def test_names_may_be_so_long_that_the_broker_cuts_what_it_tells_of_them(
    address: BrokerAddress,
) -> None:
    """It says 255 bytes; where the number of shards was not among them, none was read."""
    url = address.urls[0]
    names = BrokerNames(f"{secrets.token_hex(32)}.{'long' * 11}")  # 109 of 110
    async with desk_at(url, names) as desk, open_raw(url) as raw:
        await raw.channel.exchange_declare(
            names.shards_entry(SHARDS), exchange_type=CONSISTENT, durable=True
        )
        await desk.settle()
        changed = await desk.change(SHARDS)

        assert await desk.read() == changed
        assert changed.hash_type == CONSISTENT
        topology = ShardPlan(names, (1.0,)).topology(changed)
        for queue in (*topology.queues, Queue(names.inbound_queue(), {})):
            await raw.channel.queue_delete(queue.name)


@pytest.mark.parametrize(
    ("told", "meant"),
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
def test_a_type_that_was_cut_is_known_by_its_beginning(
    told: str, meant: str | None
) -> None:
    assert bridge.amqp.shards.hashing._known(told) == meant


async def test_a_broker_without_the_plugin_is_told_by_the_command_that_mends_it(
    address: BrokerAddress, names: BrokerNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker may end the connection over it; a loop of reconnects would tell nobody."""
    monkeypatch.setattr(
        bridge.amqp.shards.hashing, "best_hash", lambda _: "x-is-not-there"
    )

    async with desk_at(address.urls[0], names) as desk:
        with pytest.raises(
            TopologyError, match="rabbitmq-plugins enable rabbitmq_sharding"
        ):
            await desk.change(2)
