"""
The migration from one number of shards to another, while bridges run and producers publish.

A migration consists of these steps. It may stop anywhere and be started again:

1. A gate is declared, whose alternate exchange is the one in front of the new queues, and bound
   to the destination that receives the messages now. The new queues and their exchange are
   declared; then the exchange `inbound` is bound to the gate. RabbitMQ delivers a message to a queue
   once, however many routes lead there.
2. The record is declared: from now on no bridge binds the previous queues again.
3. The previous destination is unbound from `inbound`, then from the gate. A gate without
   bindings passes every message to its alternate exchange: one unbinding moves the stream, and
   no message is lost or duplicated.
4. The new queues fill, without a consumer yet. When messages on their way have had time to
   arrive, an *end marker* is published to each previous queue. It is delivered after all other
   messages, to the one bridge whose consumer is active. So when its batch is acked, no bridge
   holds a message of the queue. That bridge deletes the queue if no message followed the marker.
5. When no previous queue is left, `done` is declared and the new queues are consumed. This
   keeps the order per user: every earlier message was stored before the first later one is
   consumed.
"""

import asyncio
from typing import Final

import aiormq
import structlog
from aiormq.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from bridge.amqp.connection import (
    BrokerAddress,
    BrokerConnection,
    Purpose,
    broker_call,
    connected,
    problem_text,
)
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.shards.layout import (
    ShardLayout,
    ShardPlan,
    ShardRecords,
    done_name,
    gate_name,
    marker_exchange_name,
)
from bridge.amqp.topology import (
    Binding,
    Exchange,
    Queue,
    bind,
    declare,
    declare_one,
    inbound_queue,
    send_unbind,
    single_entry,
)
from bridge.errors import BrokerUnavailableError, ShardsError, TopologyError

log = structlog.get_logger(__name__)

MARKER_TYPE: Final = b"bridge:mark"


class ShardMigration:
    """
    Declares the layout of the shards and changes it.

    All its methods raise `BrokerUnavailableError` if the broker is unreachable or too slow, and
    `TopologyError` if an exchange or queue exists with other arguments. Cancelling is safe:
    each step can be repeated.
    """

    def __init__(
        self, connection: BrokerConnection[FrameReader], plan: ShardPlan
    ) -> None:
        self.records = ShardRecords(connection, plan)
        self._connection = connection
        self._plan = plan
        self._names = plan.names

    async def ensure(self) -> ShardLayout:
        """
        Declare the recorded layout, or on an empty broker the number of the plan.

        If an earlier change stopped after its record, its last steps are done. If another
        bridge has begun a first start with another number, this one has to wait: that bridge
        may still be running, or be started again.
        """
        layout = await self.records.read()
        if self._plan.shards > 1 and await self.records.is_empty(layout):
            try:
                return await self.change(self._plan.shards)
            except ShardsError as exc:
                raise BrokerUnavailableError("declare the shards", str(exc)) from exc
        return await self._ensure(layout)

    async def _ensure(self, layout: ShardLayout) -> ShardLayout:
        while True:
            await declare(
                self._connection,
                self._plan.topology(layout),
                timeout_s=self._plan.timeout_s,
            )
            if layout.revision:
                await self._unbind_previous(layout)
            else:
                await self._bind_existing_gate()
                await self._unbind_bypass()
            if not await self.records.has_newer(layout):
                return layout
            # Another process changed the number meanwhile, and the bindings above are those
            # of the previous number: declare the new one, which unbinds them.
            layout = await self.records.read()

    async def change(self, shards: int) -> ShardLayout:
        """
        Change the number of shards. The bridges empty the previous queues afterwards.

        Raises:
            ShardsError: If an earlier change is not complete; the text says how to complete it.

        """
        now = await self.records.read()
        await self.check_change(now, shards)
        if now.shards == shards:
            return await self._ensure(now)
        new = await self.records.with_hash_type(
            ShardLayout(shards, now.revision + 1, now.shards, is_migrating=True)
        )
        await self._prepare(new)
        await self._declare(self._plan.record(new))
        await self._unbind_previous(new)
        return new

    async def check_change(self, now: ShardLayout, shards: int) -> None:
        """Raise the `ShardsError` of `change`, as far as it is known before any step."""
        if now.is_migrating and now.shards != shards:
            left = ", ".join(await self.records.previous_queues(now)) or "none"
            text = (
                f"the change from {now.previous_shards} to {now.shards} is not complete"
            )
            raise ShardsError(f"{text}; previous queues: {left}")

    async def complete(self, layout: ShardLayout) -> None:
        """Record that no previous queue is left."""
        await self._declare(Exchange(done_name(self._names, layout.revision), "fanout"))

    async def _prepare(self, new: ShardLayout) -> None:
        """Declare all of `new`, with a gate that leads to the current destination."""
        gate = self._plan.gate(new)
        try:
            await self._declare(gate)
        except TopologyError as exc:
            if not isinstance(exc.__cause__, ChannelPreconditionFailed):
                raise  # the user lacks a permission
            refusal = problem_text(exc.__cause__)
            begun = await self.records.shards_behind(gate, refusal)
            text = f"a change to {begun} shards was begun and not completed"
            fix = f"`bridge shards set {begun}` completes it, then set {new.shards}"
            raise ShardsError(f"{text}; {fix}") from exc
        previous = self._plan.previous_destination(new)
        if new.revision > 1 or await self.records.exists(previous):
            await self._bind(Binding(gate.name, previous))
        # The exchange `inbound` is bound to the gate, and the public exchange is declared last.
        await declare(
            self._connection,
            self._plan.topology(new),
            timeout_s=self._plan.timeout_s,
        )

    async def _unbind_previous(self, layout: ShardLayout) -> None:
        previous = self._plan.previous_destination(layout)
        gate = self._plan.gate(layout)
        channel = await self.records.open_channel()
        doing = f"unbind {previous.name}"
        async with broker_call(doing, timeout_s=self._plan.timeout_s):
            if layout.revision == 1:
                entry = single_entry(self._names)
                await send_unbind(channel, Binding(self._names.inbound, entry))
            # In this order: while the gate has a binding, both routes end in the same queue.
            for source in (self._names.inbound, gate.name):
                await send_unbind(channel, Binding(source, previous))
            await channel.close()

    async def _unbind_bypass(self) -> None:
        """Remove the binding of earlier versions from `inbound` to the queue itself."""
        queue = inbound_queue(self._names, self._names.inbound_queue())
        channel = await self.records.open_channel()
        async with broker_call(f"unbind {queue.name}", timeout_s=self._plan.timeout_s):
            await send_unbind(channel, Binding(self._names.inbound, queue))
            await channel.close()

    async def _bind_existing_gate(self) -> None:
        """Bind the gate of a first change that was begun before the plain queue existed."""
        gate = gate_name(self._names, 1)
        if await self.records.exists(Exchange(gate, "fanout")):
            previous = self._plan.previous_destination(ShardLayout())
            await self._bind(Binding(gate, previous))

    async def _declare(self, exchange: Exchange) -> None:
        channel = await self.records.open_channel()
        await declare_one(channel, exchange, timeout_s=self._plan.timeout_s)
        await channel.close()

    async def _bind(self, binding: Binding) -> None:
        channel = await self.records.open_channel()
        await bind(channel, binding, timeout_s=self._plan.timeout_s)
        await channel.close()


async def publish_end_markers(
    connection: BrokerConnection[FrameReader], plan: ShardPlan, layout: ShardLayout
) -> None:
    """
    Publish an end marker to each previous queue that exists and has no message waiting.

    Raises:
        BrokerUnavailableError: If the broker is unreachable or too slow.
        TopologyError: If the exchange of the markers exists with another type, or the user may
            not declare it.

    """
    names = plan.names
    exchange = Exchange(marker_exchange_name(names), "direct")
    for queue in await ShardRecords(connection, plan).previous_queues(layout):
        async with broker_call(
            f"publish an end marker to {queue}", timeout_s=plan.timeout_s
        ):
            channel = await connection.open_channel(confirms=True)
            await declare_one(channel, exchange, timeout_s=plan.timeout_s)
            try:
                await _publish_end_marker(
                    channel, exchange, inbound_queue(names, queue)
                )
            except ChannelNotFoundEntity:
                continue  # a bridge has emptied and deleted the queue meanwhile
            await channel.close()


async def _publish_end_marker(
    channel: aiormq.Channel, exchange: Exchange, queue: Queue
) -> None:
    reply = await channel.queue_declare(queue.name, passive=True)
    if reply.message_count:
        return  # too early: the queue still has messages to deliver
    await channel.queue_bind(queue.name, exchange.name, queue.name)
    await channel.basic_publish(
        b"{}",
        exchange=exchange.name,
        routing_key=queue.name,
        properties=aiormq.spec.Basic.Properties(
            delivery_mode=2, message_type=MARKER_TYPE.decode()
        ),
    )


async def keep_publishing_end_markers(
    address: BrokerAddress, plan: ShardPlan, layout: ShardLayout
) -> None:
    """
    Publish end markers every few seconds until canceled, on connections of its own.

    A marker that is lost or followed by another message is replaced by the next one. A missing
    permission is logged, for an operator to fix; the previous queues are consumed meanwhile.
    """
    while True:
        await asyncio.sleep(plan.marker_interval_s)
        try:
            async with connected(
                address, purpose=Purpose.OPERATE, reader=FrameReader
            ) as connection:
                await publish_end_markers(connection, plan, layout)
        except (BrokerUnavailableError, TopologyError) as exc:
            log.info("shards.end_marker_unpublished", problem=str(exc))
