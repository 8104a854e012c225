"""
The exchanges, queues and bindings that bridge needs, and how to declare or compare them.

    <ns>.messages ──#──▶ <ns>.inbound ──▶ <ns>.inbound.0 ──▶ queue <ns>.inbound.0 ──expired──┐
                              ▲                 ┊                                            ▼
                              │                 └┄ no queue ┄▶ <ns>.unrouted ─▶ queue ─▶ <ns>.dead
    <ns>.retry.<ms> ──▶ queue <ns>.retry.<ms>, waits <ms> there                              │
                                                                                    queue <ns>.dead
    <ns>.control ──#──▶ queue <ns>.control
    <ns>.events, to which workers bind their queues

With more than one shard, or after the number of shards was changed, shards/layout.py says
what stands between the exchange <ns>.inbound and the queues.

RabbitMQ confirms a message that reaches no queue, and drops it. Two rules prevent that:

- Everything is declared from the queues outwards, so an exchange accepts messages only after
  all routes behind it exist. A binding can only follow its exchange, and a producer that
  publishes in a loop hits the gap between the two. So <ns>.messages has an alternate exchange,
  <ns>.messages.fallback, which leads to <ns>.inbound like the binding.
- Every other exchange in front of the inbound queues has the alternate exchange <ns>.unrouted.
  The queue behind it dead-letters each message after a millisecond, without its expiration. So
  a message that arrives while its queue is deleted becomes a dead letter, which an operator
  can redrive.

An argument of an existing exchange cannot be changed, and AMQP cannot set a policy. Earlier
versions and other programs declare exchanges without an alternate; these are kept as they are.
Earlier versions did not declare the exchange <ns>.inbound.0, so it protects their brokers, too.

Everything is durable and every queue is a quorum queue: no message is lost with one node, and
every version from 3.10 to 4.x accepts these arguments. A retry queue dead-letters messages
with the routing key that they were published with. A fanout exchange in front of each retry
queue keeps that key, which is the user.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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

ALTERNATE: Final = "alternate-exchange"

QUORUM: Final[Arguments] = MappingProxyType(
    {"x-queue-type": "quorum", "x-delivery-limit": _DELIVERY_LIMIT}
)


_NO_ALTERNATE: Final = (
    "has no alternate exchange, because an earlier version or another program declared it; "
    "see 'Messages without a queue' in docs/operations.md"
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """
    A durable exchange.

    Attributes:
        name: Its name.
        type: How it routes.
        arguments: The arguments that it must have.
        alternate: The exchange that receives what this one cannot route, if this one is new.
            An existing exchange may lack it. It adds to `arguments`.

    """

    name: str
    type: str
    arguments: Arguments = field(default_factory=dict)
    alternate: str | None = None


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
    """
    Exchanges, queues and bindings.

    Each exchange comes after those that it leads to, so the public one is the last. Bindings
    of one exchange are declared in their order.
    """

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
    """
    One exchange or queue by kind and name.

    Attributes:
        text: The problem and the fix, if any.
        messages: How many are ready in a queue.

    """

    name: str
    state: ComparisonState
    text: str = ""
    messages: int = 0


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
    inbound_queues = [
        inbound_queue(names, name) for name in names.inbound_queues(shards)
    ]
    dead_queue = Queue(names.dead, QUORUM)
    unrouted_queue = Queue(
        names.unrouted, {**QUORUM, "x-message-ttl": 1, **_dead_letter_to(names.dead)}
    )
    exchanges = [Exchange(names.dead, "fanout"), Exchange(names.unrouted, "fanout")]
    queues = [*inbound_queues, dead_queue, unrouted_queue]
    bindings = [
        Binding(names.dead, dead_queue),
        Binding(names.unrouted, unrouted_queue),
    ]
    inbound = Exchange(names.inbound, "fanout", alternate=names.unrouted)
    if shards == 1 and not was_changed:
        entry = single_entry(names)
        bindings += [
            Binding(entry.name, inbound_queues[0]),
            Binding(inbound.name, entry),
        ]
    else:
        # A single shard needs no hash: a fanout accepts every routing key.
        kind = hash_type if shards > 1 else "fanout"
        entry = Exchange(names.shards_entry(shards), kind, alternate=names.unrouted)
        queues.append(Queue(names.bridges, QUORUM))
        # In the order of names, so that bridges that start together bind in the same order:
        # a consistent hash assigns users by the order of bindings.
        bindings += [
            Binding(entry.name, queue, binding_key(kind, place))
            for place, queue in enumerate(
                sorted(inbound_queues, key=attrgetter("name"))
            )
        ]
    for delay_ms in dict.fromkeys(map(retry_delay_ms, retry_delays_s)):
        name = names.retry_queue(delay_ms)
        waiting = Queue(
            name,
            {**QUORUM, "x-message-ttl": delay_ms, **_dead_letter_to(names.inbound)},
        )
        exchanges.append(Exchange(name, "fanout"))
        queues.append(waiting)
        bindings.append(Binding(name, waiting))
    fallback = Exchange(names.messages_fallback, "fanout", alternate=names.unrouted)
    messages = Exchange(names.messages, "topic", alternate=fallback.name)
    control = control_topology(names)
    queues += control.queues
    exchanges += [
        events_exchange(names),
        *control.exchanges,
        entry,
        inbound,
        fallback,
        messages,
    ]
    bindings += [
        *control.bindings,
        Binding(fallback.name, inbound),
        Binding(messages.name, inbound, "#"),
    ]
    return Topology(exchanges, queues, bindings)


def control_topology(names: BrokerNames) -> Topology:
    """
    Return the exchange and queue of commands; what they refer to must exist.

    One queue serves all bridges: a queue of one bridge would be gone while that bridge is
    away, and with it the commands that were confirmed meanwhile.
    """
    exchange = Exchange(names.control, "topic", alternate=names.unrouted)
    queue = Queue(names.control, {**QUORUM, **_dead_letter_to(names.dead)})
    return Topology([exchange], [queue], [Binding(exchange.name, queue, "#")])


def events_exchange(names: BrokerNames) -> Exchange:
    """
    Return the exchange of events for workers.

    It has no alternate exchange: an event that no worker has asked for is dropped.
    """
    return Exchange(names.events, "topic")


def requests_topology(names: BrokerNames) -> Topology:
    """
    Return the exchange of requests from pages; workers bind their queues to it.

    It has no alternate exchange: a request without a queue must be returned at once.
    """
    return Topology([Exchange(names.requests, "topic")], (), ())


def single_entry(names: BrokerNames) -> Exchange:
    """Return the exchange in front of the queue of a single shard."""
    return Exchange(names.inbound_queue(), "fanout", alternate=names.unrouted)


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
    Declare what does not exist, from the queues outwards; leave what exists unchanged.

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
    for queue in wanted.queues:
        await declare_one(channel, queue, timeout_s=timeout_s)
    for exchange in wanted.exchanges:
        try:
            await declare_one(channel, exchange, timeout_s=timeout_s)
        except TopologyError as exc:
            is_different = isinstance(exc.__cause__, ChannelPreconditionFailed)
            if exchange.alternate is None or not is_different:
                raise
            # The refusal has closed the channel.
            channel = await connection.open_channel(confirms=False)
            existing = replace(exchange, alternate=None)
            await declare_one(channel, existing, timeout_s=timeout_s)
        for binding in wanted.bindings:
            if binding.source == exchange.name:
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
            messages = await send_declare(channel, thing, passive=True)
            await send_declare(channel, thing)
        except ChannelNotFoundEntity:
            text = "does not exist yet; bridge run will declare it"
            return Comparison(_title(thing), ComparisonState.MISSING, text)
        except ChannelPreconditionFailed as exc:
            if isinstance(thing, Exchange) and thing.alternate is not None:
                existing = replace(thing, alternate=None)
                found = await _compare_one(connection, existing, timeout_s=timeout_s)
                if found.state is ComparisonState.OK:
                    return replace(found, text=_NO_ALTERNATE)
                return found
            return _failed(ComparisonState.DIFFERENT, _different(thing, exc))
        except ChannelAccessRefused as exc:
            return _failed(ComparisonState.REFUSED, _refused(thing, exc))
        await channel.close()
    return Comparison(_title(thing), ComparisonState.OK, messages=messages)


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
) -> int:
    """
    Send one declare. Call it within a `broker_call`; refusals are raised as they come.

    A passive declare checks that the object exists, and ignores its type and arguments.

    Returns:
        The number of ready messages in a queue; 0 for an exchange.

    """
    if isinstance(thing, Exchange):
        arguments = dict(thing.arguments)
        if thing.alternate is not None:
            arguments[ALTERNATE] = thing.alternate
        await channel.exchange_declare(
            thing.name,
            exchange_type=thing.type,
            durable=True,
            passive=passive,
            arguments=arguments,
        )
        return 0
    reply = await channel.queue_declare(
        thing.name, durable=True, passive=passive, arguments=dict(thing.arguments)
    )
    return reply.message_count or 0


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
