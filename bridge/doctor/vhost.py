"""
Check the vhost through the management API: clock, flags, policies, bindings, ack timeout.

Without the API these checks are skipped, and the result says how to enable them.
"""

from collections.abc import AsyncIterator
from typing import Final

from bridge.amqp.management import ManagementApi, ManagementError
from bridge.amqp.topology import Topology
from bridge.core.broker_names import BrokerNames
from bridge.core.contracts.operator.queues import QueueRole
from bridge.doctor.policies import (
    POLICY_PATHS,
    Policy,
    ack_timeout_s,
    check_policies,
    parse_policies,
    queue_role,
)
from bridge.doctor.results import CheckResult, fail, ok, skip, warn

# Settlements per second of a store on a slow disk; see docs/decisions for fast ones.
_SLOW_PER_S: Final = 100
_ACK_TIMEOUT_S: Final = 1800.0  # RabbitMQ's default
# A Date header has whole seconds, and the answer takes time to arrive.
_CLOCK_OK_S: Final = 3.0
_SUBJECT: Final = "policies, bindings and clock"


async def check_vhost(
    management: ManagementApi | None,
    wanted: Topology,
    names: BrokerNames,
    *,
    prefetch_count: int,
    clock_limit_s: float,
) -> AsyncIterator[CheckResult]:
    """
    Check everything that AMQP itself cannot answer.

    Args:
        management: `None` if no URL is set.
        wanted: The topology that the bridge declares.
        names: The names of its queues.
        prefetch_count: How many deliveries the bridge may hold unacked.
        clock_limit_s: A larger difference between the clocks is a failure.

    """
    policies: list[Policy] = []
    if management is None:
        fix = "set BRIDGE_MANAGEMENT_URL=http://HOST:15672/"
        yield skip(_SUBJECT, "need the management API", fix=fix)
    else:
        try:
            overview = await management.get("overview")
            yield check_clock(
                "clock of the broker", overview.clock_ahead_s, limit_s=clock_limit_s
            )
            async for result in _check_flags(management):
                yield result
            for kind, path in POLICY_PATHS.items():
                answer = await management.get(f"{path}/{management.vhost_path}")
                policies += parse_policies(kind, answer.value)
            for result in check_policies(
                policies, wanted, names, vhost=management.vhost
            ):
                yield result
            yield await _check_bindings(management, wanted, names)
        except ManagementError as exc:
            yield skip(_SUBJECT, f"the management API does not answer: {exc}")
    timeouts_s = [
        ack_timeout_s(policies, queue.name)
        for queue in wanted.queues
        if queue_role(queue.name, names) is QueueRole.INBOUND
    ]
    yield check_prefetch(
        prefetch_count,
        ack_timeout_s=min((s for s in timeouts_s if s is not None), default=None),
    )


def check_prefetch(prefetch_count: int, *, ack_timeout_s: float | None) -> CheckResult:
    """Check that a slow store settles a full prefetch before the broker's ack timeout."""
    needed_s = prefetch_count / _SLOW_PER_S
    text = (
        f"a slow store ({_SLOW_PER_S} messages/s) settles {prefetch_count} messages in "
        f"{needed_s:g} s; "
    )
    if ack_timeout_s is None:
        text += (
            f"the broker waits {_ACK_TIMEOUT_S:g} s for an ack by default (bridge "
            "knows of no policy that sets another limit, and cannot read its consumer_timeout)"
        )
        ack_timeout_s = _ACK_TIMEOUT_S
    else:
        text += f"by a policy, the broker waits {ack_timeout_s:g} s for an ack"
    if needed_s >= ack_timeout_s:
        fix = f"BRIDGE_PREFETCH={max(1, int(ack_timeout_s * _SLOW_PER_S / 2))}"
        return fail("prefetch", text, fix=fix)
    return ok("prefetch", text)


def check_clock(subject: str, ahead_s: float | None, *, limit_s: float) -> CheckResult:
    """Compare a clock with that of this machine; `None` if the difference is not known."""
    if ahead_s is None:
        return skip(subject, "its time is not known")
    if abs(ahead_s) < _CLOCK_OK_S:
        return ok(subject, "agrees with the clock of this machine")
    text = f"differs by {abs(ahead_s):.1f} s from the clock of this machine"
    fix = "timedatectl set-ntp true   # on the machine whose clock is wrong"
    report = warn if abs(ahead_s) <= limit_s else fail
    return report(subject, text, fix=fix)


async def _check_flags(management: ManagementApi) -> AsyncIterator[CheckResult]:
    try:
        flags = _list((await management.get("feature-flags")).value)
    except ManagementError:
        return  # only administrators may ask
    for flag in flags:
        if flag.get("name") == "stream_queue" and flag.get("state") == "disabled":
            yield fail(
                "feature flag stream_queue",
                "is disabled, so dead-lettering is not confirmed and may lose messages",
                fix="rabbitmqctl enable_feature_flag stream_queue",
            )


async def _check_bindings(
    management: ManagementApi, wanted: Topology, names: BrokerNames
) -> CheckResult:
    answer = await management.get(f"bindings/{management.vhost_path}")
    found = {
        (one.get("source"), one.get("destination_type"), one.get("destination"))
        for one in _list(answer.value)
    }
    # Every queue is bound to the default exchange, whose name is empty.
    if not any(("", "queue", queue.name) in found for queue in wanted.queues):
        return ok("bindings", "do not exist yet; bridge run will declare them")
    missing = [
        f"{binding.source} to {kind} {binding.destination.name}"
        for binding in wanted.bindings
        for kind in (type(binding.destination).__name__.lower(),)
        if (binding.source, kind, binding.destination.name) not in found
    ]
    if missing:
        text = f"missing: {', '.join(missing)}; messages published there are dropped"
        fix = "restart bridge run, which declares them at its start"
        return fail("bindings", text, fix=fix)
    expected = {
        one.destination.name for one in wanted.bindings if one.source == names.inbound
    }
    extra = {str(to) for source, _, to in found if source == names.inbound} - expected
    if extra:
        text = f"messages also go from {names.inbound} to {', '.join(sorted(extra))}"
        fix = (
            "restart one bridge run, which removes bindings of an earlier number of "
            "shards"
        )
        return warn("bindings", text, fix=fix)
    return ok("bindings", "inbound, retry and dead letter queues are all bound")


def _list(value: object) -> list[dict[str, object]]:
    entries = value if isinstance(value, list) else []
    return [entry for entry in entries if isinstance(entry, dict)]
