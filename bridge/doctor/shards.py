"""
The shards: what the broker holds, whether it agrees with the setting, what is left.

And who else takes messages of the namespace, where that keeps a bridge from taking any.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bridge.amqp.connection import (
    BrokerAddress,
    Purpose,
    broker_identity,
    open_connection,
)
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.ownership import Neighbours
from bridge.amqp.permissions import knows_type
from bridge.amqp.shards.hashing import best_hash, plugin_of
from bridge.amqp.shards.layout import Layout, ShardDesk, ShardPlan
from bridge.amqp.topology import (
    Topology,
    topology,
)
from bridge.doctor.results import Finding, note, ok, wrong
from bridge.errors import BrokerUnavailableError

_SUBJECT: Final = "shards"
_OTHERS: Final = "other bridges"


@dataclass(frozen=True, slots=True)
class ShardsSeen:
    """What the broker has to hold by its own records, and what is to be said of them."""

    wanted: Topology
    findings: Sequence[Finding]


async def look_at_shards(
    address: BrokerAddress, plan: ShardPlan, *, has_own_inbox: bool
) -> ShardsSeen:
    """
    Look at the shards and at other bridges, and change nothing.

    Without a broker, or without the plugin, the rest is to be looked at as if there were
    one shard: other findings say what is wrong then.
    """
    plain = topology(plan.names, plan.retry_delays_s)
    try:
        connection = await open_connection(
            address, purpose=Purpose.CHECK, reader=FrameReader
        )
    except BrokerUnavailableError:
        return ShardsSeen(plain, ())
    try:
        desk = ShardDesk(connection, plan)
        layout = await desk.expect()
        best = best_hash(broker_identity(connection).version)
        neighbours = Neighbours(
            connection, plan.names, address=address, has_own_inbox=has_own_inbox
        )
        findings = [
            _agreement(layout, plan),
            await _company(neighbours, has_own_inbox=has_own_inbox),
        ]
        findings += [
            note(
                _SUBJECT,
                f"queue {queue} is of before and not empty yet; the new ones wait for it",
                mend=f"bridge shards set {layout.shards}   # if no bridge gets on with it",
            )
            for queue in await desk.left_of_before(layout)
        ]
        hash_type = layout.hash_type if layout.shards > 1 else best
        if hash_type != best:
            findings.append(_other_hash(layout, best))
        if max(layout.shards, plan.shards) > 1 and not await knows_type(
            connection, plan.names, hash_type, timeout_s=plan.timeout_s
        ):
            text = f"the broker does not know exchanges of type {hash_type}"
            mend = f"rabbitmq-plugins enable {plugin_of(hash_type)}   # on each node"
            return ShardsSeen(plain, (*findings, wrong(_SUBJECT, text, mend=mend)))
        return ShardsSeen(plan.topology(layout), findings)
    except BrokerUnavailableError:
        return ShardsSeen(plain, ())
    finally:
        await connection.leave()


async def _company(neighbours: Neighbours, *, has_own_inbox: bool) -> Finding:
    """A bridge that runs with these settings is seen like any other."""
    if has_own_inbox and await neighbours.is_one_alone():
        text = "one with an inbox of its own takes the messages; another would wait"
        return ok(_OTHERS, text)
    problem = await neighbours.in_the_way()
    if problem is None:
        return ok(_OTHERS, "none is in the way")
    return note(_OTHERS, problem, mend="end them, or set another BRIDGE_NAMESPACE")


def _other_hash(layout: Layout, best: str) -> Finding:
    """One of an earlier version of the broker, or of the bridge; it works, but for one case."""
    return note(
        _SUBJECT,
        f"users are spread by {layout.hash_type}, on this version of RabbitMQ {best} is "
        "better: after all nodes were down, users may belong to other queues than before, "
        "and be overtaken there",
        mend="bridge shards set N   # with a number that was never set before",
    )


def _agreement(layout: Layout, plan: ShardPlan) -> Finding:
    if layout.shards == plan.shards:
        return ok(_SUBJECT, f"{layout.shards}")
    return note(
        _SUBJECT,
        f"the broker has {layout.shards}, BRIDGE_SHARDS says {plan.shards}; "
        "bridges follow the broker",
        mend=f"BRIDGE_SHARDS={layout.shards}, or: bridge shards set {plan.shards}",
    )
