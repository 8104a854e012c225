"""Check the shards, and whether other bridges keep this one from consuming."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bridge.amqp.connection import BrokerAddress, Purpose, broker_identity, connected
from bridge.amqp.frame_reader import FrameReader
from bridge.amqp.ownership import NamespaceOwnership
from bridge.amqp.permissions import knows_type
from bridge.amqp.shards.hashing import plugin_of, preferred_hash_type
from bridge.amqp.shards.layout import ShardLayout, ShardPlan, ShardRecords
from bridge.amqp.topology import Topology, topology
from bridge.doctor.results import CheckResult, fail, ok, warn
from bridge.errors import BrokerUnavailableError

_SUBJECT: Final = "shards"
_OTHERS: Final = "other bridges"


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """The topology that the broker's own records ask for, and the results."""

    wanted: Topology
    results: Sequence[CheckResult]


async def check_shards(
    address: BrokerAddress, plan: ShardPlan, *, has_own_inbox: bool, is_running: bool
) -> ShardCheck:
    """
    Check shards and other bridges, and change nothing.

    Without a broker or its hash plugin, the returned topology is that of a single shard,
    so that the remaining checks can run. Other results then report the cause.
    """
    plain = topology(plan.names, plan.retry_delays_s)
    try:
        async with connected(
            address, purpose=Purpose.CHECK, reader=FrameReader
        ) as connection:
            records = ShardRecords(connection, plan)
            layout = await records.expect()
            best = preferred_hash_type(broker_identity(connection).version)
            ownership = NamespaceOwnership(
                connection, plan.names, address=address, has_own_inbox=has_own_inbox
            )
            results = [
                _check_setting(layout, plan),
                await _check_other_bridges(
                    ownership, has_own_inbox=has_own_inbox, is_running=is_running
                ),
            ]
            results += [
                warn(
                    _SUBJECT,
                    f"queue {queue} belongs to an earlier number of shards and is not empty "
                    "yet; the new queues wait for it",
                    fix=f"bridge shards set {layout.shards}   # if no bridge is emptying it",
                )
                for queue in await records.previous_queues(layout)
            ]
            hash_type = layout.hash_type if layout.shards > 1 else best
            if hash_type != best:
                results.append(_warn_of_hash(layout, best))
            if max(layout.shards, plan.shards) > 1 and not await knows_type(
                connection, plan.names, hash_type, timeout_s=plan.timeout_s
            ):
                text = f"the broker does not support exchanges of type {hash_type}"
                fix = f"rabbitmq-plugins enable {plugin_of(hash_type)}   # on each node"
                return ShardCheck(plain, (*results, fail(_SUBJECT, text, fix=fix)))
            return ShardCheck(plan.topology(layout), results)
    except BrokerUnavailableError:
        return ShardCheck(plain, ())


async def _check_other_bridges(
    ownership: NamespaceOwnership, *, has_own_inbox: bool, is_running: bool
) -> CheckResult:
    """Check for bridges that this one, or the one that runs with its settings, waits for."""
    if has_own_inbox and is_running and await ownership.is_exclusive():
        return ok(_OTHERS, "the running bridge is the only consumer")
    problem = await ownership.find_conflict()
    if problem is None:
        return ok(_OTHERS, "no other bridge prevents this one from consuming")
    return warn(_OTHERS, problem, fix="stop them, or set another BRIDGE_NAMESPACE")


def _warn_of_hash(layout: ShardLayout, best: str) -> CheckResult:
    return warn(
        _SUBJECT,
        f"users are distributed by {layout.hash_type}. On this version of RabbitMQ, {best} "
        "is better: after all nodes were down, users may map to other queues than before, "
        "and newer messages can overtake older ones there",
        fix="bridge shards set N   # with a number that was never set before",
    )


def _check_setting(layout: ShardLayout, plan: ShardPlan) -> CheckResult:
    if layout.shards == plan.shards:
        return ok(_SUBJECT, f"{layout.shards}")
    return warn(
        _SUBJECT,
        f"the broker records {layout.shards}, BRIDGE_SHARDS is {plan.shards}; "
        "bridges follow the broker",
        fix=f"BRIDGE_SHARDS={layout.shards}, or: bridge shards set {plan.shards}",
    )
