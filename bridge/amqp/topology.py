"""
What the bridge needs on the broker, as data; declared, or compared and explained.

    <ns>.messages ──#──▶ <ns>.inbound ──▶ queue <ns>.inbound.0 ──expired──▶ <ns>.dead
                              ▲                                                │
    <ns>.retry.<ms> ──▶ queue <ns>.retry.<ms>, waits <ms> there       queue <ns>.dead

With more than one shard, or after the number of shards was changed, what stands between
the exchange <ns>.inbound and the queues is told in shards.py.

Everything is durable and every queue is a quorum queue, so one node may be lost, and no
version from 3.10 to 4.x refuses it (traps 2.1). A waiting queue hands on what waited
long enough under its own routing key, so a fanout exchange stands in front of each: a
message can be put in without losing the key, which is the user.
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

# RabbitMQ 4 drops a message after 20 returns if nobody says otherwise, and every lost
# connection counts for all that was in flight; 3.10 keeps the place of what is returned
# only where a limit is set. Attempts are counted by the bridge itself.
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
    """From an exchange to a queue, or to another exchange."""

    source: str
    destination: Exchange | Queue
    routing_key: str = ""


@dataclass(frozen=True, slots=True)
class Topology:
    """All that is declared, in an order in which it can be."""

    exchanges: Sequence[Exchange]
    queues: Sequence[Queue]
    bindings: Sequence[Binding]


class State(StrEnum):
    """What `compare` found out about one exchange or queue."""

    OK = "ok"
    MISSING = "missing"
    DIFFERENT = "different"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Finding:
    """One exchange or queue by kind and name; `text` says what to do if it is not ok."""

    name: str
    state: State
    text: str = field(default="")


def retry_delay_ms(delay_s: float) -> int:
    """Return the delay as it stands in the name of its exchange and queue."""
    return max(1, round(delay_s * 1000))


def topology(
    names: BrokerNames,
    retry_delays_s: Sequence[float],
    shards: int = 1,
    *,
    was_changed: bool | None = None,
    hash_type: str = MODULUS,
) -> Topology:
    """
    Return what a bridge with these names and delays needs.

    Args:
        names: Of everything.
        retry_delays_s: One waiting queue each.
        shards: How many inbound queues there are.
        was_changed: Whether the number was another one before: then the queues hang on
            an exchange of their own even if it is one. `None` = not, if it is one.
        hash_type: Of the exchange that spreads users over several shards.

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
        # Of one shard too the key says nothing: a fanout takes any.
        kind = hash_type if shards > 1 else "fanout"
        entry = Exchange(names.shards_entry(shards), kind)
        exchanges.append(entry)
        queues.append(Queue(names.bridges, QUORUM))
        # In the order of their names, so that bridges that start together bind as one: to a
        # consistent hash that order says who gets what.
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
            {
                **QUORUM,
                "x-message-ttl": delay_ms,
                **_handing_over_to(names.inbound),
            },
        )
        exchanges.append(Exchange(name, "fanout"))
        queues.append(waiting)
        bindings.append(Binding(name, waiting))
    return Topology(exchanges, queues, bindings)


def inbound_queue(names: BrokerNames, name: str) -> Queue:
    """Return an inbound queue of this name."""
    return Queue(
        name,
        {
            **QUORUM,
            "x-single-active-consumer": True,
            # What expires while it waits is accounted for, too.
            **_handing_over_to(names.dead),
        },
    )


def _handing_over_to(exchange: str) -> Arguments:
    """Dead-letter with confirms; without reject-publish the broker would quietly not."""
    return {
        "x-dead-letter-exchange": exchange,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


async def declare(
    connection: BrokerConnection[FrameReader], wanted: Topology, *, timeout_s: float
) -> None:
    """
    Make what is not there; leave what is there already.

    Args:
        connection: Lives on whatever happens; a channel of its own is used.
        wanted: What to declare.
        timeout_s: For each single thing.

    Raises:
        TopologyError: If something of the name is there with other arguments, or we
            may not declare it.
        BrokerUnavailableError: If the broker is away or too slow.

    Cancellation:
        Safe; what was declared stays, and declaring again does no harm.

    """
    async with broker_call("open a channel", timeout_s=timeout_s):
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
) -> list[Finding]:
    """
    Say what of `wanted` is there and as it must be. Changes nothing.

    Bindings are not looked at: AMQP has no way to ask for one.

    Raises:
        BrokerUnavailableError: If the broker is away or too slow.

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
) -> Finding:
    # Every refusal closes its channel, so each thing gets one of its own.
    async with broker_call(f"look at {thing.name}", timeout_s=timeout_s):
        channel = await connection.open_channel(confirms=False)
        try:
            await _send_declare(channel, thing, passive=True)
        except ChannelNotFoundEntity:
            text = "is not there yet; bridge run will declare it"
            return Finding(_title(thing), State.MISSING, text)
        except ChannelAccessRefused as exc:
            return _finding(State.REFUSED, _refused(thing, exc))
        # It is there: declaring it in earnest either agrees or tells the difference.
        try:
            await _send_declare(channel, thing, passive=False)
        except ChannelPreconditionFailed as exc:
            return _finding(State.DIFFERENT, _different(thing, exc))
        except ChannelAccessRefused as exc:
            return _finding(State.REFUSED, _refused(thing, exc))
        await channel.close()
    return Finding(_title(thing), State.OK)


def _finding(state: State, error: TopologyError) -> Finding:
    return Finding(error.name, state, f"{error.problem}; {error.fix}")


async def declare_one(
    channel: aiormq.Channel, thing: Exchange | Queue, *, timeout_s: float
) -> None:
    """Make it if it is not there. Raises as `declare` does."""
    async with broker_call(f"declare {thing.name}", timeout_s=timeout_s):
        try:
            await _send_declare(channel, thing, passive=False)
        except ChannelPreconditionFailed as exc:
            if is_no_such_type(problem_text(exc)):
                raise _unknown_type(thing, exc) from exc
            raise _different(thing, exc) from exc
        except ChannelAccessRefused as exc:
            raise _refused(thing, exc) from exc
        except ConnectionCommandInvalid as exc:
            raise _unknown_type(thing, exc) from exc


async def _send_declare(
    channel: aiormq.Channel, thing: Exchange | Queue, *, passive: bool
) -> None:
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
    """Make the binding if it is not there. Raises as `declare` does."""
    target = binding.destination
    async with broker_call(
        f"bind {target.name} to {binding.source}", timeout_s=timeout_s
    ):
        try:
            if isinstance(target, Exchange):
                await channel.exchange_bind(
                    target.name, binding.source, binding.routing_key
                )
            else:
                await channel.queue_bind(
                    target.name, binding.source, binding.routing_key
                )
        except ChannelAccessRefused as exc:
            raise _refused(target, exc) from exc


def _title(thing: Exchange | Queue) -> str:
    """An exchange and a queue may have one name."""
    return f"{type(thing).__name__.lower()} {thing.name}"


def _different(
    thing: Exchange | Queue, exc: ChannelPreconditionFailed
) -> TopologyError:
    """One sentence: which queue, which argument, both values, the way out."""
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
    thing: Exchange | Queue,
    exc: ConnectionCommandInvalid | ChannelPreconditionFailed,
) -> TopologyError:
    """What the broker says, and the command that mends it."""
    plugin = plugin_of(thing.type) if isinstance(thing, Exchange) else "the one for it"
    return TopologyError(
        _title(thing),
        f"RabbitMQ says {problem_text(exc)}",
        f"`rabbitmq-plugins enable {plugin}` on each of its nodes",
    )
