"""
The exchanges, queues and bindings that bridge needs, and how to declare or compare them.

    <ns>.messages ──#──▶ <ns>.inbound ──▶ queue <ns>.inbound.0 ──expired──▶ <ns>.dead
                              ▲                                                │
    <ns>.retry.<ms> ──▶ queue <ns>.retry.<ms>, waits <ms> there       queue <ns>.dead

With more than one shard, or after the number of shards was changed, shards/layout.py says
what stands between the exchange <ns>.inbound and the queues.

Everything is durable and every queue is a quorum queue: no message is lost with one node, and
every version from 3.10 to 4.x accepts these arguments. A retry queue dead-letters messages
with the routing key that they were published with. A fanout exchange in front of each retry
queue keeps that key, which is the user.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter
from types import MappingProxyType
from typing import Final

import aiormq
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionCommandInvalid,
)

from bridge.amqp.connection import BrokerConnection, broker_call, problem_text
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.refusals import INEQUIVALENT, is_no_such_type, plain
from bridge.amqp.shards.hashing import MODULUS, binding_key, plugin_of
from bridge.core.broker_names import BrokerNames
from bridge.errors import TopologyError

Arguments = Mapping[str, str | int | bool]

# RabbitMQ 4 drops a message after 20 redeliveries by default, and a lost connection counts
# for every message that was in flight. RabbitMQ 3.10 returns messages to their place in the
# queue only if a limit is set. The bridge counts attempts itself.
_DELIVERY_LIMIT: Final = 1_000_000

QUORUM: Final[Arguments] = MappingProxyType(
    {"x-queue-type": "quorum", "x-delivery-limit": _DELIVERY_LIMIT}
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: str
    arguments: Arguments = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue."""

    name: str
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class Binding:
    """A binding from an exchange to a queue or to another exchange."""

    source: str
    destination: Exchange | Queue
    routing_key: str = ""


@dataclass(frozen=True, slots=True)
class Topology:
    """Exchanges, queues and bindings, in the order in which they are declared."""

    exchanges: Sequence[Exchange]
    queues: Sequence[Queue]
    bindings: Sequence[Binding]


class ComparisonState(StrEnum):
    """Whether an exchange or queue of the broker is as the bridge needs it."""

    OK = "ok"
    MISSING = "missing"
    DIFFERENT = "different"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One exchange or queue by kind and name; `text` holds the problem and the fix, if any."""

    name: str
    state: ComparisonState
    text: str = ""


def retry_delay_ms(delay_s: float) -> int:
    """Return the delay as it appears in the names of its exchange and queue."""
    return max(1, round(delay_s * 1000))


def topology(
    names: BrokerNames,
    retry_delays_s: Sequence[float],
    shards: int = 1,
    *,
    was_changed: bool = False,
    hash_type: str = MODULUS,
) -> Topology:
    """
    Return the topology of a bridge with these names and delays.

    Args:
        names: Of everything.
        retry_delays_s: Each gets a retry queue.
        shards: How many inbound queues there are.
        was_changed: Whether the number of shards was changed before: then the queues are
            bound to an exchange of their own, even a single one.
        hash_type: The type of the exchange that distributes users over several shards.

    """
    messages = Exchange(names.messages, "topic")
    inbound = Exchange(names.inbound, "fanout")
    dead = Exchange(names.dead, "fanout")
    inbound_queues = [
        inbound_queue(names, name) for name in names.inbound_queues(shards)
    ]
    dead_queue = Queue(names.dead, QUORUM)
    exchanges = [messages, inbound, dead]
    queues = [*inbound_queues, dead_queue]
    bindings = [Binding(names.messages, inbound, "#")]
    if shards == 1 and not was_changed:
        bindings.append(Binding(names.inbound, inbound_queues[0]))
    else:
        # A single shard needs no hash: a fanout accepts every routing key.
        kind = hash_type if shards > 1 else "fanout"
        entry = Exchange(names.shards_entry(shards), kind)
        exchanges.append(entry)
        queues.append(Queue(names.bridges, QUORUM))
        # In the order of names, so that bridges that start together bind in the same order:
        # a consistent hash assigns users by the order of bindings.
        bindings += [
            Binding(entry.name, queue, binding_key(kind, place))
            for place, queue in enumerate(
                sorted(inbound_queues, key=attrgetter("name"))
            )
        ]
    bindings.append(Binding(names.dead, dead_queue))
    for delay_ms in dict.fromkeys(map(retry_delay_ms, retry_delays_s)):
        name = names.retry_queue(delay_ms)
        waiting = Queue(
            name,
            {**QUORUM, "x-message-ttl": delay_ms, **_dead_letter_to(names.inbound)},
        )
        exchanges.append(Exchange(name, "fanout"))
        queues.append(waiting)
        bindings.append(Binding(name, waiting))
    return Topology(exchanges, queues, bindings)


def inbound_queue(names: BrokerNames, name: str) -> Queue:
    """Return the inbound queue with this name."""
    return Queue(
        name,
        {
            **QUORUM,
            "x-single-active-consumer": True,
            # Messages that expire here become dead letters.
            **_dead_letter_to(names.dead),
        },
    )


def _dead_letter_to(exchange: str) -> Arguments:
    """Dead-letter with confirms; RabbitMQ ignores the strategy without reject-publish."""
    return {
        "x-dead-letter-exchange": exchange,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


async def declare(
    connection: BrokerConnection[FrameReader], wanted: Topology, *, timeout_s: float
) -> None:
    """
    Declare what does not exist; leave what exists unchanged.

    Args:
        connection: Stays open in every case; the call opens a channel of its own.
        wanted: What to declare.
        timeout_s: For each exchange, queue and binding.

    Raises:
        TopologyError: If an exchange or queue exists with other arguments, or the user may
            not declare it.
        BrokerUnavailableError: If the broker is unreachable or too slow.

    Cancellation:
        Safe; what was declared stays, and declaring it again has no effect.

    """
    channel = await connection.open_channel(confirms=False)
    for exchange in wanted.exchanges:
        await declare_one(channel, exchange, timeout_s=timeout_s)
    for queue in wanted.queues:
        await declare_one(channel, queue, timeout_s=timeout_s)
    for binding in wanted.bindings:
        await bind(channel, binding, timeout_s=timeout_s)
    async with broker_call("close a channel", timeout_s=timeout_s):
        await channel.close()


async def compare(
    connection: BrokerConnection[FrameReader], wanted: Topology, *, timeout_s: float
) -> list[Comparison]:
    """
    Compare the exchanges and queues of the broker with `wanted`, without changing anything.

    AMQP has no call that reads a binding, so bindings are not compared.

    Raises:
        BrokerUnavailableError: If the broker is unreachable or too slow.

    """
    things: list[Exchange | Queue] = [*wanted.exchanges, *wanted.queues]
    return [
        await _compare_one(connection, thing, timeout_s=timeout_s) for thing in things
    ]


async def _compare_one(
    connection: BrokerConnection[FrameReader],
    thing: Exchange | Queue,
    *,
    timeout_s: float,
) -> Comparison:
    # A refusal closes its channel, so each object gets a channel of its own. After a passive
    # declare, a real one changes nothing: it succeeds or names the difference.
    async with broker_call(f"compare {thing.name}", timeout_s=timeout_s):
        channel = await connection.open_channel(confirms=False)
        try:
            await send_declare(channel, thing, passive=True)
            await send_declare(channel, thing)
        except ChannelNotFoundEntity:
            text = "does not exist yet; bridge run will declare it"
            return Comparison(_title(thing), ComparisonState.MISSING, text)
        except ChannelPreconditionFailed as exc:
            return _failed(ComparisonState.DIFFERENT, _different(thing, exc))
        except ChannelAccessRefused as exc:
            return _failed(ComparisonState.REFUSED, _refused(thing, exc))
        await channel.close()
    return Comparison(_title(thing), ComparisonState.OK)


def _failed(state: ComparisonState, error: TopologyError) -> Comparison:
    return Comparison(error.name, state, f"{error.problem}; {error.fix}")


async def declare_one(
    channel: aiormq.Channel, thing: Exchange | Queue, *, timeout_s: float
) -> None:
    """Declare one exchange or queue. Raises as `declare`."""
    async with broker_call(f"declare {thing.name}", timeout_s=timeout_s):
        try:
            await send_declare(channel, thing)
        except ChannelPreconditionFailed as exc:
            if is_no_such_type(problem_text(exc)):
                raise _unknown_type(thing, exc) from exc
            raise _different(thing, exc) from exc
        except ChannelAccessRefused as exc:
            raise _refused(thing, exc) from exc
        except ConnectionCommandInvalid as exc:
            raise _unknown_type(thing, exc) from exc


async def send_declare(
    channel: aiormq.Channel, thing: Exchange | Queue, *, passive: bool = False
) -> None:
    """
    Send one declare. Call it within a `broker_call`; refusals are raised as they come.

    A passive declare checks that the object exists, and ignores its type and arguments.
    """
    if isinstance(thing, Exchange):
        await channel.exchange_declare(
            thing.name,
            exchange_type=thing.type,
            durable=True,
            passive=passive,
            arguments=dict(thing.arguments),
        )
    else:
        await channel.queue_declare(
            thing.name, durable=True, passive=passive, arguments=dict(thing.arguments)
        )


async def bind(channel: aiormq.Channel, binding: Binding, *, timeout_s: float) -> None:
    """Declare one binding. Raises as `declare`."""
    target, source, key = binding.destination, binding.source, binding.routing_key
    async with broker_call(f"bind {target.name} to {source}", timeout_s=timeout_s):
        try:
            if isinstance(target, Exchange):
                await channel.exchange_bind(target.name, source, key)
            else:
                await channel.queue_bind(target.name, source, key)
        except ChannelAccessRefused as exc:
            raise _refused(target, exc) from exc


async def send_unbind(channel: aiormq.Channel, binding: Binding) -> None:
    """Send one unbind, also of a binding that does not exist; as `send_declare`."""
    target, source, key = binding.destination, binding.source, binding.routing_key
    if isinstance(target, Exchange):
        await channel.exchange_unbind(target.name, source, key)
    else:
        await channel.queue_unbind(target.name, source, key)


def _title(thing: Exchange | Queue) -> str:
    """Name the kind too: an exchange and a queue may have the same name."""
    return f"{type(thing).__name__.lower()} {thing.name}"


def _different(
    thing: Exchange | Queue, exc: ChannelPreconditionFailed
) -> TopologyError:
    """Return an error with the argument, both values and the fix."""
    kind = "drain and delete the queue" if isinstance(thing, Queue) else "delete it"
    fix = f"{kind}, or set another BRIDGE_NAMESPACE"
    text = problem_text(exc)
    found = INEQUIVALENT.search(text)
    if found is not None:
        theirs, ours = plain(found["theirs"]), plain(found["ours"])
        text = f"has {found['argument']} = {theirs}, the bridge needs {ours}"
    return TopologyError(_title(thing), text, fix)


def _refused(thing: Exchange | Queue, exc: ChannelAccessRefused) -> TopologyError:
    return TopologyError(
        _title(thing),
        f"RabbitMQ refuses access ({problem_text(exc)})",
        "give the user of BRIDGE_AMQP_URL configure, write and read permission on all "
        "names that start with BRIDGE_NAMESPACE",
    )


def _unknown_type(
    thing: Exchange | Queue, exc: ConnectionCommandInvalid | ChannelPreconditionFailed
) -> TopologyError:
    """Return an error with the broker's text and the command that fixes it."""
    plugin = plugin_of(thing.type) if isinstance(thing, Exchange) else "its plugin"
    return TopologyError(
        _title(thing),
        f"RabbitMQ says {problem_text(exc)}",
        f"`rabbitmq-plugins enable {plugin}` on each of its nodes",
    )
