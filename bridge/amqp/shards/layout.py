"""
The number of shards and the names of their exchanges and queues, as the broker records them.

    <ns>.inbound ──▶ <ns>.shards.1.gate ─┄▶ <ns>.inbound.of4 ──hash of the user──▶ queue
                      (┄ its alternate)                          <ns>.inbound.0of4 … 3of4

A *gate* is the exchange in front of the one that distributes users; a migration switches
messages to the next gate.

One shard is the plain topology of topology.py, without any of this. The broker itself stores
the number: AMQP cannot list bindings, but it tells whether an exchange exists and which
alternate exchange it has. A *record* is such an exchange, one for each change of the number so
far, and never changes. So all bridges agree, whatever their BRIDGE_SHARDS is: the setting
counts on an empty broker only. migration.py changes the number.

Which queue a user gets depends on all queues that are bound (hashing.py), so each number of
shards has an exchange of its own, which is never changed. A queue with a single active
consumer reports only that one as its consumer, so the bridges are counted on a queue that all
of them consume (assignment.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import aiormq
from aiormq.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from bridge.amqp.connection import BrokerConnection, broker_call, problem_text
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.refusals import CUT, INEQUIVALENT, plain
from bridge.amqp.shards.hashing import MODULUS, exchange_hash_type
from bridge.amqp.topology import (
    ALTERNATE,
    Binding,
    Exchange,
    Queue,
    Topology,
    inbound_queue,
    send_declare,
    single_entry,
    topology,
)
from bridge.core.broker_names import SHARDS_MAX, BrokerNames
from bridge.errors import BrokerUnavailableError


def record_name(names: BrokerNames, revision: int) -> str:
    """Return the name of the exchange that records a revision."""
    return f"{names.namespace}.shards.{revision}"


def done_name(names: BrokerNames, revision: int) -> str:
    """Return the name of the exchange that records that a migration is complete."""
    return f"{record_name(names, revision)}.done"


def gate_name(names: BrokerNames, revision: int) -> str:
    """Return the name of the exchange that messages pass since a revision."""
    return f"{record_name(names, revision)}.gate"


def marker_exchange_name(names: BrokerNames) -> str:
    """Return the name of the exchange that delivers end markers to the previous queues."""
    return f"{names.namespace}.shards.mark"


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """
    A number of shards, as the broker records it.

    Attributes:
        shards: The number of shards.
        revision: How often the number was changed; 0 = never, the plain topology.
        previous_shards: The number before the last change.
        is_migrating: Whether queues of the previous number may still exist.
        hash_type: The type of the exchange that distributes users over the shards.

    """

    shards: int = 1
    revision: int = 0
    previous_shards: int = 1
    is_migrating: bool = False
    hash_type: str = MODULUS


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """
    The settings from which the topology of any number of shards follows.

    Attributes:
        names: Of exchanges and queues.
        retry_delays_s: Each gets a retry queue.
        shards: The number of shards on an empty broker.
        timeout_s: For each call to the broker.
        marker_interval_s: The time between end markers. It must suffice for messages that are
            on their way to a previous queue to arrive there.
        assignment_interval_s: The mean time between two counts of the bridges.

    """

    names: BrokerNames
    retry_delays_s: Sequence[float]
    shards: int = 1
    timeout_s: float = 15.0
    marker_interval_s: float = 3.0
    assignment_interval_s: float = 1.0

    def topology(self, layout: ShardLayout) -> Topology:
        """Return the topology of `layout`, including its gate."""
        declared = topology(
            self.names,
            self.retry_delays_s,
            layout.shards,
            was_changed=layout.revision > 0,
            hash_type=layout.hash_type,
        )
        if not layout.revision:
            return declared
        gate = self.gate(layout)
        return replace(
            declared,
            exchanges=[gate, *declared.exchanges],
            bindings=[*declared.bindings, Binding(self.names.inbound, gate)],
        )

    def gate(self, layout: ShardLayout) -> Exchange:
        """Return the gate in front of the exchange that distributes users."""
        return Exchange(
            gate_name(self.names, layout.revision),
            "fanout",
            self.entry_arguments(layout.shards),
        )

    def record(self, layout: ShardLayout) -> Exchange:
        """Return the record of `layout`; no message is ever published to it."""
        return Exchange(
            record_name(self.names, layout.revision),
            "fanout",
            self.entry_arguments(layout.shards),
        )

    def entry_arguments(self, shards: int) -> dict[str, str | int | bool]:
        """Return the arguments of a gate or record: they name the number of shards."""
        return {ALTERNATE: self.names.shards_entry(shards)}

    def entry(self, layout: ShardLayout) -> Exchange:
        """Return the exchange to which `inbound` is bound in `layout`."""
        return self.gate(layout) if layout.revision else single_entry(self.names)

    def previous_entry(self, layout: ShardLayout) -> Exchange:
        """Return the exchange to which `inbound` was bound before the last change."""
        previous = layout.previous_shards
        return self.entry(ShardLayout(previous, layout.revision - 1, previous))

    def previous_destination(self, layout: ShardLayout) -> Exchange | Queue:
        """Return what the previous entry led to: the plain queue, or what spreads users."""
        if layout.revision > 1:
            return Exchange(self.names.shards_entry(layout.previous_shards), MODULUS)
        return inbound_queue(self.names, self.names.inbound_queue())


class ShardRecords:
    """
    Reads the layout from the broker over one connection, which it does not close.

    All its methods raise `BrokerUnavailableError` if the broker is unreachable or too slow.
    Cancelling is safe.
    """

    def __init__(
        self, connection: BrokerConnection[FrameReader], plan: ShardPlan
    ) -> None:
        self._connection = connection
        self._plan = plan
        self._names = plan.names

    async def read(self) -> ShardLayout:
        """Return the layout that the broker records."""
        revision = 0
        while await self._has_record(revision + 1):
            revision += 1
        if not revision:
            return ShardLayout()
        shards = await self._recorded(revision)
        if await self.exists(Exchange(done_name(self._names, revision), "fanout")):
            return await self.with_hash_type(ShardLayout(shards, revision, shards))
        previous = await self._recorded(revision - 1) if revision > 1 else 1
        return await self.with_hash_type(
            ShardLayout(shards, revision, previous, is_migrating=True)
        )

    async def expect(self) -> ShardLayout:
        """Return the recorded layout; on an empty broker, the one that the plan leads to."""
        layout = await self.read()
        if self._plan.shards > 1 and await self.is_empty(layout):
            return await self.with_hash_type(ShardLayout(self._plan.shards, 1))
        return layout

    async def with_hash_type(self, layout: ShardLayout) -> ShardLayout:
        """Return `layout` with the hash type that its exchange has, or will get."""
        entry = self._names.shards_entry(layout.shards)
        hash_type = await exchange_hash_type(
            self._connection, entry, timeout_s=self._plan.timeout_s
        )
        return replace(layout, hash_type=hash_type)

    async def is_empty(self, layout: ShardLayout) -> bool:
        """
        Return whether no layout was recorded and no plain topology declared.

        A gate without the plain queue shows that another bridge has begun its first start.
        """
        if layout.revision:
            return False
        if not await self.exists(Exchange(self._names.inbound, "fanout")):
            return True
        if not await self.exists(Exchange(gate_name(self._names, 1), "fanout")):
            return False
        return not await self.exists(Queue(self._names.inbound_queue(), {}))

    async def has_newer(self, layout: ShardLayout) -> bool:
        """Return whether the layout was changed since it was read."""
        return await self._has_record(layout.revision + 1)

    async def previous_queues(self, layout: ShardLayout) -> Sequence[str]:
        """Return the queues of the previous number of shards that still exist, in order."""
        if not layout.is_migrating:
            return ()
        names = self._names.inbound_queues(layout.previous_shards)
        return [name for name in names if await self.exists(Queue(name, {}))]

    async def exists(self, thing: Exchange | Queue) -> bool:
        """Return whether an exchange or queue with this name exists."""
        async with broker_call(f"look up {thing.name}", timeout_s=self._plan.timeout_s):
            # A refusal closes its channel, so each lookup opens a channel of its own.
            channel = await self.open_channel()
            try:
                await send_declare(channel, thing, passive=True)
            except ChannelNotFoundEntity:
                return False
            await channel.close()
        return True

    async def open_channel(self) -> aiormq.Channel:
        """Open a channel on the connection."""
        return await self._connection.open_channel(confirms=False)

    async def _has_record(self, revision: int) -> bool:
        return await self.exists(Exchange(record_name(self._names, revision), "fanout"))

    async def _recorded(self, revision: int) -> int:
        """Return the number of shards in an existing record."""
        record = self._plan.record(ShardLayout(self._plan.shards, revision))
        refusal = await self._refusal(record)
        if refusal is None:
            return self._plan.shards
        return await self.shards_from_refusal(record, refusal)

    async def shards_from_refusal(self, exchange: Exchange, refusal: str) -> int:
        """
        Return the number of shards in the arguments of an existing record or gate.

        AMQP cannot read an argument, but RabbitMQ names it when it refuses a declare with
        another value. It cuts the text at 255 bytes, which holds the namespace three times and
        the vhost once. If the number was cut off, every number is tried: RabbitMQ accepts the
        right one. Each refusal writes a line to RabbitMQ's log.

        Args:
            exchange: A fanout exchange that exists.
            refusal: The text with which RabbitMQ refused another number.

        Raises:
            BrokerUnavailableError: If no number fits, or the broker is unreachable.

        """
        found = INEQUIVALENT.search(refusal)
        theirs = plain(found["theirs"]) if found else ""
        choices = [
            replace(exchange, arguments=self._plan.entry_arguments(shards))
            for shards in range(1, SHARDS_MAX + 1)
        ]
        for shards, choice in enumerate(choices, 1):
            if theirs in choice.arguments.values():
                return shards
        if refusal.endswith(CUT):
            for shards, choice in enumerate(choices, 1):
                if await self._refusal(choice) is None:
                    return shards
        problem = f"RabbitMQ says {refusal!r}"
        raise BrokerUnavailableError("read the number of shards", problem)

    async def _refusal(self, exchange: Exchange) -> str | None:
        """Return RabbitMQ's refusal to declare `exchange`; ``None`` if it is as given."""
        async with broker_call(
            f"look up {exchange.name}", timeout_s=self._plan.timeout_s
        ):
            channel = await self.open_channel()
            try:
                await send_declare(channel, exchange)
            except ChannelPreconditionFailed as exc:
                return problem_text(exc)
            await channel.close()
        return None
