"""
The shards: how many inbound queues there are, and the way from one number to another.

    <ns>.inbound ──▶ <ns>.shards.1.gate ─┄▶ <ns>.inbound.of4 ──hash of the user──▶ queue
                      (┄ its alternate)                          <ns>.inbound.0of4 … 3of4

One shard is the plain topology of topology.py, without any of this. The broker itself
knows the number: AMQP cannot list bindings, but it tells whether an exchange is there, and
what it has for an alternate exchange. A *record* is such an exchange, one for each change
so far, never changed after; so all bridges agree whatever their BRIDGE_SHARDS says, which
counts on an empty broker only.

A change goes like this, and may be broken off anywhere and begun again:

1. The new queues and their entry are declared. A gate is declared, whose alternate is the
   new entry, and bound to what messages go to now; then the exchange `inbound` is bound to
   the gate. The broker gives a message to a queue once, however many ways lead there.
2. The record is declared: from now on nothing is bound to the old queues again.
3. The old way is unbound from `inbound`, then from the gate. A gate without bindings gives
   all to its alternate: one unbinding moves the stream, no message is lost or comes twice.
4. The new queues fill; nobody consumes them yet. When what was on its way has had time to
   arrive, a *mark* is put into each old queue. It comes out behind all the rest, to the
   one bridge whose consumer is active, so when its batch is acked nothing of the queue is
   in anybody's hand. That bridge deletes the queue if nothing came behind the mark.
5. When no old queue is left, `done` is declared and the new queues are consumed. So order
   per user is kept: all of before was stored before the first of after is taken.

A user's queue depends on all queues that are bound (hashing.py), so each number of shards
has an exchange of its own which is never changed. A queue with a single active consumer
tells only that one when asked for its consumers, so how many bridges there are is asked of
a queue that all of them consume.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import aiormq
from aiormq.exceptions import (
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from bridge.amqp.connection import BrokerConnection, broker_call, problem_text
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.shards.hashing import MODULUS, hash_of
from bridge.amqp.shards.records import number_led_to
from bridge.amqp.topology import (
    Binding,
    Exchange,
    Queue,
    Topology,
    bind,
    declare,
    declare_one,
    inbound_queue,
    topology,
)
from bridge.core.broker_names import (
    SHARDS_MAX,
    BrokerNames,
)
from bridge.errors import BrokerUnavailableError, ShardsError, TopologyError

_ALTERNATE: Final = "alternate-exchange"


def record_name(names: BrokerNames, change: int) -> str:
    """Return the name of the exchange that says that a change was decided."""
    return f"{names.namespace}.shards.{change}"


def gate_name(names: BrokerNames, change: int) -> str:
    """Return the name of the exchange that messages go through since a change."""
    return f"{record_name(names, change)}.gate"


def mark_name(names: BrokerNames) -> str:
    """Return the name of the exchange that puts a mark into a queue of before."""
    return f"{names.namespace}.shards.mark"


def _done_name(names: BrokerNames, change: int) -> str:
    return f"{record_name(names, change)}.done"


@dataclass(frozen=True, slots=True)
class Layout:
    """
    What the broker's records say.

    Attributes:
        shards: How many there are.
        change: How often the number was changed; 0 = never, the plain topology.
        before: How many there were before the last change.
        is_moving: Whether queues of before may be there yet.
        hash_type: Of the exchange that spreads users over them.

    """

    shards: int = 1
    change: int = 0
    before: int = 1
    is_moving: bool = False
    hash_type: str = MODULUS


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """
    What is declared for any number of shards.

    Attributes:
        names: Of everything.
        retry_delays_s: One waiting queue each.
        shards: How many there shall be on a broker that has none yet.
        timeout_s: For each single call to the broker.

    """

    names: BrokerNames
    retry_delays_s: Sequence[float]
    shards: int = 1
    timeout_s: float = 15.0

    def topology(self, layout: Layout) -> Topology:
        """Return what `layout` consists of, its gate included."""
        plan = topology(
            self.names,
            self.retry_delays_s,
            layout.shards,
            was_changed=layout.change > 0,
            hash_type=layout.hash_type,
        )
        if not layout.change:
            return plan
        gate = self.gate(layout)
        return replace(
            plan,
            exchanges=[*plan.exchanges, gate],
            bindings=[*plan.bindings, Binding(self.names.inbound, gate)],
        )

    def gate(self, layout: Layout) -> Exchange:
        """Return the gate to the entry of `layout`."""
        return Exchange(
            gate_name(self.names, layout.change), "fanout", self.leads_to(layout)
        )

    def record(self, layout: Layout) -> Exchange:
        """Return the record of `layout`; nothing is ever published to it."""
        return Exchange(
            record_name(self.names, layout.change), "fanout", self.leads_to(layout)
        )

    def leads_to(self, layout: Layout) -> dict[str, str | int | bool]:
        """Return the arguments of both."""
        return {_ALTERNATE: self.names.shards_entry(layout.shards)}

    def way_of_before(self, layout: Layout) -> Exchange | Queue:
        """Return what messages went to before the last change."""
        if layout.change > 1:
            return Exchange(gate_name(self.names, layout.change - 1), "fanout")
        return inbound_queue(self.names, self.names.inbound_queue())


class ShardDesk:
    """
    Reads and changes the layout over one connection, which it does not close.

    All its methods raise `BrokerUnavailableError` if the broker is away or too slow, and
    `TopologyError` if something has our names and is not as it must be. Cancelling is
    safe: each step can be done again.
    """

    def __init__(
        self, connection: BrokerConnection[FrameReader], plan: ShardPlan
    ) -> None:
        self._connection = connection
        self._plan = plan
        self._names = plan.names

    async def read(self) -> Layout:
        """Read the records."""
        changes = 0
        while await self.is_there(
            Exchange(record_name(self._names, changes + 1), "fanout")
        ):
            changes += 1
        if not changes:
            return Layout()
        shards = await self._recorded(changes)
        if await self.is_there(Exchange(_done_name(self._names, changes), "fanout")):
            return await self._laid_out(Layout(shards, changes, shards))
        before = await self._recorded(changes - 1) if changes > 1 else 1
        return await self._laid_out(Layout(shards, changes, before, is_moving=True))

    async def expect(self) -> Layout:
        """Read the records; on an empty broker, say what a bridge of this plan will make."""
        layout = await self.read()
        if await self._is_empty(layout) and self._plan.shards > 1:
            return await self._laid_out(Layout(self._plan.shards, 1))
        return layout

    async def _laid_out(self, layout: Layout) -> Layout:
        """Return it with the type of hash that its entry has, or is to get."""
        entry = self._names.shards_entry(layout.shards)
        found = await hash_of(self._connection, entry, timeout_s=self._plan.timeout_s)
        return replace(layout, hash_type=found)

    async def settle(self) -> Layout:
        """
        Declare what the records say; on an empty broker, what the plan says.

        The last steps of a change that was broken off behind its record are done. Where
        somebody has begun with another number, that is a broker which has to be waited
        for: he may be at it, or his bridge be started again.
        """
        layout = await self.read()
        if self._plan.shards > 1 and await self._is_empty(layout):
            try:
                return await self.change(self._plan.shards)
            except ShardsError as exc:
                raise BrokerUnavailableError("settle the shards", str(exc)) from exc
        return await self._settle(layout)

    async def _settle(self, layout: Layout) -> Layout:
        while True:
            await declare(
                self._connection,
                self._plan.topology(layout),
                timeout_s=self._plan.timeout_s,
            )
            if layout.change:
                await self._unbind_the_old(layout)
            else:
                await self._hold_the_gate()
            record = record_name(self._names, layout.change + 1)
            if not await self.is_there(Exchange(record, "fanout")):
                return layout
            layout = await self.read()  # changed meanwhile: what we bound was the old

    async def _is_empty(self, layout: Layout) -> bool:
        """
        Say whether there is no record, and one shard was never declared here either.

        Without its queue and with a gate, another bridge is at the beginning of its start.
        """
        if layout.change:
            return False
        if not await self.is_there(Exchange(self._names.inbound, "fanout")):
            return True
        if not await self.is_there(Exchange(gate_name(self._names, 1), "fanout")):
            return False
        return not await self.is_there(Queue(self._names.inbound_queue(), {}))

    async def change(self, shards: int) -> Layout:
        """
        Change the number of shards. The old queues are emptied after that, by the bridges.

        Raises:
            ShardsError: If an earlier change is not over; what ends it is told.

        """
        now = await self.read()
        await self.refuse_if_not_now(now, shards)
        if now.shards == shards:
            return await self._settle(now)
        new = await self._laid_out(
            Layout(shards, now.change + 1, now.shards, is_moving=True)
        )
        await self._prepare(new)
        await self._declare(self._plan.record(new))
        await self._unbind_the_old(new)
        return new

    async def refuse_if_not_now(self, now: Layout, shards: int) -> None:
        """Raise what `change` to this number would, as far as that can be seen."""
        if now.is_moving and now.shards != shards:
            left = ", ".join(await self.left_of_before(now)) or "none"
            text = f"the change from {now.before} to {now.shards} is not over"
            raise ShardsError(f"{text}; queues of before: {left}")

    async def left_of_before(self, layout: Layout) -> Sequence[str]:
        """Return the queues of before that are there yet, in order."""
        if not layout.is_moving:
            return ()
        names = self._names.inbound_queues(layout.before)
        return [name for name in names if await self.is_there(Queue(name, {}))]

    async def finish(self, layout: Layout) -> None:
        """Record that nothing of before is left."""
        await self._declare(Exchange(_done_name(self._names, layout.change), "fanout"))

    async def is_there(self, thing: Exchange | Queue) -> bool:
        """Say whether it is there, whatever its arguments."""
        async with broker_call(f"look at {thing.name}", timeout_s=self._plan.timeout_s):
            # A refusal closes its channel, so each question gets one of its own.
            channel = await self._connection.open_channel(confirms=False)
            try:
                if isinstance(thing, Exchange):
                    await channel.exchange_declare(thing.name, passive=True)
                else:
                    await channel.queue_declare(thing.name, passive=True)
            except ChannelNotFoundEntity:
                return False
            await channel.close()
        return True

    async def _recorded(self, change: int) -> int:
        """Return the number of shards that a record, which is there, tells."""
        wish = Layout(self._plan.shards, change)
        record = self._plan.record(wish)
        doing = f"look at {record.name}"
        async with broker_call(doing, timeout_s=self._plan.timeout_s):
            channel = await self._connection.open_channel(confirms=False)
            try:
                await channel.exchange_declare(
                    record.name,
                    exchange_type=record.type,
                    durable=True,
                    arguments=dict(record.arguments),
                )
            except ChannelPreconditionFailed as exc:
                refusal = exc
            else:
                await channel.close()
                return wish.shards
        return await self._led_to(record.name, refusal)

    async def _led_to(self, exchange: str, refusal: ChannelPreconditionFailed) -> int:
        """Return how many shards `exchange` leads to, if not to those in `refusal`."""
        return await number_led_to(
            self._connection,
            exchange,
            [
                self._plan.leads_to(Layout(shards))
                for shards in range(1, SHARDS_MAX + 1)
            ],
            refusal=problem_text(refusal),
            timeout_s=self._plan.timeout_s,
        )

    async def _prepare(self, new: Layout) -> None:
        """Declare all of `new`, and let the gate lead where messages go now."""
        plan = self._plan.topology(new)
        gate = self._plan.gate(new)
        inbound_to_gate = plan.bindings[-1]
        try:
            await self._declare(gate)
        except TopologyError as exc:
            if not isinstance(exc.__cause__, ChannelPreconditionFailed):
                raise  # we may not
            begun = await self._led_to(gate.name, exc.__cause__)
            text = f"a change to {begun} shards was begun and not ended"
            mend = f"`bridge shards set {begun}` does that, then set {new.shards}"
            raise ShardsError(f"{text}; {mend}") from exc
        await declare(
            self._connection,
            replace(plan, bindings=plan.bindings[:-1]),
            timeout_s=self._plan.timeout_s,
        )
        old = self._plan.way_of_before(new)
        channel = await self._channel()
        if new.change > 1 or await self.is_there(old):
            await bind(
                channel,
                Binding(gate.name, old),
                timeout_s=self._plan.timeout_s,
            )
        await bind(channel, inbound_to_gate, timeout_s=self._plan.timeout_s)
        await channel.close()

    async def _unbind_the_old(self, layout: Layout) -> None:
        old = self._plan.way_of_before(layout)
        gate = self._plan.gate(layout)
        channel = await self._channel()
        async with broker_call(f"unbind {old.name}", timeout_s=self._plan.timeout_s):
            # In this order: as long as the gate has a binding, both ways end in one queue.
            for source in (self._names.inbound, gate.name):
                if isinstance(old, Exchange):
                    await channel.exchange_unbind(old.name, source, "")
                else:
                    await channel.queue_unbind(old.name, source, "")
            await channel.close()

    async def _hold_the_gate(self) -> None:
        """Let a first change that was begun without a queue of before lead to it, too."""
        gate = gate_name(self._names, 1)
        if await self.is_there(Exchange(gate, "fanout")):
            old = self._plan.way_of_before(Layout())
            channel = await self._channel()
            await bind(channel, Binding(gate, old), timeout_s=self._plan.timeout_s)
            await channel.close()

    async def _declare(self, exchange: Exchange) -> None:
        channel = await self._channel()
        await declare_one(channel, exchange, timeout_s=self._plan.timeout_s)
        await channel.close()

    async def _channel(self) -> aiormq.Channel:
        async with broker_call("open a channel", timeout_s=self._plan.timeout_s):
            return await self._connection.open_channel(confirms=False)
