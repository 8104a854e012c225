"""Marks: put behind all that is left in the queues of before, to see it all come out."""

import asyncio
from typing import Final

import aiormq
import structlog
from aiormq.exceptions import ChannelNotFoundEntity

from bridge.amqp.connection import (
    BrokerAddress,
    BrokerConnection,
    Purpose,
    broker_call,
    open_connection,
)
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.shards.layout import Layout, ShardDesk, ShardPlan, mark_name
from bridge.amqp.topology import Exchange, Queue, declare_one, inbound_queue
from bridge.errors import BrokerUnavailableError, TopologyError

log = structlog.get_logger(__name__)

_MARK_EVENT: Final = "bridge:mark"

# What was on its way to a queue of before when the way was moved has arrived after that.
ARRIVED_AFTER_S: Final = 3.0


async def put_marks(
    connection: BrokerConnection[FrameReader], plan: ShardPlan, layout: Layout
) -> None:
    """
    Put a mark into each queue of before that is there and has nothing else waiting.

    Raises:
        BrokerUnavailableError: If the broker is away or too slow.

    """
    names, timeout_s = plan.names, plan.timeout_s
    left = await ShardDesk(connection, plan).left_of_before(layout)
    exchange = Exchange(mark_name(names), "direct")
    for queue in left:
        async with broker_call(f"mark {queue}", timeout_s=timeout_s):
            channel = await connection.open_channel(confirms=True)
            await declare_one(channel, exchange, timeout_s=timeout_s)
            try:
                await _put_mark(channel, exchange, inbound_queue(names, queue))
            except ChannelNotFoundEntity:
                continue  # a bridge has emptied and deleted it in this moment
            await channel.close()


async def _put_mark(channel: aiormq.Channel, exchange: Exchange, queue: Queue) -> None:
    told = await channel.queue_declare(queue.name, passive=True)
    if told.message_count:
        return  # not yet: it would only be one more to wait for
    await channel.queue_bind(queue.name, exchange.name, queue.name)
    await channel.basic_publish(
        b"{}",
        exchange=exchange.name,
        routing_key=queue.name,
        properties=aiormq.spec.Basic.Properties(
            delivery_mode=2, message_type=_MARK_EVENT
        ),
    )


async def keep_marking(address: BrokerAddress, plan: ShardPlan, layout: Layout) -> None:
    """
    Put marks every few seconds, until cancelled; on connections of its own.

    One that is lost, or has something come behind it, is followed by the next. What keeps
    them from being put, an operator can mend; the messages of before are carried meanwhile.
    """
    while True:
        await asyncio.sleep(ARRIVED_AFTER_S)
        try:
            connection = await open_connection(
                address, purpose=Purpose.OPERATE, reader=FrameReader
            )
            try:
                await put_marks(connection, plan, layout)
            finally:
                await connection.leave()
        except (BrokerUnavailableError, TopologyError) as exc:
            log.info("shards.no_mark_yet", problem=str(exc))
