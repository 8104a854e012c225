"""
The migration from one number of shards to another, while bridges run and producers publish.

A migration consists of these steps. It may stop anywhere and be started again:

1. A gate is declared, whose alternate exchange is the one in front of the new queues, and bound
   to the previous queue, or to the exchange in front of the previous queues. The new queues and
   their exchange are declared; then the exchange `inbound` is bound to the gate. RabbitMQ delivers
   a message to a queue once, however many routes lead there.
2. The record is declared: from now on no bridge that reads the records binds `inbound` to the
   previous entry, which is the exchange or gate between it and the previous queues.
3. The previous entry is unbound from `inbound` and replaced with a stub, which leads nowhere. A
   bridge that read the records before step 2 may still bind it: AMQP has no transaction of
   reading and binding. Before the stub exists, that adds a second route to the same queues;
   afterwards it has no effect. Then the gate is unbound from the previous queues. A gate without
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
)
from bridge.errors import BrokerUnavailableError, ShardsError, TopologyError

log = structlog.get_logger(__name__)

MARKER_TYPE: Final = b"bridge:mark"

# Neither this type nor its lack of an alternate exchange is that of an entry. Its bindings
# have an empty key, so it passes no message that has a user.
_STUB_TYPE: Final = "direct"
_STUB_ATTEMPTS: Final = 5


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
            try:
                await self._declare_all(layout)
            except TopologyError:
                if not await self.records.has_newer(layout):
                    raise
            else:
                if not await self.records.has_newer(layout):
                    return layout
            # Another process changed the number meanwhile. The exchange that is bound above
            # is a stub by now, or `_leave_previous` replaces it with one.
            layout = await self.records.read()

    async def _declare_all(self, layout: ShardLayout) -> None:
        plain_queue = Queue(self._names.inbound_queue(), {})
        is_used = not layout.revision and await self.records.exists(plain_queue)
        await declare(
            self._connection,
            self._plan.topology(layout),
            timeout_s=self._plan.timeout_s,
        )
        if layout.revision:
            await self._leave_previous(layout)
            return
        if not is_used:
            await self._bind_existing_gate()
        await self._unbind_bypass()

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
        await self._leave_previous(new)
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
            begun = await self.records.shards_from_refusal(gate, refusal)
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

    async def _leave_previous(self, layout: ShardLayout) -> None:
        """Move the stream from the previous queues to those of `layout`."""
        entry = self._plan.previous_entry(layout)
        previous = self._plan.previous_destination(layout)
        gate = self._plan.gate(layout).name
        # In this order: while the gate has a binding, all routes end in the same queues. Only
        # earlier versions have declared the second and third one.
        await self._unbind(
            Binding(self._names.inbound, entry),
            Binding(self._names.inbound, previous),
            Binding(gate, entry),
        )
        await self._replace_with_stub(entry)
        await self._unbind(Binding(gate, previous))

    async def _replace_with_stub(self, entry: Exchange) -> None:
        """
        Replace an exchange with one that leads nowhere, unless that was done before.

        A bridge that read the previous layout before the record was declared may still be
        declaring it. RabbitMQ refuses another type, and a binding to the stub has no effect.
        """
        stub = Exchange(entry.name, _STUB_TYPE)
        timeout_s = self._plan.timeout_s
        channel = await self.records.open_channel()
        for _ in range(_STUB_ATTEMPTS):
            try:
                await declare_one(channel, stub, timeout_s=timeout_s)
            except TopologyError as exc:
                if not isinstance(exc.__cause__, ChannelPreconditionFailed):
                    raise  # the user lacks a permission
            else:
                await channel.close()
                return
            channel = await self.records.open_channel()
            async with broker_call(f"delete {entry.name}", timeout_s=timeout_s):
                await channel.exchange_delete(entry.name)
        problem = f"other bridges declare {entry.name} again and again"
        raise BrokerUnavailableError(f"replace {entry.name}", problem)

    async def _unbind(self, *bindings: Binding) -> None:
        channel = await self.records.open_channel()
        for binding in bindings:
            doing = f"unbind {binding.destination.name}"
            async with broker_call(doing, timeout_s=self._plan.timeout_s):
                await send_unbind(channel, binding)
        async with broker_call("close a channel", timeout_s=self._plan.timeout_s):
            await channel.close()

    async def _unbind_bypass(self) -> None:
        """Remove the binding of earlier versions from `inbound` to the queue itself."""
        queue = inbound_queue(self._names, self._names.inbound_queue())
        await self._unbind(Binding(self._names.inbound, queue))

    async def _bind_existing_gate(self) -> None:
        """
        Bind the gate of a first change that was begun before the plain queue existed.

        If the queue existed, the change has done that, and may have unbound it since.
        """
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
