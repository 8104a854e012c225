"""
The shards: what the broker holds, whether it agrees with the setting, what is left.

And who else takes messages of the namespace, where that keeps a bridge from taking any.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bridge.broker.alone import Neighbours
from bridge.broker.connection import (
    BrokerAddress,
    Purpose,
    open_connection,
)
from bridge.broker.frame_reader import FrameReader
from bridge.broker.permissions import knows_hash
from bridge.broker.shards import Layout, ShardDesk, ShardPlan
from bridge.broker.topology import (
    HASH_EXCHANGE,
    HASH_PLUGIN,
    Exchange,
    Topology,
    topology,
)
from bridge.doctor.findings import Finding, note, ok, wrong
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
        layout = await desk.read()
        inbound = Exchange(plan.names.inbound, "fanout")
        if not layout.change and plan.shards > 1 and not await desk.is_there(inbound):
            layout = Layout(plan.shards, 1)  # as `bridge run` will make it
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
        if max(layout.shards, plan.shards) > 1 and not await knows_hash(
            connection, plan.names, timeout_s=plan.timeout_s
        ):
            text = f"the broker does not know exchanges of type {HASH_EXCHANGE}"
            mend = f"rabbitmq-plugins enable {HASH_PLUGIN}   # on each node"
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


def _agreement(layout: Layout, plan: ShardPlan) -> Finding:
    if layout.shards == plan.shards:
        return ok(_SUBJECT, f"{layout.shards}")
    return note(
        _SUBJECT,
        f"the broker has {layout.shards}, BRIDGE_SHARDS says {plan.shards}; "
        "bridges follow the broker",
        mend=f"BRIDGE_SHARDS={layout.shards}, or: bridge shards set {plan.shards}",
    )
