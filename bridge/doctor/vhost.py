"""
The vhost, seen through the management API: policies, bindings, flags, the ack timeout.

Without the API these lines say that nothing is known, and how it could be.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final

from bridge.amqp.management import ManagementApi, ManagementError
from bridge.amqp.topology import Topology
from bridge.core.broker_names import BrokerNames
from bridge.doctor.clock import clock_finding
from bridge.doctor.policies import (
    Policy,
    Role,
    applying,
    parse_policies,
    policy_problems,
)
from bridge.doctor.results import Finding, note, ok, unknown, wrong

_ACK_TIMEOUT_S: Final = 1800.0  # RabbitMQ's default
# A store on a slow disk settles so many a second; see docs/measurements.md for fast ones.
_SLOW_PACE: Final = 100
# As rabbitmqctl calls them, and where the API has them.
_KINDS: Final = {"policy": "policies", "operator_policy": "operator-policies"}
_ASK_ABOUT: Final = "policies, bindings and clock"


async def vhost_findings(
    management: ManagementApi | None,
    wanted: Topology,
    names: BrokerNames,
    *,
    prefetch_count: int,
    clock_limit_s: float,
) -> AsyncIterator[Finding]:
    """
    Look at what AMQP does not tell.

    Args:
        management: `None` if no URL is set.
        wanted: What the bridge declares.
        names: Of its queues.
        prefetch_count: How much it may hold unacked.
        clock_limit_s: Clocks that are further apart are wrong.

    """
    policies: list[Policy] = []
    if management is None:
        mend = "set BRIDGE_MANAGEMENT_URL=http://HOST:15672/"
        yield unknown(_ASK_ABOUT, "AMQP does not tell them", mend=mend)
    else:
        try:
            overview = await management.get("overview")
            yield clock_finding(
                "clock of the broker", overview.clock_ahead_s, limit_s=clock_limit_s
            )
            async for finding in _flag_findings(management):
                yield finding
            policies = await _policies(management)
            for finding in policy_findings(
                policies, wanted, names, vhost=management.vhost
            ):
                yield finding
            yield await _binding_finding(management, wanted, names)
        except ManagementError as exc:
            yield unknown(_ASK_ABOUT, f"the management API cannot be asked: {exc}")
    yield prefetch_finding(
        prefetch_count,
        ack_timeout_s=min(
            ack_timeout_s(policies, queue.name)
            for queue in wanted.queues
            if _role(queue.name, names) is Role.INBOUND
        ),
    )


def prefetch_finding(prefetch_count: int, *, ack_timeout_s: float) -> Finding:
    """Compare what may be in flight with how long the broker waits for an ack."""
    needed_s = prefetch_count / _SLOW_PACE
    text = (
        f"{prefetch_count} in flight are settled within {needed_s:g} s at a slow "
        f"{_SLOW_PACE}/s; the broker waits {ack_timeout_s:g} s for an ack"
    )
    if needed_s >= ack_timeout_s:
        mend = f"BRIDGE_PREFETCH={max(1, int(ack_timeout_s * _SLOW_PACE / 2))}"
        return wrong("prefetch", text, mend=mend)
    return ok("prefetch", text)


def policy_findings(
    policies: Sequence[Policy], wanted: Topology, names: BrokerNames, *, vhost: str
) -> Iterator[Finding]:
    """Say which policies take away what the bridge promises."""
    found = False
    for queue in wanted.queues:
        for policy in _on(queue.name, policies):
            for verdict, text in policy_problems(
                _role(queue.name, names), policy.definition
            ):
                found = True
                subject = f"{policy.kind} {policy.name} on queue {queue.name}"
                yield Finding(subject, verdict, text, policy.clear_command(vhost))
    if not found:
        yield ok("policies", "none contradicts the topology")


def _on(queue: str, policies: Sequence[Policy]) -> Iterator[Policy]:
    """Yield what the broker applies to a queue: at most one of each kind."""
    for kind in _KINDS:
        one = applying((policy for policy in policies if policy.kind == kind), queue)
        if one is not None:
            yield one


def ack_timeout_s(policies: Sequence[Policy], queue: str) -> float:
    """Return how long the broker waits for an ack on `queue`: by policy, or its default."""
    told_ms = [
        policy.definition.get("consumer-timeout") for policy in _on(queue, policies)
    ]
    return min(
        (ms / 1000 for ms in told_ms if isinstance(ms, int)), default=_ACK_TIMEOUT_S
    )


async def _policies(management: ManagementApi) -> list[Policy]:
    policies: list[Policy] = []
    for kind, path in _KINDS.items():
        answer = await management.get(f"{path}/{management.vhost_path}")
        policies += parse_policies(kind, answer.value)
    return policies


async def _flag_findings(management: ManagementApi) -> AsyncIterator[Finding]:
    try:
        flags = _list((await management.get("feature-flags")).value)
    except ManagementError:
        return  # administrators alone may ask
    for flag in flags:
        if flag.get("name") == "stream_queue" and flag.get("state") == "disabled":
            yield wrong(
                "feature flag stream_queue",
                "is disabled, so dead lettering is without confirms and may lose",
                mend="rabbitmqctl enable_feature_flag stream_queue",
            )


async def _binding_finding(
    management: ManagementApi, wanted: Topology, names: BrokerNames
) -> Finding:
    answer = await management.get(f"bindings/{management.vhost_path}")
    there = {
        (one.get("source"), one.get("destination_type"), one.get("destination"))
        for one in _list(answer.value)
    }
    # Every queue has a binding to the exchange without a name.
    if not any(("", "queue", queue.name) in there for queue in wanted.queues):
        return ok("bindings", "are not there yet; bridge run will make them")
    missing = [
        f"{binding.source} to {kind} {binding.destination.name}"
        for binding in wanted.bindings
        for kind in (type(binding.destination).__name__.lower(),)
        if (binding.source, kind, binding.destination.name) not in there
    ]
    if missing:
        text = f"missing: {', '.join(missing)}; what is published there goes nowhere"
        mend = "restart bridge run, which makes them at its start"
        return wrong("bindings", text, mend=mend)
    meant = {
        one.destination.name for one in wanted.bindings if one.source == names.inbound
    }
    more = {str(to) for source, _, to in there if source == names.inbound} - meant
    if more:
        text = f"messages also go from {names.inbound} to {', '.join(sorted(more))}"
        mend = "restart one bridge run, which takes away what is of an earlier number of shards"
        return note("bindings", text, mend=mend)
    return ok("bindings", "inbound, retry and dead letter queues are all bound")


def _role(queue: str, names: BrokerNames) -> Role:
    if queue == names.dead:
        return Role.DEAD
    is_inbound = queue.startswith(f"{names.inbound}.")
    return Role.INBOUND if is_inbound else Role.RETRY


def _list(value: object) -> list[dict[str, object]]:
    entries = value if isinstance(value, list) else []
    return [entry for entry in entries if isinstance(entry, dict)]
