"""
Check for policies that contradict the topology.

An argument of a queue overrides a policy, except for limits, where the lower value counts.
A policy can therefore break a guarantee of the bridge without any change of the queue.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Final

from bridge.amqp.topology import Topology
from bridge.core.broker_names import BrokerNames
from bridge.core.contracts.operator.queues import QueueRole
from bridge.doctor.results import CheckResult, CheckStatus, fail, ok, warn

# rabbitmqctl's word for each kind of policy, and the path of the management API.
POLICY_PATHS: Final = {"policy": "policies", "operator_policy": "operator-policies"}
# A lost connection adds one to the delivery count of each message that was in flight.
# With a lower limit, an unstable network would dead-letter good messages.
_DELIVERY_LIMIT_MIN: Final = 1000
_FOR_QUORUM_QUEUES: Final = frozenset({"all", "queues", "quorum_queues"})


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy of the management API; `kind` is a key of `POLICY_PATHS`."""

    kind: str
    name: str
    pattern: str
    applies_to: str
    priority: int
    definition: Mapping[str, object]

    def covers(self, queue: str) -> bool:
        """Whether it matches this quorum queue; true if its pattern cannot be parsed."""
        if self.applies_to not in _FOR_QUORUM_QUEUES:
            return False
        try:
            return re.search(self.pattern, queue) is not None
        except re.error:  # Erlang's regular expressions have more syntax than Python's
            return True

    def clear_command(self, vhost: str) -> str:
        """Return the command that removes it."""
        return (
            f"rabbitmqctl clear_{self.kind} --vhost {quote(vhost)} {quote(self.name)}"
        )


def parse_policies(kind: str, value: object) -> list[Policy]:
    """Parse an answer of the management API; other entries are left out."""
    entries = value if isinstance(value, list) else []
    return [
        Policy(
            kind=kind,
            name=str(entry.get("name")),
            pattern=str(entry.get("pattern")),
            applies_to=str(entry.get("apply-to")),
            priority=int(entry.get("priority") or 0),
            definition=entry.get("definition") or {},
        )
        for entry in entries
        if isinstance(entry, dict)
    ]


def check_policies(
    policies: Sequence[Policy], wanted: Topology, names: BrokerNames, *, vhost: str
) -> list[CheckResult]:
    """Report the policies that break a guarantee of the bridge."""
    found: list[CheckResult] = []
    for queue in wanted.queues:
        for policy in _applied(policies, queue.name):
            for status, text in policy_effects(
                queue_role(queue.name, names), policy.definition
            ):
                subject = f"{policy.kind} {policy.name} on queue {queue.name}"
                report = fail if status is CheckStatus.FAIL else warn
                found.append(report(subject, text, fix=policy.clear_command(vhost)))
    return found or [ok("policies", "none contradicts the topology")]


def ack_timeout_s(policies: Sequence[Policy], queue: str) -> float | None:
    """
    Return how long the broker waits for an ack on `queue`, by its policies.

    ``None`` if none limits it: then the `consumer_timeout` of the node counts, which no API
    reports.
    """
    timeouts_ms = [
        policy.definition.get("consumer-timeout")
        for policy in _applied(policies, queue)
    ]
    return min((ms / 1000 for ms in timeouts_ms if isinstance(ms, int)), default=None)


def queue_role(queue: str, names: BrokerNames) -> QueueRole:
    """Return the purpose of a queue of the topology."""
    if queue == names.dead:
        return QueueRole.DEAD
    if queue == names.unrouted:
        return QueueRole.UNROUTED
    if queue == names.control:
        return QueueRole.CONTROL
    is_inbound = queue.startswith(f"{names.inbound}.")
    return QueueRole.INBOUND if is_inbound else QueueRole.RETRY


def policy_effects(
    role: QueueRole, definition: Mapping[str, object]
) -> Iterator[tuple[CheckStatus, str]]:
    """Yield the harmful effects of a policy's definition on a queue with this role."""
    for key, value in definition.items():
        shown = f"{key} = {value}"
        match key:
            case "expires":
                text = f"{shown} deletes the queue and its messages when it is unused"
                yield CheckStatus.FAIL, text
            case "message-ttl" if role is not QueueRole.UNROUTED:
                yield _ttl_effect(role, shown)
            case "max-length" | "max-length-bytes":
                yield _length_effect(role, shown, overflow=definition.get("overflow"))
            case "delivery-limit":
                if isinstance(value, int) and 0 <= value < _DELIVERY_LIMIT_MIN:
                    text = f"{shown} drops valid messages after a few lost connections"
                    yield CheckStatus.FAIL, text
            case "dead-letter-exchange" if role is QueueRole.DEAD:
                text = f"{shown} moves dead letters to where `bridge dead` does not read them"
                yield CheckStatus.WARN, text
            case _:
                pass  # bridge's own arguments win, or the key is harmless


def _applied(policies: Sequence[Policy], queue: str) -> Iterator[Policy]:
    """Yield the policies in effect: of each kind, the match with the highest priority."""
    for kind in POLICY_PATHS:
        matching = [p for p in policies if p.kind == kind and p.covers(queue)]
        if matching:
            yield max(matching, key=lambda policy: policy.priority)


def _ttl_effect(role: QueueRole, shown: str) -> tuple[CheckStatus, str]:
    match role:
        case QueueRole.INBOUND:
            text = (
                f"{shown} dead-letters messages that wait longer for a bridge; "
                "they never reach a page"
            )
            return CheckStatus.FAIL, text
        case QueueRole.RETRY | QueueRole.UNROUTED:
            return CheckStatus.WARN, f"{shown} shortens longer retry delays"
        case QueueRole.DEAD:
            return CheckStatus.WARN, f"{shown} drops older dead letters"
        case QueueRole.CONTROL | QueueRole.EVENTS:
            text = f"{shown} drops commands such as `revoke` that wait for a bridge"
            return CheckStatus.FAIL, text


def _length_effect(
    role: QueueRole, shown: str, *, overflow: object
) -> tuple[CheckStatus, str]:
    match role:
        case QueueRole.INBOUND | QueueRole.UNROUTED:
            text = (
                f"{shown} refuses publishes when the queue is full: "
                "publishes without a confirm are lost"
            )
            return CheckStatus.WARN, text
        case QueueRole.DEAD if overflow not in {"reject-publish", "reject-publish-dlx"}:
            text = f"{shown} drops the oldest dead letters when the queue is full"
            return CheckStatus.FAIL, text
        case QueueRole.CONTROL:
            text = f"{shown} drops or refuses commands such as `revoke`"
            return CheckStatus.WARN, text
        case _:
            text = f"{shown} makes the bridge wait when the queue is full"
            return CheckStatus.WARN, text
