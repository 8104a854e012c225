"""
Which policies contradict the topology.

An argument of a queue wins over a policy, but for limits, where the lower one counts; so a
policy can take away what the bridge promises without anybody touching the queue.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from shlex import quote
from typing import Final

from bridge.doctor.results import Verdict

# Each lost connection counts for all that was in flight. Below it, a bad day of the
# network makes dead letters of good messages.
_DELIVERY_LIMIT_MIN: Final = 1000
_FOR_OUR_QUEUES: Final = frozenset({"all", "queues", "quorum_queues"})


class Role(StrEnum):
    """What a queue is for."""

    INBOUND = "inbound"
    RETRY = "retry"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as the management API tells it; `kind` is as rabbitmqctl calls it."""

    kind: str
    name: str
    pattern: str
    applies_to: str
    priority: int
    definition: Mapping[str, object]

    def covers(self, queue: str) -> bool:
        """Whether it is for this quorum queue; true if its pattern cannot be read."""
        if self.applies_to not in _FOR_OUR_QUEUES:
            return False
        try:
            return re.search(self.pattern, queue) is not None
        except re.error:  # Erlang's patterns know some things that ours do not
            return True

    def clear_command(self, vhost: str) -> str:
        """Return the command that takes it away."""
        return (
            f"rabbitmqctl clear_{self.kind} --vhost {quote(vhost)} {quote(self.name)}"
        )


def parse_policies(kind: str, value: object) -> list[Policy]:
    """Read an answer of the management API; what is none of a policy's is left out."""
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


def applying(policies: Iterable[Policy], queue: str) -> Policy | None:
    """Return the one that the broker applies: of those that fit, the highest priority."""
    fitting = [policy for policy in policies if policy.covers(queue)]
    return max(fitting, key=lambda policy: policy.priority, default=None)


def policy_problems(
    role: Role, definition: Mapping[str, object]
) -> Iterator[tuple[Verdict, str]]:
    """
    Say what a policy does to a queue of ours.

    Args:
        role: Which queue it is.
        definition: Keys and values.

    """
    for key, value in definition.items():
        shown = f"{key} = {value}"
        match key:
            case "expires":
                text = f"{shown} deletes the queue, with all in it, when nobody uses it"
                yield Verdict.WRONG, text
            case "message-ttl":
                yield _ttl(role, shown)
            case "max-length" | "max-length-bytes":
                yield _length(role, shown, overflow=definition.get("overflow"))
            case "delivery-limit":
                if isinstance(value, int) and 0 <= value < _DELIVERY_LIMIT_MIN:
                    text = (
                        f"{shown} takes good messages away after some lost connections"
                    )
                    yield Verdict.WRONG, text
            case "dead-letter-exchange" if role is Role.DEAD:
                text = f"{shown} moves dead letters on, and `bridge dead` will not see them"
                yield Verdict.NOTE, text
            case _:
                pass  # arguments of ours win, or it is about where a queue lives


def _ttl(role: Role, shown: str) -> tuple[Verdict, str]:
    match role:
        case Role.INBOUND:
            text = (
                f"{shown} makes dead letters of messages that wait longer for a bridge"
            )
            return Verdict.WRONG, text
        case Role.RETRY:
            return Verdict.NOTE, f"{shown} ends waits that are longer"
        case Role.DEAD:
            return Verdict.NOTE, f"{shown} drops dead letters that are older"


def _length(role: Role, shown: str, *, overflow: object) -> tuple[Verdict, str]:
    match role:
        case Role.INBOUND:
            return Verdict.NOTE, f"{shown} refuses publishes when it is full"
        case Role.RETRY:
            return Verdict.NOTE, f"{shown} makes the bridge wait when it is full"
        case Role.DEAD if overflow in {"reject-publish", "reject-publish-dlx"}:
            return Verdict.NOTE, f"{shown} makes the bridge wait when it is full"
        case Role.DEAD:
            return (
                Verdict.WRONG,
                f"{shown} drops the oldest dead letters when it is full",
            )
